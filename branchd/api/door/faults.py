"""What the door answers instead of a result: supervisord's fault codes, and which of them an error of ours is."""

from enum import IntEnum

from branchd.core.errors import BranchdError, Invalid


class Fault(IntEnum):
    """As supervisord numbers them; clients tell them apart by the number."""

    UNKNOWN_METHOD = 1
    INCORRECT_PARAMETERS = 2
    BAD_ARGUMENTS = 3
    SIGNATURE_UNSUPPORTED = 4
    SHUTDOWN_STATE = 6
    BAD_NAME = 10
    BAD_SIGNAL = 11
    NO_FILE = 20
    NOT_EXECUTABLE = 21
    FAILED = 30
    ABNORMAL_TERMINATION = 40
    SPAWN_ERROR = 50
    ALREADY_STARTED = 60
    NOT_RUNNING = 70
    SUCCESS = 80
    ALREADY_ADDED = 90
    STILL_RUNNING = 91
    CANT_REREAD = 92


class RpcError(Exception):
    """A fault in supervisord's words: its name, then a colon and whom it is about, or why."""

    def __init__(self, fault: Fault, about: str | None = None) -> None:
        super().__init__(fault.name if about is None else f"{fault.name}: {about}")
        self.fault = fault


def told(error: BranchdError, fault: Fault = Fault.FAILED) -> RpcError:
    """With all that our error says; `fault`: one that the method's clients know."""
    faults = error.faults if isinstance(error, Invalid) else []
    words = [error.detail, error.hint, *(f"{one.pointer} {one.detail}" for one in faults)]
    return RpcError(fault, "; ".join(word for word in words if word))
