"""Reading /proc: what the kernel tells of one process, and of which process comes from which.

Everything here only looks; a process that is gone, or that may not be looked at, is None or left out, never an error.
Figures for people are psutil's (host.py); starting and ending processes is process.py's.
"""

import os
from collections.abc import Iterator
from contextlib import suppress

from branchd.core.value import Value

#: clock ticks a second: the unit of every time in /proc/PID/stat
TICKS = os.sysconf("SC_CLK_TCK")

#: bytes of a page
PAGE = os.sysconf("SC_PAGE_SIZE")

#: the variable by which a spawned process and all that descends from it is known
MARK = "BRANCHD_SPAWN"


class Stat(Value):
    """The fields of /proc/PID/stat that tell who a process is."""

    pid: int
    state: str  #: one letter; Z: ended and not yet reaped
    parent: int
    session: int
    cpu: int  #: ticks in user and kernel mode, of all threads, without children
    started: int  #: ticks from boot

    @property
    def ended(self) -> bool:
        return self.state in "ZX"


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def stat(pid: int) -> Stat | None:
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)  # a third of the calls of open(): asked often
        try:
            # the name in the brackets may hold anything, brackets and spaces too
            fields = os.read(file, 4096).rpartition(b")")[2].split()
        finally:
            os.close(file)
    except OSError:
        return None
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu=int(fields[11]) + int(fields[12]),
        started=int(fields[19]),
    )


def uid(pid: int) -> int | None:
    """The real one: the effective one may be that of a file that it executes."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(b"Uid:")), None)
    except OSError:
        return None


def resident(pid: int) -> int:
    """Bytes of memory that it holds, shared ones too; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0


def mark(pid: int) -> str | None:
    """The nonce that the process or an ancestor of it was spawned with."""
    prefix = f"{MARK}=".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read()
    except OSError:
        return None
    if prefix not in environ:  # nearly all of a machine's processes: spare them the splitting
        return None
    return next(
        (entry[len(prefix) :].decode(errors="replace") for entry in environ.split(b"\0") if entry.startswith(prefix)),
        None,
    )


def command_line(pid: int) -> bytes:
    """Its arguments, each with a NUL byte behind it; empty where there is none to see, of a zombie too."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def cgroup(pid: int | str) -> str | None:
    """Its path in the cgroup v2 hierarchy, as this daemon's namespace sees it; of a zombie too."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), None)
    except OSError:
        return None


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def children(pid: int) -> list[int]:
    """Children, zombies too. The kernel's own list where it keeps one, else one look at every process."""
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        return [each for each in pids() if (of := stat(each)) is not None and of.parent == pid]
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # each may end meanwhile
                found += map(int, file.read().split())
    return found


def descendants(pid: int) -> list[Stat]:
    """All that come from it and still have their parents, nearest first; without itself."""
    found: list[Stat] = []
    parents = [pid]
    for parent in parents:
        # a number that was reused in between has another parent
        near = [of for child in children(parent) if (of := stat(child)) is not None and of.parent == parent]
        found += near
        parents += (of.pid for of in near)
    return found
