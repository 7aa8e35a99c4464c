"""The local line to the agents inside Celery workers: a unix SEQPACKET socket on the daemon's loop.

Who may speak, how much and how often is decided here; what is said is the matter of branchd/wire/agent.py. asyncio's
streams refuse SEQPACKET, hence the readers of our own. Worker code can do to its socket whatever it likes: it loses its
line, no more.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from msgspec import Struct, field

from branchd.core.errors import Fatal, NoChannel, Refused
from branchd.wire import json
from branchd.wire.agent import MESSAGE_LIMIT, Heartbeat, Reply, parse

log = structlog.get_logger(__name__)

#: messages and connections a second that a worker may send: an agent needs one or two, and a burst of answers
RATE_LIMIT = 50
#: connections that wait to be accepted: every worker of a branch may reconnect at once after the daemon's restart
BACKLOG = 1024
#: seconds for another daemon to take the connection that shows that it is there
PROBE_TIMEOUT = 1.0
#: seconds without accepting when the daemon is out of descriptors
ACCEPT_PAUSE = 1.0
#: struct ucred of SO_PEERCRED: pid, uid, gid
CREDENTIALS = struct.Struct("3i")


class BrokeRules(Exception):
    """What a worker sent is not what an agent sends."""


class Connection(Struct, eq=False):
    socket: socket.socket
    waiting: dict[int, asyncio.Future[Reply]] = field(default_factory=dict)


class Worker(Struct):
    """A main process that may speak."""

    connection: Connection | None = None
    second: int = 0  #: which second of the loop's clock `messages` counts
    messages: int = 0
    complained: bool = False  #: said once in the log, not for everything that it sends

    def count(self, now: float) -> None:
        if int(now) != self.second:
            self.second, self.messages = int(now), 0
        self.messages += 1
        if self.messages > RATE_LIMIT:
            raise BrokeRules(f"more than {RATE_LIMIT} messages a second")


class AgentChannel:
    """Implements branchd.branch.ports.Channel. The socket's folder decides which users reach it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._workers: dict[int, Worker] = {}
        self._listener: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._made = 0  #: inode of our socket

    def listen(self, on_message: Callable[[int, Heartbeat], None], on_close: Callable[[int], None]) -> None:
        """Fatal where another daemon answers on the socket, or it cannot be made."""
        self._on_message = on_message
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._remove_stale()
            listener.setblocking(False)
            listener.bind(str(self._path))
            self._path.chmod(0o666)  # SO_PEERCRED says who may speak
            listener.listen(BACKLOG)
            self._made = self._path.lstat().st_ino
        except OSError as error:
            listener.close()
            raise Fatal(
                f"cannot listen on {self._path}: {error.strerror or error}", "choose another run folder"
            ) from error
        self._listener = listener
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Ends every line and removes the socket; the workers go on and look for the next daemon."""
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        with contextlib.suppress(OSError):
            if self._path.lstat().st_ino == self._made:  # somebody may have put another in its place
                self._path.unlink()
        for pid in list(self._workers):
            self.dismiss(pid)

    def admit(self, pid: int) -> None:
        self._workers.setdefault(pid, Worker())

    def dismiss(self, pid: int) -> None:
        worker = self._workers.pop(pid, None)
        if worker is not None:
            self._disconnect(worker)

    def connected(self, pid: int) -> bool:
        worker = self._workers.get(pid)
        return worker is not None and worker.connection is not None

    async def ask(self, pid: int, message: Mapping[str, Any], timeout: float) -> Any:
        worker = self._workers.get(pid)
        connection = worker.connection if worker else None
        if connection is None:
            raise NoChannel("the worker's agent is not connected")
        number = next(self._numbers)
        raw = json.dumps({**message, "id": number})
        if len(raw) > MESSAGE_LIMIT:
            raise Refused(f"a command is at most {MESSAGE_LIMIT} bytes long")
        reply = connection.waiting[number] = self._loop.create_future()
        try:
            connection.socket.send(raw)
            async with asyncio.timeout(timeout):
                answer = await reply
        except TimeoutError:
            raise NoChannel(f"the worker's agent did not answer within {timeout:g} s") from None
        except OSError as error:  # its socket is full: it does not read, or it is just going away
            raise NoChannel(f"the worker's agent takes no commands: {error.strerror}") from None
        finally:
            connection.waiting.pop(number, None)
        if answer.error is not None:
            raise Refused(answer.error)
        return answer.ok

    def _remove_stale(self) -> None:
        try:
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise FileExistsError(f"{self._path} exists and is not a socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                probe.settimeout(PROBE_TIMEOUT)
                try:
                    probe.connect(str(self._path))
                except ConnectionRefusedError:
                    self._path.unlink()  # whoever made it is gone
                else:
                    raise FileExistsError("another daemon listens there")
        except FileNotFoundError:
            pass

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors left: it would be tried again at once, for ever
            log.error("agent-not-accepted", reason=os.strerror(error.errno or 0))
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_PAUSE, self._accept_again)
            return
        pid, _, _ = CREDENTIALS.unpack(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        worker = self._workers.get(pid)
        if worker is None:
            accepted.close()
            return
        try:
            worker.count(self._loop.time())
        except BrokeRules as error:
            accepted.close()
            self._complain(pid, worker, error)
            return
        self._disconnect(worker)
        accepted.setblocking(False)
        worker.connection = connection = Connection(accepted)
        self._loop.add_reader(accepted, self._receive, pid, worker, connection)

    def _accept_again(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept)

    def _receive(self, pid: int, worker: Worker, connection: Connection) -> None:
        try:
            raw, _, flags, _ = connection.socket.recvmsg(MESSAGE_LIMIT)
            if raw:
                worker.count(self._loop.time())
                self._dispatch(pid, connection, raw, bool(flags & socket.MSG_TRUNC))
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        except BrokeRules as error:
            self._complain(pid, worker, error)
        self._disconnect(worker)
        self._on_close(pid)

    def _dispatch(self, pid: int, connection: Connection, raw: bytes, truncated: bool) -> None:
        if truncated:
            raise BrokeRules(f"a message of more than {MESSAGE_LIMIT} bytes")
        try:
            message = parse(raw)
        except ValueError as error:
            raise BrokeRules(f"no message of an agent: {error}") from None
        if isinstance(message, Heartbeat):
            self._on_message(pid, message)
        else:
            waiting = connection.waiting.get(message.id)  # None: it came too late
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    def _complain(self, pid: int, worker: Worker, error: BrokeRules) -> None:
        if not worker.complained:
            worker.complained = True
            log.warning("agent-disconnected", pid=pid, reason=str(error)[:200])

    def _disconnect(self, worker: Worker) -> None:
        connection, worker.connection = worker.connection, None
        if connection is None:
            return
        self._loop.remove_reader(connection.socket)
        connection.socket.close()
        for waiting in connection.waiting.values():
            if not waiting.done():
                waiting.set_exception(NoChannel("the worker's agent went away"))
