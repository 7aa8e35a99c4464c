"""The daemon's side of the process that forks for it: orders, answers, and what is done when that process is lost.

What is done in there, and what goes over the line, stands in spawner.py. What to start stands in process.py.
"""

import asyncio
import contextlib
import errno
import marshal
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path

import structlog

from branchd.adapters import proc, spawner
from branchd.adapters.spawner import ANSWER, LENGTH, PASS, PATIENCE, STEPS, Order
from branchd.core.value import Value

log = structlog.get_logger()

PROGRAM = str(Path(spawner.__file__))


def program() -> str:
    """What the interpreter is to run: as it was compiled when it was imported here, else it would keep, for as long as
    it runs, a fifth more memory that only its compiling took."""
    compiled = cache_from_source(PROGRAM)
    try:
        source = os.stat(PROGRAM)
        with open(compiled, "rb") as file:
            head = file.read(16)
    except OSError:
        return PROGRAM
    # What was compiled from another source stays where it may not be written anew.
    now = MAGIC_NUMBER + struct.pack("<III", 0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF)
    return compiled if head == now else PROGRAM


class SpawnerLost(Exception):
    """The process that forks ended before it answered: what it was asked for may run or not."""


class Begun(Value):
    """A program that has been executed, and that nobody has waited for yet."""

    pid: int
    pidfd: int  #: the caller's to close
    joined: bool  #: it is in the cgroup that it was to begin in, if any, for sure


