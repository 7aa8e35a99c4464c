"""Where the output of instances goes: files that the programs write to themselves, so that no pipe can break.

Here stand the port that the supervisor sees, the timer that decides when to look at a file, and the threads that the
blocking work runs in. How a log is cut is rotation.py's, how it is read log_reading.py's.

How far a log may pass rotate_at. A look at a log that grew sets the next one for half the time in which it would
reach rotate_at at that speed, within FLOOR and QUIET. So a log that grows steadily, or doubles its speed from one
look to the next, passes rotate_at by what it writes in FLOOR (0.2 s) and while its archive is made. One that was
quiet and bursts out passes it by at most what it writes in QUIET (10 s); what is too much then goes into several
archives, none above rotate_at.
"""

import asyncio
import errno
import os
import shutil
import stat
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from branchd.adapters.log_layout import NotPlain, inner_folder, opened
from branchd.adapters.log_reading import last_lines, read_on
from branchd.adapters.rotation import RotatedLog
from branchd.core.errors import SpawnFailed, Unavailable
from branchd.core.values import Key, Stream

_log = structlog.get_logger(__name__)

#: seconds between two looks at a log that does not grow; the looks of all such logs fall together
QUIET = 10.0

#: seconds between two looks at a log that grows fast; looks that are due within this time are made together
FLOOR = 0.2

#: seconds between two looks for new bytes while somebody follows
FOLLOW = 0.2

#: threads that read: one that waits for a slow disk holds up one other reader at most
_READERS = 2


def pause(backlog: int, rate: float, rotate_at: int) -> float:
    """Seconds till the next look at a log that holds backlog bytes and grows by rate bytes a second."""
    if rate <= 0:
        return QUIET
    return min(max((rotate_at - backlog) / rate / 2, FLOOR), QUIET)


