"""Where the output of instances goes: files that the programs write to themselves, so that no pipe can break.

Here stands the port that the supervisor sees. How a log is cut is rotation.py's, when log_watching.py's, how it is read
log_reading.py's; what goes elsewhere is log_targets.py's, and what lines get their times log_stamping.py's.
"""

import asyncio
import errno
import os
import shutil
import stat
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog

from branchd.adapters import log_reading, log_targets
from branchd.adapters.log_layout import NotPlain, inner_folder, opened
from branchd.adapters.log_reading import Progress
from branchd.adapters.log_stamping import Stamper
from branchd.adapters.log_watching import LogWatch
from branchd.adapters.rotation import Cut, RotatedLog, cut_in
from branchd.branch.output import taken_away
from branchd.branch.ports import Lines, Piece
from branchd.core.errors import SpawnFailed, Unavailable
from branchd.core.spec import LogFormat, Logs, LogTarget, Stderr, size_in_bytes
from branchd.core.values import Key, Stream

T = TypeVar("T")

_log = structlog.get_logger(__name__)

#: seconds between two looks for new bytes while somebody follows
FOLLOW = 0.2

#: threads that read: one that waits for a slow disk holds up one other reader at most
_READERS = 2


class FileLogs:
    """LogFiles under a folder: root/<app>/<name>/stdout.log and stderr.log. Close it, or its threads stay."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._logs: WeakValueDictionary[tuple[Key, Stream], RotatedLog] = WeakValueDictionary()
        self._watch = LogWatch()
        self._stamper = Stamper(root)
        self._reading = ThreadPoolExecutor(_READERS, thread_name_prefix="log-reading")
        self._known: set[Key] = set()  #: what an earlier daemon left of it was looked for
        self._closed = False

    @contextmanager
    def open(self, key: Key, logs: Logs) -> Iterator[tuple[int, int]]:
        """SpawnFailed also when what stands there is not a regular file with one link, or a pipe of the daemon's."""
        joined = logs.stderr is Stderr.JOIN
        with ExitStack() as stack:
            try:
                self._end_others(key, logs)
                match logs.to:
                    case LogTarget.JOURNAL:
                        target = stack.enter_context(log_targets.journal(str(key), joined))
                    case LogTarget.INHERIT:
                        target = stack.enter_context(log_targets.inherited(joined))
                    case LogTarget.FILES:
                        target = self._open_files(stack, key, logs.format, joined)
            except (OSError, ValueError) as error:
                # A link or a pipe in the way was put there by somebody: nothing that trying again mends.
                ours = isinstance(error, OSError) and not isinstance(error, NotPlain) and error.errno != errno.ENOTDIR
                raise SpawnFailed(f"the log files of {key} cannot be opened: {error}", ours=ours) from error
            yield target

    def watch(self, key: Key, logs: Logs, pid: int, on_lost: Callable[[], None]) -> None:
        if self._closed:
            return
        if key not in self._known:  # it runs since an earlier daemon's time
            self._known.add(key)
            self._watch.submit(partial(self._attach, key))
        writer = pid if logs.to is LogTarget.FILES else 0  # what it inherits may have the name of a log of ours
        rotate_at = size_in_bytes(logs.rotate_at)
        self._watch.watch(key, self._both(key), writer, on_lost, rotate_at, logs.keep, pack=logs.compress)

    def lost(self, key: Key) -> Mapping[Stream, str]:
        return self._watch.lost(key)

    def forget(self, key: Key) -> None:
        self._stamper.leave(key)
        if not self._closed:
            self._watch.submit(partial(self._finish, key))
        self._watch.forget(key)

    async def remove(self, key: Key) -> None:
        """Unavailable when it cannot be done now."""
        self.forget(key)
        self._watch.hold(key)
        try:
            await self._rotating(key, partial(self._delete, key), "removed")
            self._known.discard(key)
        finally:
            self._watch.release(key)

    async def clear(self, key: Key) -> None:
        """Unavailable when it cannot be done now."""
        await self._rotating(key, partial(self._clear, key), "cleared")

    def path(self, key: Key, stream: Stream) -> str:
        return str(self._root / key.app / key.name / f"{stream}.log")

    async def tail(self, key: Key, stream: Stream, lines: int) -> bytes:
        """At most MOST_LINES and MOST_BYTES of log_reading.py; Unavailable when it cannot be read now."""
        async with aclosing(self.select(key, stream, Lines(tail=lines))) as pieces:
            return b"".join([piece.data async for piece in pieces])

    async def read(self, key: Key, stream: Stream, offset: int, length: int) -> tuple[bytes, int, int]:
        """At most MOST_BYTES of log_reading.py; Unavailable when it cannot be read now."""
        self._check(key, stream)
        await self._drain(key)
        return await self._read(key, log_reading.read_range, self._log(key, stream), offset, length)

    async def select(
        self, key: Key, stream: Stream, lines: Lines, *, follow: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """Ends when the logs are closed, or lost; within the bounds of log_reading.py. Unavailable."""
        self._check(key, stream)
        await self._drain(key)
        reading = log_reading.select(self._log(key, stream), lines, follow=follow)
        while not (self._closed or stream in self.lost(key)):
            piece = await self._read(key, next, reading, None)
            if piece is None:
                return
            if isinstance(piece, Piece):
                yield piece
            elif piece is Progress.WAITING:
                await asyncio.sleep(FOLLOW)

    async def cut(self) -> Cut:
        """How logs can be rotated in this folder; OSError."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, cut_in, self._root)

    async def close(self) -> None:
        """Stops looking, ends what follows, and waits for a rotation that is under way. What was written stays."""
        self._closed = True
        await self._watch.close()
        for close in (self._stamper.close, partial(self._reading.shutdown, cancel_futures=True)):
            await asyncio.to_thread(close)

    # Opening

    def _open_files(self, stack: ExitStack, key: Key, format: LogFormat, joined: bool) -> tuple[int, int]:
        folder = stack.enter_context(inner_folder(self._root, key.app, key.name, create=True))

        def target(stream: Stream) -> int:
            if format is LogFormat.PLAIN:
                return stack.enter_context(_appended(folder, stream))
            pipe = self._stamper.open(key, stream, format, self._log(key, stream))
            stack.callback(os.close, pipe)
            return pipe

        stdout = target(Stream.STDOUT)
        return stdout, stdout if joined else target(Stream.STDERR)

    def _end_others(self, key: Key, logs: Logs) -> None:
        """What the last program has left in pipes that the next one does not use goes into the log before it begins."""
        if key not in self._known:
            self._known.add(key)
            self._stamper.attach(key, partial(self._log, key))
        if self._stamper.reads(key):
            streams = [Stream.STDOUT] if logs.stderr is Stderr.JOIN else list(Stream)
            used = streams if logs.to is LogTarget.FILES else []
            with inner_folder(self._root, key.app, key.name, create=True):
                pass  # where it was taken away there is one again, for what is left in the pipes
            self._stamper.keep(key, lambda stream, format: stream in used and format is logs.format)

    # In threads

    def _attach(self, key: Key) -> None:
        try:
            self._stamper.attach(key, partial(self._log, key))
        except OSError as error:
            _log.warning("log-lines-are-not-read", instance=str(key), reason=str(error))

    def _finish(self, key: Key) -> None:
        try:
            self._stamper.attach(key, partial(self._log, key))  # an earlier daemon may have left it so
            self._stamper.finish(key)
        except OSError as error:
            _log.warning("log-lines-are-not-written", instance=str(key), reason=str(error))

    def _clear(self, key: Key) -> None:
        self._stamper.drain(key)
        for log in self._both(key).values():
            with suppress(FileNotFoundError):
                log.clear()

    def _delete(self, key: Key) -> None:
        with ExitStack() as stack:
            for log in self._both(key).values():
                stack.enter_context(log.packing)
            stack.enter_context(suppress(FileNotFoundError))
            folder = stack.enter_context(inner_folder(self._root, key.app))
            if stat.S_ISDIR(os.stat(key.name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(key.name, dir_fd=folder)  # follows no links
            else:
                os.unlink(key.name, dir_fd=folder)

    # Small things

    def _log(self, key: Key, stream: Stream) -> RotatedLog:
        """One object for a file as long as anybody uses it: it holds the lock."""
        found = self._logs.get((key, stream))
        if found is None:
            found = RotatedLog(self._root, key.app, key.name, f"{stream}.log")
            found = self._logs.setdefault((key, stream), found)
        return found

    def _both(self, key: Key) -> dict[Stream, RotatedLog]:
        return {stream: self._log(key, stream) for stream in Stream}

    def _check(self, key: Key, stream: Stream) -> None:
        """Conflict where what its program writes is not in the log any more."""
        if where := self._watch.lost(key).get(stream):
            raise taken_away(key, stream, where)

    async def _drain(self, key: Key) -> None:
        """What a program has written to its pipe by now can be read."""
        if self._stamper.reads(key):
            await self._read(key, self._stamper.drain, key)

    async def _rotating(self, key: Key, work: Callable[[], None], done: str) -> None:
        # In the thread that rotates: never under its hands.
        try:
            await asyncio.wrap_future(self._watch.submit(work))
        except OSError as error:
            raise Unavailable(f"the log files of {key} cannot be {done}: {error}") from error

    async def _read(self, key: Key, read: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, read, *arguments)
        except OSError as error:
            raise Unavailable(f"the log of {key} cannot be read: {error}") from error


def _appended(folder: int, stream: Stream) -> AbstractContextManager[int]:
    return opened(folder, f"{stream}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