class Spawning:
    """Made and used in the running loop. Starts the helper at once, and again at the next use after it was lost."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._helper: subprocess.Popen[bytes] | None = None
        self._asked = 0  #: requests to this helper
        self._answers: dict[int, asyncio.Future[Begun]] = {}
        self._sending = asyncio.Lock()
        self._room = asyncio.Event()  #: whoever sends looks again whether there is some, or no line any more
        self._start()

    @property
    def pid(self) -> int | None:
        """Of the helper, while there is one."""
        return self._helper.pid if self._helper is not None else None

    @property
    def busy(self) -> bool:
        """Some of our children may be nobody's yet."""
        return bool(self._answers)

    def close(self) -> None:
        """What is under way does not begin, or has begun and can be found by its mark; nobody is told of it."""
        if self._helper is not None:
            self._end(self._helper)

    async def spawn(self, order: Order, descriptors: Sequence[int], sure: asyncio.Future[None] | None = None) -> Begun:
        """Descriptors: stdout, stderr, and the folder of a cgroup where there is one. They stay the caller's.

        Nothing is executed before `sure` is done. What that raises is raised, and then nothing is executed at all.

        OSError with its number, and which of STEPS it was as its filename; SpawnerLost. Not when it is cancelled: then
        the program may begin all the same.
        """
        if sure is not None and not sure.done():
            try:
                begun = await self._gated(order, descriptors, sure)
            except (OSError, SpawnerLost):
                if sure.done():
                    sure.result()  # whose failure is the cause of this one
                raise
            if begun is not None:
                return begun
            await asyncio.wait([sure])
        if sure is not None:
            sure.result()
        return await self._answered(*await self._order(order, descriptors))

    async def _gated(self, order: Order, descriptors: Sequence[int], sure: asyncio.Future[None]) -> Begun | None:
        """The clone waits before its exec until it is sure. None: that took too long, and it was sent away."""
        gate, way = os.pipe()
        try:
            try:
                line, answer = await self._order((*order[:-1], True), (*descriptors, gate))
            finally:
                os.close(gate)
            try:
                await asyncio.wait([sure], timeout=PATIENCE / 2)
            except asyncio.CancelledError:
                answer.cancel()
                raise
            decided = sure.done()
            if decided and sure.exception() is None:
                with contextlib.suppress(BrokenPipeError):  # it failed on the way to the gate: its answer says why
                    os.write(way, PASS)
        finally:
            os.close(way)
        if decided:
            return await self._answered(line, answer)
        with contextlib.suppress(OSError, SpawnerLost):
            await self._answered(line, answer)
        return None

    async def _order(self, order: Order, descriptors: Sequence[int]) -> tuple[socket.socket, asyncio.Future[Begun]]:
        """The line that it went over, and what is to come back."""
        answer: asyncio.Future[Begun] = self._loop.create_future()
        async with self._sending:
            if self._helper is None:
                self._start()
            line = self._line
            self._answers[self._asked] = answer
            self._asked += 1
            try:
                await self._send(line, marshal.dumps(order), struct.pack(f"={len(descriptors)}i", *descriptors))
            except OSError as error:
                self._lost(line, str(error))
        return line, answer

    async def _answered(self, line: socket.socket, answer: asyncio.Future[Begun]) -> Begun:
        over = self._loop.call_later(2 * PATIENCE, self._lost, line, "does not answer")
        try:
            return await answer
        finally:
            over.cancel()

    async def _send(self, line: socket.socket, order: bytes, rights: bytes) -> None:
        """OSError, also where the line is lost meanwhile."""
        message = memoryview(LENGTH.pack(len(order)) + order)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]  # with the first byte
        while message:
            try:
                message = message[line.sendmsg([message], ancillary) :]
                ancillary = []
            except BlockingIOError:
                self._room.clear()
                self._loop.add_writer(line, self._room.set)
                try:
                    await self._room.wait()
                finally:
                    if line.fileno() >= 0:
                        self._loop.remove_writer(line)

    def _start(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._asked = 0
        with theirs:
            self._command = [sys.executable, "-I", "-S", "-B", program(), str(theirs.fileno()), str(os.getpid())]
            try:
                with open(os.devnull, "rb") as nothing:  # programs read from it, and are not to write to it
                    self._helper = subprocess.Popen(
                        self._command,
                        stdin=nothing,
                        stdout=subprocess.DEVNULL,
                        cwd="/",
                        pass_fds=(theirs.fileno(),),
                        start_new_session=True,  # a terminal's INT is not for it
                    )
            except BaseException:
                self._line.close()
                raise
        self._line.setblocking(False)
        self._loop.add_reader(self._line, self._readable)

    def _readable(self) -> None:
        line = self._line
        try:
            said, ancillary, _, _ = line.recvmsg(ANSWER.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(line, str(error))
            return
        if len(said) < ANSWER.size:
            self._lost(line, "hung up")
            return
        number, pid, failure, step, joined = ANSWER.unpack(said)
        [pidfd] = struct.unpack("=i", ancillary[0][2][:4]) if ancillary else (-1,)
        if pid and not failure and pidfd < 0:  # our table is full, and nothing may run that cannot be watched
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            failure = errno.EMFILE
        if pid and failure:
            # One that hangs in the kernel outlives its KILL, and nobody is to wait for it: it is reaped as an orphan.
            os.waitpid(pid, os.WNOHANG if failure == errno.ETIMEDOUT else 0)
        answer = self._answers.pop(number)
        if answer.done():
            if pidfd >= 0:
                os.close(pidfd)
        elif failure:
            answer.set_exception(OSError(failure, os.strerror(failure), STEPS[step]))
        else:
            answer.set_result(Begun(pid, pidfd, bool(joined)))

    def _lost(self, line: socket.socket, how: str) -> None:
        if line is not self._line or self._helper is None:
            return
        log.warning("spawner_lost", pid=self._helper.pid, how=how, under_way=len(self._answers))
        self._end(self._helper)
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(SpawnerLost())

    def _end(self, helper: "subprocess.Popen[bytes]") -> None:
        """And what it had cloned and not executed yet. What it has executed can be found by its mark."""
        self._loop.remove_reader(self._line)
        self._loop.remove_writer(self._line)
        self._line.close()
        self._room.set()
        helper.kill()
        helper.wait()
        self._helper = None
        command = b"".join(os.fsencode(word) + b"\0" for word in self._command)
        for pid in proc.children(os.getpid()):
            if proc.command_line(pid) == command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