@dataclass(slots=True)
class _Watched:
    """A log and when to look at it next; times are those of time.monotonic()."""

    log: RotatedLog
    rotate_at: int
    keep: int
    due: float
    looked: float = 0
    size: int = -1  #: of the live file at the last look, with its hole; -1: look thoroughly, whatever it is now
    backlog: int | None = None  #: bytes of data that it held after the last look

    def look(self) -> None:
        """Rotates when it is time to, and says when to look again. Blocks; raises no OSError."""
        now = time.monotonic()
        try:
            delay = self._look(now)
        except FileNotFoundError:
            self.size, self.backlog, delay = -1, 0, QUIET
        except OSError as error:
            _log.warning("log-rotation-failed", file=str(self.log.path), reason=str(error))
            self.size, delay = -1, QUIET
        self.looked = now
        self.due = now + delay if delay < QUIET else (now // QUIET + 1) * QUIET

    def _look(self, now: float) -> float:
        size = os.stat(self.log.path, follow_symlinks=False).st_size
        # A look right after another says nothing of how fast the log grows, nor does the first one at a full log.
        early = now - self.looked < FLOOR / 2
        if size == self.size:
            return FLOOR if early else QUIET
        turn = self.log.rotate(self.rotate_at, self.keep)
        early = early or (self.backlog is None and turn.archived > 0)
        growth = 0 if self.backlog is None else turn.archived + turn.left - self.backlog
        self.size, self.backlog = -1 if turn.archived else size, turn.left
        if turn.archived and turn.left > self.rotate_at:
            return 0  # in the next round, so that the other logs have their turns
        if early:
            return FLOOR
        return pause(turn.left, growth / max(now - self.looked, FLOOR), self.rotate_at)


class FileLogs:
    """LogFiles under a folder: root/<app>/<name>/stdout.log and stderr.log. Close it, or its threads stay."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._watched: dict[Key, tuple[_Watched, ...]] = {}
        self._logs: WeakValueDictionary[tuple[Key, Stream], RotatedLog] = WeakValueDictionary()
        self._rotating = ThreadPoolExecutor(1, thread_name_prefix="log-rotation")
        self._reading = ThreadPoolExecutor(_READERS, thread_name_prefix="log-reading")
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.Future[None] | None = None
        self._closed = False

    @contextmanager
    def open(self, key: Key, joined: bool) -> Iterator[tuple[int, int]]:
        """SpawnFailed also when what stands there is not a regular file with one link."""
        with ExitStack() as stack:
            try:
                with inner_folder(self._root, key.app, key.name, create=True) as folder:
                    stdout = stack.enter_context(_appended(folder, Stream.STDOUT))
                    stderr = stdout if joined else stack.enter_context(_appended(folder, Stream.STDERR))
            except (OSError, ValueError) as error:
                # A link or a pipe in the way was put there by somebody: nothing that trying again mends.
                ours = isinstance(error, OSError) and not isinstance(error, NotPlain) and error.errno != errno.ENOTDIR
                raise SpawnFailed(f"the log files of {key} cannot be opened: {error}", ours=ours) from error
            yield stdout, stderr

    def watch(self, key: Key, rotate_at: int, keep: int) -> None:
        """At least one archive is always kept. What an earlier daemon left half done is set right at once."""
        now = time.monotonic()
        self._watched[key] = tuple(_Watched(self._log(key, stream), rotate_at, keep, now) for stream in Stream)
        self._wake_at(now)

    def forget(self, key: Key) -> None:
        """After a last look: what a program wrote just before it ended is rotated too."""
        for watched in self._watched.pop(key, ()):
            self._rotating.submit(watched.look)
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def remove(self, key: Key) -> None:
        """Unavailable when it cannot be done now."""
        self.forget(key)
        try:
            # In the thread that rotates: never under its hands.
            await asyncio.get_running_loop().run_in_executor(self._rotating, self._delete, key)
        except OSError as error:
            raise Unavailable(f"the log files of {key} cannot be removed: {error}") from error

    async def tail(self, key: Key, stream: Stream, lines: int) -> bytes:
        """At most MOST_LINES and MOST_BYTES of log_reading.py; Unavailable when it cannot be read now."""
        return (await self._read(last_lines, key, self._log(key, stream), lines))[0]

    async def follow(self, key: Key, stream: Stream, lines: int) -> AsyncGenerator[bytes, None]:
        """Ends when the logs are closed; Unavailable when they cannot be read now."""
        followed = self._log(key, stream)
        data, position = await self._read(last_lines, key, followed, lines)
        while True:
            if data:
                yield data
            else:
                await asyncio.sleep(FOLLOW)
            if self._closed:
                return
            data, position = await self._read(read_on, key, followed, position)

    async def close(self) -> None:
        """Stops looking, ends what follows, and waits for a rotation that is under way."""
        self._closed = True
        for key in list(self._watched):
            self.forget(key)
        for threads in (self._rotating, self._reading):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)

    def _log(self, key: Key, stream: Stream) -> RotatedLog:
        """One object for a file as long as anybody uses it: it holds the lock."""
        found = self._logs.get((key, stream))
        if found is None:
            found = self._logs[key, stream] = RotatedLog(self._root, key.app, key.name, f"{stream}.log")
        return found

    async def _read(
        self, read: Callable[[RotatedLog, int], tuple[bytes, int]], key: Key, source: RotatedLog, number: int
    ) -> tuple[bytes, int]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, read, source, number)
        except OSError as error:
            raise Unavailable(f"the log of {key} cannot be read: {error}") from error

    def _delete(self, key: Key) -> None:
        with suppress(FileNotFoundError), inner_folder(self._root, key.app) as folder:
            if stat.S_ISDIR(os.stat(key.name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(key.name, dir_fd=folder)  # follows no links
            else:
                os.unlink(key.name, dir_fd=folder)

    def _wake_at(self, due: float) -> None:
        """One timer for all logs, set to the earliest; none while a round runs, which sets it when it ends."""
        if self._round is not None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(due - time.monotonic(), 0), self._start_round)

    def _start_round(self) -> None:
        self._timer = None
        soon = time.monotonic() + FLOOR
        due = [watched for logs in self._watched.values() for watched in logs if watched.due <= soon]
        self._round = asyncio.get_running_loop().run_in_executor(self._rotating, _look_at, due)
        self._round.add_done_callback(self._end_round)

    def _end_round(self, ended: asyncio.Future[None]) -> None:
        self._round = None
        if self._watched:
            self._wake_at(min(watched.due for logs in self._watched.values() for watched in logs))
        if not ended.cancelled():
            ended.result()  # a bug, and nothing else, is raised here


def _appended(folder: int, stream: Stream) -> AbstractContextManager[int]:
    return opened(folder, f"{stream}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _look_at(due: list[_Watched]) -> None:
    for watched in due:
        watched.look()
