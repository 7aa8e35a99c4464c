"""What a neutral observer of processes needs: the kernel's events, readings of /proc, and a bounded clean-up.

Nothing here asks a supervisor anything. Starts come from the kernel's process connector (root, CONFIG_PROC_EVENTS),
which stamps each exec with CLOCK_MONOTONIC: the observer costs the observed next to nothing and resolves microseconds.
"""

import contextlib
import ctypes
import os
import signal
import socket
import struct
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple, Self

#: seconds that each child sleeps, and by its process id the mark of this run in the argv of all of them
MARK = f"100000.{os.getpid()}"
SLEEP = "/usr/bin/sleep"

#: linux/netlink.h, linux/connector.h, linux/cn_proc.h, linux/prctl.h
NETLINK_CONNECTOR = 11
CN_IDX_PROC = CN_VAL_PROC = 1
PROC_CN_MCAST_LISTEN = 1
PROC_EVENT_NONE = 0x0
PROC_EVENT_EXEC = 0x2
NLMSG_DONE = 3
HEADERS = 36  #: bytes of nlmsghdr and cn_msg before each event
PR_SET_CHILD_SUBREAPER = 36

#: bytes; thousands of events may wait while the harness is busy
RECEIVE_BUFFER = 64 << 20
SO_RCVBUFFORCE = 33


def child_argv(index: int) -> list[str]:
    """A trivial child: sleep adds its arguments up, so the second one can carry the number of the service."""
    return [SLEEP, MARK, f"0.{index:04d}"]


def index_of(pid: int) -> int | None:
    """Which service a process is the child of; None where it is none of this run's children."""
    arguments = _command_line(pid).split(b"\0")
    if len(arguments) > 2 and arguments[:2] == [SLEEP.encode(), MARK.encode()]:
        return int(arguments[2][2:])
    return None


def become_subreaper() -> None:
    """Orphans come to this process from now on, so that every process that a run starts stays within its own tree."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def tree() -> list[int]:
    """The live descendants of this process, zombies left out."""
    kids: dict[int, list[int]] = {}
    dead = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_bytes().rsplit(b")", 1)[1].split()[:2]
                kids.setdefault(int(parent), []).append(int(entry.name))
                if state == b"Z":
                    dead.add(int(entry.name))
    found, todo = [], [os.getpid()]
    while todo:
        new = kids.get(todo.pop(), [])
        found += new
        todo += new
    return [pid for pid in found if pid not in dead]


def children() -> dict[int, int]:
    """pid: number of its service, of every running child."""
    return {pid: index for pid in tree() if (index := index_of(pid)) is not None}


def overhead() -> list[int]:
    """The supervisor's own processes: all that this run has started but the supervised children."""
    return [pid for pid in tree() if MARK.encode() not in _command_line(pid)]


def cpu_seconds(pids: Collection[int]) -> float:
    """CPU time used so far, to the nanosecond, over all threads."""
    total = 0
    for pid in pids:
        for task in _entries(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def memory(pids: Collection[int]) -> float:
    """Proportional set size of them all, in MiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


class Start(NamedTuple):
    nanoseconds: int  #: CLOCK_MONOTONIC
    pid: int


class Watch:
    """The execs of the whole machine from the moment it is opened. RuntimeError where the kernel tells nothing."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.bind((0, CN_IDX_PROC))
        listen = struct.pack("=IIIIHHI", CN_IDX_PROC, CN_VAL_PROC, 0, 0, 4, 0, PROC_CN_MCAST_LISTEN)
        self._socket.send(struct.pack("=IHHII", 16 + len(listen), NLMSG_DONE, 0, 0, 0) + listen)
        if next(self._events(time.monotonic() + 1), None) is None:
            self._socket.close()
            raise RuntimeError("no process events: root and a kernel with CONFIG_PROC_EVENTS are needed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _events(self, until: float) -> Iterator[tuple[int, Start]]:
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(4096)
            except TimeoutError:
                return
            what, _, stamp, pid, group = struct.unpack_from("=IIQII", data, HEADERS)
            if what == PROC_EVENT_NONE or (what == PROC_EVENT_EXEC and pid == group):
                yield what, Start(stamp, pid)

    def starts(self, wanted: Collection[int], since: int, limit: float) -> dict[int, Start]:
        """Waits, at most limit seconds, until each wanted service has exec'd a child after `since` (nanoseconds)."""
        wanted = set(wanted)
        seen: dict[int, Start] = {}
        for what, start in self._events(time.monotonic() + limit):
            if what != PROC_EVENT_EXEC or start.nanoseconds <= since:
                continue
            index = index_of(start.pid)
            if index is not None and index in wanted and index not in seen:
                seen[index] = start
                if len(seen) == len(wanted):
                    break
        return seen


def kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def clean_up(limit: float = 30) -> None:
    """Ends what is left of this process's own tree, by pid: supervisors first. RuntimeError when something stays."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = tree()
        if not left:
            return
        kill(overhead())
        kill(left)
        time.sleep(0.02)
    raise RuntimeError(f"still alive: {tree()}")


def busy(limit: float = 20, quiet: float = 0.08) -> float:
    """Waits, at most limit seconds, for the machine to be quiet; the share of its CPUs that was last in use."""
    until = time.monotonic() + limit
    while True:
        total, idle = _ticks()
        time.sleep(0.5)
        total, idle = (after - before for after, before in zip(_ticks(), (total, idle), strict=True))
        share = 1 - idle / max(total, 1)
        if share < quiet or time.monotonic() > until:
            return round(share, 2)


def _ticks() -> tuple[int, int]:
    values = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(values), values[3] + values[4]


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _entries(folder: str) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(folder).iterdir())
    return []
