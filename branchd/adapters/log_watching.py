"""When logs are looked at, rotated and packed: a timer for all of them, a thread that rotates, a slow one that packs.

How far a log may pass rotate_at. A look at a log that grew sets the next one for half the time in which it would
reach rotate_at at that speed, within FLOOR and QUIET. So a log that grows steadily, or doubles its speed from one
look to the next, passes rotate_at by what it writes in FLOOR (0.2 s) and while its archive is made. One that was
quiet and bursts out passes it by at most what it writes in QUIET (10 s); what is too much then goes into several
archives, none above rotate_at.

The logs of an instance that would all be looked at after QUIET are still instead: the kernel is asked to note when
something is written in their folder (folder_changes.py), and every QUIET its notes are read, for all that are still at
once. Those that are in them are looked at; for the others nothing is done. Where the kernel notes nothing, they are
looked at every QUIET.

A log that was taken away under its program is said to be lost, once in the daemon's log, and looked at every QUIET; of
what nobody can read any more there is never much more than rotate_at and what is written meanwhile (lost_logs.py).

Archives are compressed when they have stayed for a while: in a burst most are deleted before.
"""

import asyncio
import heapq
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TypeVar

import structlog
from msgspec import Struct

from branchd.adapters.folder_changes import FolderChanges
from branchd.adapters.lost_logs import bound, written_elsewhere
from branchd.adapters.rotation import RotatedLog
from branchd.core.values import Key, Stream

T = TypeVar("T")

_log = structlog.get_logger(__name__)

#: seconds between two looks at logs that do not grow, or at what the kernel noted of them; all such fall together
QUIET = 10.0

#: seconds until the first look at a log: while many programs start, the CPUs have enough to do
FIRST = 1.0

#: seconds between two looks at a log that grows fast; looks that are due within this time are made together
FLOOR = 0.2

#: seconds that an archive stays as it is. Faster bursts than `keep` archives in this time are not compressed at all
UNPACKED = 10.0

#: nice value of the thread that compresses
NICE = 19


def pause(backlog: int, rate: float, rotate_at: int) -> float:
    """Seconds till the next look at a log that holds backlog bytes and grows by rate bytes a second."""
    if rate <= 0:
        return QUIET
    return min(max((rotate_at - backlog) / rate / 2, FLOOR), QUIET)


