"""The exit codes of branchctl, and which error ends in which. docs/cli.md lists them for people."""

from enum import IntEnum

from branchd.cli.selectors import Uncertain
from branchd.client import ApiProblem, Unreachable
from branchd.core.errors import BranchdError, NotFound


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3  #: as LSB has it, and supervisorctl
    NO_TARGET = 4
    DENIED = 5
    UNREACHABLE = 6
    PARTIAL = 7
    PENDING = 8  #: `apply --dry-run`: there is something to do
    TIMED_OUT = 124  #: as timeout(1) has it
    INTERRUPTED = 130  #: as a shell has it


class TimedOut(BranchdError):
    """It was not done in the time given; it may still be."""


def code(error: BranchdError) -> Exit:
    match error:
        case TimedOut() | ApiProblem(status=504):
            return Exit.TIMED_OUT
        case Uncertain():
            return Exit.PARTIAL
        case NotFound() | ApiProblem(status=404):
            return Exit.NO_TARGET
        case Unreachable(denied=True) | ApiProblem(status=401 | 403):
            return Exit.DENIED
        case Unreachable():
            return Exit.UNREACHABLE
        case _:
            return Exit.FAILED
