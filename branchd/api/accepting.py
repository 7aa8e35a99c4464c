"""Taking connections from a listening socket: as many as there is room for, and none while descriptors are short.

asyncio's own server takes any number of them, and a traceback tells of each that it cannot take. What a connection does
stands in connection.py.
"""

import asyncio
import resource
import socket
from functools import partial

import structlog
from aiohttp import web

from branchd.api.connection import HEAD_PATIENCE, Connection
from branchd.api.listeners import Opened

log = structlog.get_logger(__name__)

#: of all listeners; each costs a descriptor and some 20 KiB
MOST_CONNECTIONS = 1000

#: of the descriptors that the daemon may have, the part for connections; the rest is for what it runs and writes
DESCRIPTORS_PART = 4

#: connections taken before other work has its turn
AT_ONCE = 100

#: seconds without accepting after the kernel refused
RETRY = 1.0

#: seconds between two log lines of one listener; those who connect decide how much there is to tell
TELL_EVERY = 60.0


def room(listeners: int) -> int:
    """Connections of one listener: shares are equal, so that a crowd on TCP does not lock out the unix socket."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(MOST_CONNECTIONS, soft // DESCRIPTORS_PART) // listeners)


class Acceptor:
    """Of one listener. Where all room is taken, those who connect wait in the kernel's backlog."""

    def __init__(self, opened: Opened, manager: web.Server, room: int) -> None:
        self._opened = opened
        self._manager = manager
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._held: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused = True
        self._stopped = False
        self._released = False
        self._silent_until = 0.0

    def start(self) -> None:
        if self._paused and not self._released:
            self._paused = False
            self._loop.add_reader(self._opened.socket, self._accept)

    @property
    def busy(self) -> bool:
        """Whether a connection is open."""
        return bool(self._held)

    def release(self) -> None:
        """Takes no more, and leaves the socket open: who connects from now on waits in the kernel's backlog."""
        self._released = True
        self._loop.remove_reader(self._opened.socket)

    def stop(self) -> None:
        """Takes no more; those that it took stay."""
        self._stopped = True
        self.release()
        self._opened.socket.close()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if len(self._held) >= self._room:
                self._pause(f"{self._room} connections are open")
                return
            try:
                connection, _ = self._opened.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors, or no memory
                self._pause(str(error.strerror))
                self._loop.call_later(RETRY, self.start)
                return
            connection.setblocking(False)
            self._held.add(connection)
            task = self._loop.create_task(self._begin(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _pause(self, reason: str) -> None:
        """Until start(): a level-triggered socket would call again at once."""
        self._paused = True
        self._loop.remove_reader(self._opened.socket)
        if self._loop.time() >= self._silent_until:
            self._silent_until = self._loop.time() + TELL_EVERY
            log.warning("not-accepting", listener=self._opened.address, reason=reason)

    async def _begin(self, accepted: socket.socket) -> None:
        ended = partial(self._ended, accepted)
        tls = self._opened.tls
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: Connection(self._manager, self._loop, ended),
                accepted,
                ssl=tls,
                ssl_handshake_timeout=HEAD_PATIENCE if tls else None,
            )
        except OSError:  # gone, or no TLS, or too slow with it
            ended()
            return
        if self._stopped:
            transport.abort()

    def _ended(self, accepted: socket.socket) -> None:
        self._held.discard(accepted)
        self.start()