def _boundary(now: float) -> float:
    return (now // QUIET + 1) * QUIET


class Watched(Struct):
    """A log and when to look at it next; times are those of time.monotonic()."""

    log: RotatedLog
    stream: Stream
    pid: int  #: of the program that writes it; 0: it has ended
    rotate_at: int
    keep: int
    due: float
    pack_at: float | None  #: None: there is nothing to compress, or it is not to be
    packs: bool
    looked: float = 0
    size: int = -1  #: of the live file at the last look, with its hole; -1: look thoroughly, whatever it is now
    backlog: int | None = None  #: bytes of data that it held after the last look
    waits: bool = False  #: for its turn, in the queue
    slow: bool = False  #: as the last look found it, the next one is QUIET away
    inode: int = 0  #: of the live file when it was last seen and not lost; 0: it never was
    lost: str = ""  #: what the program writes to instead of the live file, in the kernel's words
    left: bool = False  #: nobody looks after it any more

    def look(self) -> None:
        """Rotates when it is time to, and says when to look again. Blocks; raises no OSError."""
        now = time.monotonic()
        try:
            delay = self._look(now)
        except FileNotFoundError:
            self.size, self.backlog, delay = -1, 0, QUIET
        except OSError as error:
            _log.warning("log-rotation-failed", file=self.log.file, reason=str(error))
            self.size, delay = -1, QUIET
        self.looked, self.slow = now, delay >= QUIET and not self.lost
        self.due = now + delay if delay < QUIET else _boundary(now)

    def pack(self, after: float, go_on: Callable[[], bool]) -> None:
        """Compresses the archives that have stayed for so many seconds. Blocks; raises no OSError."""
        try:
            done = self.log.pack(time.time() - after, go_on)
        except FileNotFoundError:
            done = True  # the instance was deleted
        except OSError as error:
            _log.warning("log-packing-failed", file=self.log.file, reason=str(error))
            done = False
        if not done and self.packs:
            self.pack_at = time.monotonic() + UNPACKED

    def _look(self, now: float) -> float:
        try:
            live = os.stat(self.log.file, follow_symlinks=False)
        except OSError:
            self._find(0)
            if not self.lost:
                raise
        else:
            if live.st_ino != self.inode or self.lost:
                self._find(live.st_ino)
        if self.lost:
            self.size = -1
            return FLOOR if bound(str(self.log.root), self.stream, self.pid, self.rotate_at) else QUIET
        size = live.st_size
        # A look right after another says nothing of how fast the log grows, nor does the first one at a full log.
        early = now - self.looked < FLOOR / 2
        if size == self.size:
            return FLOOR if early else QUIET
        turn = self.log.rotate(self.rotate_at, self.keep)
        early = early or (self.backlog is None and turn.archived > 0)
        growth = 0 if self.backlog is None else turn.archived + turn.left - self.backlog
        self.size, self.backlog = -1 if turn.archived else size, turn.left
        if turn.archived and self.packs and self.pack_at is None:
            self.pack_at = now + UNPACKED
        if turn.archived and turn.left > self.rotate_at:
            return 0  # in the next round, so that the other logs have their turns
        if early:
            return FLOOR
        return pause(turn.left, growth / max(now - self.looked, FLOOR), self.rotate_at)

    def _find(self, inode: int) -> None:
        """Whether the program still writes to the live file, which is of that inode now."""
        before, pid = self.lost, self.pid
        lost = written_elsewhere(str(self.log.root), self.log.folder, self.stream, pid, self.inode)
        if pid != self.pid:
            return  # the next program has opened it anew meanwhile; the next look is at that one
        self.lost = lost
        if not lost:
            self.inode = inode
        if lost and not before:
            _log.warning(
                "log-taken-away", file=self.log.file, pid=pid, writes_to=lost,
                cure="restart the instance: it opens a new one",
            )  # fmt: skip


#: logs of an instance, and the number under which the kernel tells that they grow
_Stilled = dict[Key, tuple[tuple[Watched, ...], int]]


class LogWatch:
    """Of all logs of a branch. Close it, or its threads stay."""

    def __init__(self) -> None:
        self._watched: dict[Key, tuple[Watched, ...]] = {}
        self._queue: list[tuple[float, int, Key, Watched]] = []  #: a heap, by when it is due; the number ends a tie
        self._numbers = count()
        self._changes = FolderChanges()
        self._still: dict[int, Key] = {}  #: by the number under which the kernel notes that they grow
        self._stills: dict[Key, int] = {}  #: the same, by the key
        self._unpacked: set[Key] = set()  #: those that have archives for which it was too early
        self._asked = self._ask_at = 0.0  #: when the kernel's notes were last read, and are next
        self._rotating = ThreadPoolExecutor(1, thread_name_prefix="log-rotation")
        self._packing = ThreadPoolExecutor(1, thread_name_prefix="log-packing", initializer=_be_nice)
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.Future[_Stilled] | None = None
        self._held: set[Key] = set()
        self._lost: dict[Key, dict[Stream, str]] = {}
        self._on_lost: dict[Key, Callable[[], None]] = {}
        self._closed = False

    def watch(
        self, key: Key, logs: Mapping[Stream, RotatedLog], pid: int, on_lost: Callable[[], None],
        rotate_at: int, keep: int, *, pack: bool,
    ) -> None:  # fmt: skip
        """At least one archive is always kept. What an earlier daemon left half done is set right by the first look.

        `on_lost` is called when lost() says something new.
        """
        before = self._watched.get(key, ())
        self._on_lost[key] = on_lost
        for watched in before:
            if watched.pid != pid:  # it has opened them anew
                watched.pid, watched.lost, watched.inode = pid, "", 0
                self._lost.pop(key, None)
        wanted = [(log, rotate_at, keep, pack) for log in logs.values()]
        now = time.monotonic()
        if [(it.log, it.rotate_at, it.keep, it.packs) for it in before] == wanted:
            # The next process writes on where the last one ended; but its folder may have been made anew.
            self._rouse(key, now)
            self._wake()
            return
        self._disturb(key)
        for watched in before:
            watched.left = True
        first = now if before else now + FIRST
        self._watched[key] = tuple(
            Watched(log, stream, pid, rotate_at, keep, first, first if pack else None, pack)
            for stream, log in logs.items()
        )
        for watched in self._watched[key]:
            self._await(key, watched)
        self._wake()

    def lost(self, key: Key) -> Mapping[Stream, str]:
        """Logs that its program writes elsewhere, since they were taken away; and where, in the kernel's words."""
        return self._lost.get(key, {})

    def forget(self, key: Key) -> None:
        """After the last looks: what a program wrote just before it ended is rotated too, and all is packed."""
        self._disturb(key)
        self._lost.pop(key, None)
        self._on_lost.pop(key, None)
        for watched in self._watched.pop(key, ()):
            watched.left = True
            self._rotating.submit(self._look_last, watched)
            if watched.packs and not self._closed:
                self._rotating.submit(self._pack, key, watched, 0)
        if not self._watched:
            self._queue.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Does it in the thread that rotates: before any look from now on, and never during one."""
        return self._rotating.submit(work)

    def hold(self, key: Key) -> None:
        """Nothing of it is packed any more, until release()."""
        self._held.add(key)

    def release(self, key: Key) -> None:
        self._held.discard(key)

    async def close(self) -> None:
        """Stops looking, and waits for a rotation that is under way; the rest is for the next daemon."""
        self._closed = True
        for key in list(self._watched):
            self.forget(key)
        for threads in (self._rotating, self._packing):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
        self._changes.close()

    def _await(self, key: Key, watched: Watched) -> None:
        watched.waits = True
        heapq.heappush(self._queue, (watched.due, next(self._numbers), key, watched))

    def _wake(self) -> None:
        """One timer for all logs, set to the earliest; none while a round runs, which sets it when it ends."""
        if self._round is not None or not (self._queue or self._still):
            return
        due = min(self._queue[0][0] if self._queue else math.inf, self._ask_at if self._still else math.inf)
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(due - time.monotonic(), 0), self._start_round)

    def _start_round(self) -> None:
        self._timer = None
        soon = time.monotonic() + FLOOR
        if self._still and self._ask_at <= soon:
            self._ask(soon)
        due = []
        while self._queue and self._queue[0][0] <= soon:
            _, _, key, watched = heapq.heappop(self._queue)
            watched.waits = False
            if not (watched.left or key in self._stills):
                due.append((key, watched))
        if not due:
            self._wake()
            return
        self._round = asyncio.get_running_loop().run_in_executor(self._rotating, self._look_at, due)
        self._round.add_done_callback(partial(self._end_round, due))

    def _end_round(self, looked: list[tuple[Key, Watched]], ended: asyncio.Future[_Stilled]) -> None:
        self._round = None
        bug = None if ended.cancelled() else ended.exception()
        for key, (logs, number) in ({} if ended.cancelled() or bug else ended.result()).items():
            if self._watched.get(key) is not logs:  # not looked after any more, or in another way
                self._changes.forget(number)
            else:
                if not self._still:
                    self._ask_at = _boundary(time.monotonic())
                self._still[number], self._stills[key] = key, number
        for key in dict.fromkeys(key for key, _ in looked):
            self._tell_lost(key)
        for key, watched in looked:
            if not (watched.left or watched.waits or key in self._stills):
                self._await(key, watched)
        self._wake()
        if bug is not None:
            raise bug

    def _look_at(self, due: list[tuple[Key, Watched]]) -> _Stilled:
        """Those that grow slowly, if at all, and that the kernel tells of since before they were looked at."""
        stilled: _Stilled = {}
        try:
            self._look_at_all(due, stilled)
        except BaseException:
            for _, number in stilled.values():
                self._changes.forget(number)
            raise
        return stilled

    def _look_at_all(self, due: list[tuple[Key, Watched]], stilled: _Stilled) -> None:
        for key in dict.fromkeys(key for key, _ in due):
            logs = self._watched.get(key, ())
            if logs and all(watched.slow for watched in logs):
                number = self._changes.watch(logs[0].log.folder)
                if number is not None:
                    stilled[key] = logs, number
        for key, watched in due:
            self._look(key, watched)
        for key, (logs, number) in list(stilled.items()):
            for watched in logs:
                if watched.waits:  # its own turn comes later
                    self._look(key, watched)
            if not all(watched.slow and watched.pack_at is None for watched in logs):
                del stilled[key]
                self._changes.forget(number)

    def _tell_lost(self, key: Key) -> None:
        lost = {watched.stream: watched.lost for watched in self._watched.get(key, ()) if watched.lost}
        if lost != self.lost(key):
            self._lost[key] = lost
            self._on_lost[key]()

    def _look(self, key: Key, watched: Watched) -> None:
        watched.look()
        if watched.pack_at is not None and watched.pack_at <= time.monotonic():
            watched.pack_at = None
            self._pack(key, watched, UNPACKED)

    def _look_last(self, watched: Watched) -> None:
        """As often as there is more to rotate than goes into an archive."""
        watched.look()
        while watched.due <= watched.looked and not self._closed:
            watched.look()

    def _ask(self, now: float) -> None:
        """Whoever grew has its turn in this round."""
        changed = self._changes.changed()
        keys = list(self._stills) if changed is None else [self._still[it] for it in changed if it in self._still]
        while self._unpacked:
            keys.append(self._unpacked.pop())
        for key in keys:
            if key not in self._stills:
                continue
            for watched in self._watched[key]:
                watched.looked = max(watched.looked, self._asked)  # it had not grown by then
            self._rouse(key, now)
        self._asked, self._ask_at = now, _boundary(now)

    def _rouse(self, key: Key, now: float) -> None:
        """Looks at it again from now on."""
        if self._disturb(key):
            for watched in self._watched[key]:
                if not watched.waits:
                    watched.due = now
                    self._await(key, watched)

    def _disturb(self, key: Key) -> bool:
        """Whether it was still."""
        number = self._stills.pop(key, None)
        if number is None:
            return False
        del self._still[number]
        self._changes.forget(number)
        return True

    def _pack(self, key: Key, watched: Watched, after: float) -> None:
        def go_on() -> bool:
            return not self._closed and key not in self._held

        def pack() -> None:
            watched.pack(after, go_on)
            if watched.pack_at is not None:
                self._unpacked.add(key)

        if not self._closed:
            self._packing.submit(pack)


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
