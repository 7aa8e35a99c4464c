"""Logs that were taken away under a running program: removed, moved or replaced, by hand or by another rotation.

The program goes on writing to what it has open, and nobody reads that. The kernel tells which file it is
(/proc/PID/fd), where the daemon may look. When to look is log_watching.py's.
"""

import os
import stat

from branchd.core.spec import LogFormat
from branchd.core.values import Stream

_DESCRIPTORS = {Stream.STDOUT: 1, Stream.STDERR: 2}

#: behind the kernel's name of a file that no folder has any more
_DELETED = " (deleted)"

#: what follows the stream in the name of a log, and of the pipes to one
_KINDS = ("log", *LogFormat)


def written_elsewhere(root: str, folder: str, stream: Stream, pid: int, inode: int) -> str:
    """The kernel's name of what a program writes to that was once its log, or the pipe to it, in that folder.

    `inode`: of the log when it was last seen there; 0: it never was. Then names must tell, and what is not below the
    logs' root is taken for the program's own choice as long as a log stands where it was made. Empty where it is there
    still, where the program itself chose another file, and where it cannot be told.
    """
    descriptor = _descriptor(stream, pid)
    try:
        base = os.path.basename(os.readlink(descriptor)).removesuffix(_DELETED)
        if base.startswith(f"{stream}.log"):  # also of a name that another rotation gave it
            base = f"{stream}.log"
        held = os.stat(descriptor)
        known = held.st_ino == inode
        if known:
            base = f"{stream}.log"
        elif base not in {f"{stream}.{kind}" for kind in _KINDS}:
            return ""
        there = _found(f"{folder}/{base}")
        name = os.readlink(descriptor)  # as it is now: it may have been moved since the first look
    except OSError:
        return ""
    if there is None:
        return name
    return name if not os.path.samestat(held, there) and (known or _below(root, name)) else ""


def bound(root: str, stream: Stream, pid: int, most: int) -> bool:
    """Empties it when it takes more than so many bytes, and nobody could read it: whether it did. OSError.

    What was moved is left alone: it is its mover's. Nor is anything touched that was never in the logs' own folder,
    whatever the program has made its output of since; and nothing that the program could not empty itself: in a mount
    namespace of its own it can give any file that it may read such a name.
    """
    held = os.open(_descriptor(stream, pid), os.O_PATH | os.O_CLOEXEC)
    try:
        link = f"/proc/self/fd/{held}"
        name, found = os.readlink(link), os.fstat(held)
        if not (_below(root, name) and name.endswith(_DELETED) and _writable(stream, pid, held)):
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_nlink or found.st_blocks * 512 <= most:
            return False
        os.truncate(link, 0)
        return True
    finally:
        os.close(held)


def _found(path: str) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=False)
    except OSError:
        return None


def _writable(stream: Stream, pid: int, held: int) -> bool:
    """Whether the program has that very file open for writing; False where the kernel (< 5.14) tells no inodes."""
    theirs = _told(f"/proc/{pid}/fdinfo/{_DESCRIPTORS[stream]}")  # of one file, whatever it does meanwhile
    ours = _told(f"/proc/self/fdinfo/{held}")
    same = "ino" in theirs and all(theirs[one] == ours[one] for one in ("mnt_id", "ino"))
    return same and int(theirs["flags"], 8) & os.O_ACCMODE != os.O_RDONLY


def _told(path: str) -> dict[str, str]:
    with open(path, encoding="ascii") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def _below(root: str, name: str) -> bool:
    return name.startswith(f"{os.path.realpath(root)}/")


def _descriptor(stream: Stream, pid: int) -> str:
    return f"/proc/{pid}/fd/{_DESCRIPTORS[stream]}"
