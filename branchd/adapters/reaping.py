"""How processes end: the notice and the status of one, by its pidfd, and the orphans that come to a child subreaper."""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import struct
from collections.abc import Callable, Container

from branchd.adapters import proc
from branchd.core.values import Exit

#: seconds to the first repeated look at a process that has ended but has no status yet; each further look doubles it
FIRST_LOOK = 0.002
#: seconds after which the status of somebody else's child counts as unknown: its parent does not reap it
STATUS_PATIENCE = 2.0
#: seconds between two looks for zombies that nobody waits for; those who have a use for one have that long to reap it:
#: other starters of processes in this daemon
ORPHAN_PATIENCE = 1.0
#: while none are found each look comes twice as late as the one before, until they are so many times as far apart: an
#: idle daemon is woken by little else
ORPHAN_REST = 8

#: _IOWR(0xFF, 11, struct pidfd_info) of linux/pidfd.h, in its first size
PIDFD_GET_INFO = 0xC000FF0B | 64 << 16
PIDFD_INFO_EXIT = 1 << 3


class ExitWatch:
    """Calls back once, in the loop, when the process behind a pidfd has ended and was reaped. Owns the pidfd."""

    def __init__(self, pidfd: int, before_reaping: Callable[[], None], on_exit: Callable[[Exit], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._before_reaping = before_reaping
        self._on_exit = on_exit
        self._again: asyncio.TimerHandle | None = None
        self.pidfd = pidfd  #: -1 when it is over
        self._watched = True
        self._loop.add_reader(pidfd, self._readable)

    def signal(self, number: int) -> None:
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Stops watching; the process goes on."""
        if self.pidfd < 0:
            return
        if self._again is not None:
            self._again.cancel()
        if self._watched:
            self._loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1

    def _readable(self) -> None:
        # it stays readable, so the loop would spin where the status is not there yet
        self._loop.remove_reader(self.pidfd)
        self._watched = False
        self._before_reaping()
        self._look(FIRST_LOOK, self._loop.time() + STATUS_PATIENCE)

    def _look(self, pause: float, deadline: float) -> None:
        how = self._status(final=self._loop.time() >= deadline)
        if how is None:
            self._again = self._loop.call_later(pause, self._look, min(pause * 2, 1.0), deadline)
            return
        self.close()
        self._on_exit(how)

    def _status(self, final: bool) -> Exit | None:
        try:
            status = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return foreign_status(self.pidfd) or (Exit() if final else None)
        if status is None:  # a debugger holds it: it is reaped when that lets go, however long it takes
            return None
        if status.si_code == os.CLD_EXITED:
            return Exit(code=status.si_status)
        return Exit(signal=status.si_status)


def foreign_status(pidfd: int) -> Exit | None:
    """How somebody else's child ended; None till it is reaped, Exit() where the kernel does not tell (before 6.15)."""
    info = bytearray(64)
    struct.pack_into("=Q", info, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
    except OSError:  # no such call before 6.13; no such process any more before 6.15
        return Exit()
    if not struct.unpack_from("=Q", info, 0)[0] & PIDFD_INFO_EXIT:
        return None
    code = os.waitstatus_to_exitcode(struct.unpack_from("=i", info, 60)[0])
    return Exit(code=code) if code >= 0 else Exit(signal=-code)


def tells_foreign() -> bool:
    """Whether the kernel says how somebody else's child ended (6.15)."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= (6, 15)


class OrphanReaper:
    """Reaps the zombies that came to this process as a subreaper, or as PID 1, and that nobody waits for.

    Not on SIGCHLD: each is a byte in the loop's wakeup socket, some hundred at once fill it, and a TERM that comes then
    is lost. Not whatever waitid(P_ALL) offers: it may be the child of another part of this daemon, which waits for it.
    What is still a zombie at the second look is an orphan. A look costs one call when there are no zombies.

    Not before begin() either: after a re-exec the instances are children that nobody waits for yet.
    """

    def __init__(self, waited_for: Container[int], expecting: Callable[[], bool]) -> None:
        """`expecting`: a child may be there that is somebody's and not yet known to be; nothing is reaped then."""
        self._loop = asyncio.get_running_loop()
        self._waited_for = waited_for
        self._expecting = expecting
        self._seen: set[tuple[int, int]] = set()
        self._pause = ORPHAN_PATIENCE
        self._next: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._next = self._loop.call_later(ORPHAN_PATIENCE, self._look)

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()

    def orphans(self) -> list[proc.Stat]:
        """Our children that are no main process of an instance, zombies too."""
        unknown = (pid for pid in proc.children(os.getpid()) if pid not in self._waited_for)
        return [stat for pid in unknown if (stat := proc.stat(pid)) is not None]

    def _look(self) -> None:
        self._pause = min(2 * self._pause, ORPHAN_REST * ORPHAN_PATIENCE)
        try:
            if self._expecting() or (_has_zombies() and self._reap()):
                self._pause = ORPHAN_PATIENCE
        finally:
            self._next = self._loop.call_later(self._pause, self._look)

    def _reap(self) -> bool:
        """Reaps those that were zombies at the last look too; whether there are any."""
        zombies = {(stat.pid, stat.started) for stat in self.orphans() if stat.ended}
        for pid, _ in zombies & self._seen:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._seen = zombies - self._seen
        return bool(zombies)


def _has_zombies() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
