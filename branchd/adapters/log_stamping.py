"""Lines that get their times on the way: a named pipe that the program writes to, and the thread that reads it.

The program has the pipe open for reading too, so that it outlives the daemon: then it waits when 64 KiB are full, and
the next daemon goes on. Between pipe and log lies a spool file, because what is read from a pipe is gone from it: the
kernel moves the bytes from one into the other (splice), so that a killed daemon loses none of them. The spool's head
says how much of it is in the log, and where the log ended then; what the log has beyond that is a write of which the
head was not told any more, and is made again. So each line is there once, with one time, whoever dies when.

    <stream>.<format>    the pipe, mode 0600; its name says what the running program was started with
    <stream>.spool       head: boot id (16 bytes), bytes done with, end of the log (8 each); then the bytes

An unfinished line waits in the spool for its end, or for that of its program. A line's time is that of its last byte's
reading here.
"""

import errno
import os
import select
import stat
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog

from branchd.adapters import log_times, proc
from branchd.adapters.log_layout import NotPlain, inner_folder, open_plain
from branchd.adapters.rotation import RotatedLog
from branchd.core.spec import LogFormat
from branchd.core.values import Key, Stream

_log = structlog.get_logger(__name__)

#: bytes of a line; a longer one is cut, and says so. As docker's, and so that a time can be found (log_times.WINDOW)
LONGEST_LINE = 16 << 10

#: bytes moved from a pipe at a time; then the next pipe has its turn
TURN = 64 << 10

#: bytes of a spool that is begun anew
SPOOL = 1 << 20

#: seconds of rest after a turn that moved little: a program that writes line by line costs a hundred turns a second
REST = 0.01

#: seconds until the next try, when the disk takes nothing
PATIENCE = 1.0

#: behind what is kept of a line that is cut, where the format has no better place to say so
GOES_ON = b" [branchd: the line goes on]"

FORMATS = (LogFormat.TIMESTAMPED, LogFormat.JSON)

_HEAD = struct.Struct("<16sQQ")


def pipe_name(stream: Stream, format: LogFormat) -> str:
    return f"{stream}.{format}"


def spool_name(stream: Stream) -> str:
    return f"{stream}.spool"


