"""Logs that were taken away under a running program: removed, moved or replaced, by hand or by another rotation.

The program goes on writing to what it has open, and nobody reads that. The kernel tells which file it is
(/proc/PID/fd), where the daemon may look. When to look is log_watching.py's.
"""

import os
import stat

from branchd.core.values import Stream

_DESCRIPTORS = {Stream.STDOUT: 1, Stream.STDERR: 2}

#: behind the kernel's name of a file that no folder has any more
_DELETED = " (deleted)"


def written_elsewhere(folder: str, stream: Stream, pid: int) -> str:
    """The kernel's name of what a program writes to that was once its log, or the pipe to it, in that folder.

    Empty where it is there still, where the program itself chose another file, and where it cannot be told.
    """
    descriptor = _descriptor(stream, pid)
    try:
        name = os.readlink(descriptor)
        base = os.path.basename(name).removesuffix(_DELETED)
        if not base.startswith(f"{stream}."):
            return ""
        if base.startswith(f"{stream}.log"):  # also of a name that another rotation gave it
            base = f"{stream}.log"
        held = os.stat(descriptor)
    except OSError:
        return ""
    try:
        return "" if os.path.samestat(held, os.stat(f"{folder}/{base}", follow_symlinks=False)) else name
    except OSError:
        return name


def bound(root: str, stream: Stream, pid: int, most: int) -> bool:
    """Empties it when it takes more than so many bytes, and nobody could read it: whether it did. OSError.

    What was moved is left alone: it is its mover's. Nor is anything touched that was never in the logs' own folder,
    whatever the program has made its output of since.
    """
    held = os.open(_descriptor(stream, pid), os.O_PATH | os.O_CLOEXEC)
    try:
        link = f"/proc/self/fd/{held}"
        name, found = os.readlink(link), os.fstat(held)
        if not (name.startswith(f"{os.path.realpath(root)}/") and name.endswith(_DELETED)):
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_nlink or found.st_blocks * 512 <= most:
            return False
        os.truncate(link, 0)
        return True
    finally:
        os.close(held)


def _descriptor(stream: Stream, pid: int) -> str:
    return f"/proc/{pid}/fd/{_DESCRIPTORS[stream]}"
