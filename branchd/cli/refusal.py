"""Why the daemon did not start: left in its run folder, for `branchctl doctor` to find when nobody answers.

A start that succeeds removes it. Whoever may pass the run folder can read it: it says what the standard error said.
"""

import contextlib
import os
import time
from pathlib import Path

from branchd.core.errors import BranchdError, Invalid
from branchd.core.value import Value
from branchd.wire import json
from branchd.wire.decode import decode

FILE = "refused.json"

#: bytes; a longer file is not ours
_LONGEST = 256 << 10


class Refusal(Value):
    at: float  #: seconds since 1970
    detail: str
    cures: tuple[str, ...]  #: what to do, a line each; of a wrong configuration its faults


def words(error: BranchdError) -> tuple[str, tuple[str, ...]]:
    """What is told of it: a line, and the lines below."""
    faults = error.faults if isinstance(error, Invalid) else []
    lines = [f"{fault.pointer}: {fault.detail}" + (f" ({fault.hint})" if fault.hint else "") for fault in faults]
    return error.detail, (*lines, *([error.hint] if error.hint else []))


def leave(folder: Path, error: BranchdError) -> None:
    """Where the folder can be written to; nobody is told where it cannot, for the error itself is told."""
    detail, cures = words(error)
    beside = folder / f"{FILE}.new"
    with contextlib.suppress(OSError):
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(0o755)  # as a start makes it, whatever the umask is
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(beside, flags, 0o644), "wb") as file:
            file.write(json.dumps(Refusal(time.time(), _utf8(detail), tuple(map(_utf8, cures)))))
        beside.rename(folder / FILE)


def _utf8(text: str) -> str:
    """A path in it may be of other bytes."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def clear(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / FILE).unlink()


def find(folder: Path) -> Refusal | None:
    """None where none was left, or where it cannot be read."""
    try:
        with open(folder / FILE, "rb") as file:
            return decode(Refusal, json.loads(file.read(_LONGEST)))
    except (OSError, ValueError, BranchdError):
        return None