def open_pipe(folder: int, name: str, flags: int = 0) -> int:
    """Opens a named pipe of ours for reading and writing; NotPlain when something else stands there, OSError."""
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise NotPlain(error.errno, "not a named pipe", name) from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISFIFO(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise NotPlain(errno.EMLINK, "not a named pipe of the daemon's own", name)
    return descriptor


class _Pipe:
    """One of them, being read; begin() it first. Any thread may."""

    def __init__(self, log: RotatedLog, folder: tuple[Path, str, str], stream: Stream, format: LogFormat) -> None:
        self.log = log
        self.format = format
        self._folder = folder
        self._stream = stream
        self._spool_name = spool_name(stream)
        self._boot = uuid.UUID(proc.boot_id()).bytes
        self._lock = threading.Lock()
        self.pipe = self._spool = -1
        self._done = self._size = _HEAD.size  #: of the spool: bytes that are in the log, bytes
        self._end = 0  #: of the log, with what is done

    def begin(self) -> None:
        """Goes on where the last daemon was, or begins; OSError."""
        with inner_folder(*self._folder) as folder:
            self.pipe = open_pipe(folder, pipe_name(self._stream, self.format), os.O_NONBLOCK)
            try:
                self._spool = open_plain(folder, self._spool_name, os.O_RDWR | os.O_CREAT)
                self._go_on()
            except BaseException:
                self.close(remove=False)
                raise

    def turn(self, final: bool = False) -> int:
        """Moves and writes some; how many bytes. `final`: an unfinished line is one. OSError; call it again."""
        with self._lock:
            if self.pipe < 0:
                return 0
            moved = 0
            if self._size - self._done < 2 * TURN:  # else its log takes nothing: the program has to wait
                with suppress(BlockingIOError):
                    moved = os.splice(self.pipe, self._spool, TURN, offset_dst=self._size)
            self._size += moved
            self._write(final and moved == 0)
            return moved

    def drain(self, turns: int = 4, *, final: bool = False) -> None:
        """What was written so far; no more than so many turns, or a fast writer would hold us up. OSError."""
        for _ in range(turns):
            if not self.turn(final):
                return

    def close(self, *, remove: bool) -> None:
        with self._lock:
            for descriptor in (self.pipe, self._spool):
                if descriptor >= 0:
                    os.close(descriptor)
            self.pipe = self._spool = -1
            if remove:
                with suppress(OSError), inner_folder(*self._folder) as folder:
                    # The spool first: one that is left alone would be taken for that of a later program.
                    os.unlink(self._spool_name, dir_fd=folder)
                    os.unlink(pipe_name(self._stream, self.format), dir_fd=folder)

    def _go_on(self) -> None:
        head = os.pread(self._spool, _HEAD.size, 0)
        if len(head) == _HEAD.size and head.startswith(self._boot):
            _, done, end = _HEAD.unpack(head)
            self._size = os.fstat(self._spool).st_size
            self._settle(done, self.log.undo(end))
        else:  # of another boot: nobody knows what of it came to the disk
            os.ftruncate(self._spool, 0)
            self._settle(_HEAD.size, self.log.end())

    def _write(self, final: bool) -> None:
        waiting = os.pread(self._spool, self._size - self._done, self._done)
        whole = waiting.rfind(b"\n") + 1
        if final:
            whole = len(waiting)
        elif len(waiting) - whole >= LONGEST_LINE:
            whole += (len(waiting) - whole) // LONGEST_LINE * LONGEST_LINE
        if whole == 0:
            return
        text = b"".join(self._lines(waiting[:whole], log_times.stamp(_now()), final))
        done = self._done + whole
        self.log.append(text, lambda end: self._settle(done, end))
        if self._done > SPOOL:
            self._begin_anew()

    def _lines(self, data: bytes, at: bytes, final: bool) -> Iterator[bytes]:
        *whole, rest = data.split(b"\n")
        for line in whole:
            yield from self._pieces(line, at, goes_on=False)
        if rest:
            yield from self._pieces(rest, at, goes_on=not final)

    def _pieces(self, line: bytes, at: bytes, *, goes_on: bool) -> Iterator[bytes]:
        for start in range(0, len(line) or 1, LONGEST_LINE):
            piece = line[start : start + LONGEST_LINE]
            partial = goes_on or start + LONGEST_LINE < len(line)
            if self.format is LogFormat.JSON:
                yield log_times.as_json(piece, at, self._stream, partial)
            else:
                yield log_times.stamped(piece + GOES_ON if partial else piece, at)

    def _settle(self, done: int, end: int) -> None:
        """What is done is in the log, which ends there: told in one write within a page, which no kill parts."""
        os.pwrite(self._spool, _HEAD.pack(self._boot, done, end), 0)
        self._done, self._end = done, end
        self._size = max(self._size, _HEAD.size)

    def _begin_anew(self) -> None:
        """With a spool that has only what is not done yet."""
        rest = os.pread(self._spool, self._size - self._done, self._done)
        name = f"{self._spool_name}.new"
        with inner_folder(*self._folder) as folder:
            spool = open_plain(folder, name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                new = _HEAD.pack(self._boot, _HEAD.size, self._end) + rest
                if os.write(spool, new) < len(new):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.rename(name, self._spool_name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                os.close(spool)
                raise
        os.close(self._spool)
        self._spool, self._done, self._size = spool, _HEAD.size, _HEAD.size + len(rest)


class Stamper:
    """The thread, which begins with the first pipe, and what it reads. Close it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pipes: dict[tuple[Key, Stream], _Pipe] = {}
        self._left: set[Key] = set()  #: whose program has ended, and no other one has begun
        self._lock = threading.Lock()
        self._read: dict[int, _Pipe] = {}  #: by descriptor
        self._thread: threading.Thread | None = None
        self._epoll: select.epoll  # this and the next from the first pipe on: most branches need none
        self._wake: int

    def open(self, key: Key, stream: Stream, format: LogFormat, log: RotatedLog) -> int:
        """A descriptor of its pipe, made if need be, for a program; from now on it is read. OSError."""
        with self._lock, inner_folder(self._root, key.app, key.name) as folder:
            name = pipe_name(stream, format)
            if name not in os.listdir(folder):
                if (key, stream) in self._pipes:  # its folder was taken away
                    self._drop(key, stream, remove=True)
                with suppress(FileNotFoundError):  # left by somebody who took its pipe away: it tells of another log
                    os.unlink(spool_name(stream), dir_fd=folder)
                os.mkfifo(name, 0o600, dir_fd=folder)
            self._attach(key, stream, format, log)
            self._left.discard(key)
            return open_pipe(folder, name)

    def attach(self, key: Key, log_of: Callable[[Stream], RotatedLog]) -> None:
        """Reads the pipes of an instance that are there. OSError."""
        with self._lock, suppress(FileNotFoundError), inner_folder(self._root, key.app, key.name) as folder:
            names = set(os.listdir(folder))
            for stream in Stream:
                for format in FORMATS:
                    if pipe_name(stream, format) in names:
                        self._attach(key, stream, format, log_of(stream))

    def reads(self, key: Key) -> bool:
        return any((key, stream) in self._pipes for stream in Stream)

    def drain(self, key: Key) -> None:
        """What its program has written by now is in the log then. OSError."""
        for pipe in self._of(key):
            pipe.drain()

    def leave(self, key: Key) -> None:
        """Its program has ended: what is there, or is found by a later attach(), is for finish()."""
        self._left.add(key)

    def finish(self, key: Key) -> None:
        """Writes what is left in the pipes of a program that has ended, and removes them. OSError."""
        for pipe in self._of(key):
            pipe.drain(64)
        with self._lock:
            if key in self._left:
                self._end(key, lambda stream, format: False)
                self._left.discard(key)

    def keep(self, key: Key, stays: Callable[[Stream, LogFormat], bool]) -> None:
        """Does so with all pipes but those that stay, before its next program begins. OSError."""
        for pipe in self._of(key):
            pipe.drain(64)
        with self._lock:
            self._end(key, stays)

    def close(self) -> None:
        """The pipes stay, and what is in them."""
        if self._thread is None:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for (key, stream), pipe in list(self._pipes.items()):
            ended = key in self._left  # then nobody will have it open any more
            if ended:
                with suppress(OSError):
                    pipe.drain(64, final=True)
            self._drop(key, stream, remove=ended)
        self._epoll.close()
        os.close(self._wake)

    def _of(self, key: Key) -> list[_Pipe]:
        return [pipe for stream in Stream if (pipe := self._pipes.get((key, stream))) is not None]

    def _attach(self, key: Key, stream: Stream, format: LogFormat, log: RotatedLog) -> None:
        if (key, stream) in self._pipes:
            return
        pipe = _Pipe(log, (self._root, key.app, key.name), stream, format)
        pipe.begin()
        self._pipes[key, stream] = pipe
        self._read[pipe.pipe] = pipe
        if self._thread is None:
            self._epoll = select.epoll()
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._wake, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="log-stamping", daemon=True)
            self._thread.start()
        self._epoll.register(pipe.pipe, select.EPOLLIN)

    def _end(self, key: Key, stays: Callable[[Stream, LogFormat], bool]) -> None:
        for stream in Stream:
            if (pipe := self._pipes.get((key, stream))) is not None and not stays(stream, pipe.format):
                pipe.drain(64, final=True)
                self._drop(key, stream, remove=True)

    def _drop(self, key: Key, stream: Stream, *, remove: bool) -> None:
        pipe = self._pipes.pop((key, stream))
        self._read.pop(pipe.pipe, None)
        self._epoll.unregister(pipe.pipe)
        pipe.close(remove=remove)

    def _run(self) -> None:
        late: dict[_Pipe, float] = {}  #: whose log took nothing, and when to try again
        while True:
            ready = [descriptor for descriptor, _ in self._epoll.poll(PATIENCE if late else None)]
            if self._wake in ready:
                return
            again = [pipe for pipe, due in late.items() if due <= time.monotonic()]
            moved = 0
            for pipe in [*filter(None, map(self._read.get, ready)), *again]:
                try:
                    moved = max(moved, pipe.turn())
                except OSError as error:
                    if pipe not in late:
                        _log.warning("log-lines-wait", file=str(pipe.log.path), reason=str(error))
                    self._listen(pipe, False)
                    late[pipe] = time.monotonic() + PATIENCE
                else:
                    if late.pop(pipe, None) is not None:
                        self._listen(pipe, True)
            if ready and moved < TURN // 4:
                time.sleep(REST)

    def _listen(self, pipe: _Pipe, on: bool) -> None:
        with self._lock:
            if pipe in self._pipes.values():
                self._epoll.modify(pipe.pipe, select.EPOLLIN if on else 0)


def _now() -> float:
    """Seconds since 1970."""
    return time.time()
