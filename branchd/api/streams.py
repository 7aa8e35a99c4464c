"""Answers that take long: bounded in number, ended when the client goes or the server stops, dropped when not read."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from branchd.api.auth import peer
from branchd.api.connection import Connection
from branchd.api.problems import TooMany, internal
from branchd.core.access import Principal, Scope
from branchd.core.errors import BranchdError

T = TypeVar("T")

#: whose streams: the name of a principal, and the branch that it asked
Owner = tuple[str, str | None]

#: followers of logs and subscribers of events together
MOST_STREAMS = 256

#: of those, the ones that are left to admins on the unix socket, so that nobody else can lock the operator out
RESERVED = 64

#: of one principal, that is of one token; an admin on the unix socket may have more
MOST_OF_ONE = 64

#: seconds that a client may leave a full buffer unread
PATIENCE = 30.0

#: seconds between two comments on a stream of server-sent events; proxies close what is silent for a minute
PING = 15.0


class Streams:
    def __init__(self) -> None:
        self._open: Counter[Owner] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closing = False

    def close(self) -> None:
        """Ends them all, and those to come."""
        self.closing = True
        for task in self._tasks:
            task.cancel()

    async def run(
        self, request: web.Request, principal: Principal, response: web.StreamResponse, pump: Coroutine[Any, Any, None]
    ) -> None:
        """Runs what writes a stream, to its end or the client's or the server's. TooMany.

        What is raised before the response has begun is raised here too: it can be told as any other.
        """
        owner = principal.name, principal.via
        try:
            self._check_room(owner, peer(request) is not None and principal.scope is Scope.ADMIN)
        except BranchdError:
            pump.close()
            raise
        self._open[owner] += 1
        try:
            await self.during(request, pump)
        except (ConnectionError, TimeoutError):  # gone, or reads too slowly
            _abort(request)
        except Exception as error:
            if not response.prepared:
                raise
            # The answer has begun: all that can be told is that it is not whole.
            internal(error, f"{request.method} {request.raw_path!r}")
            _abort(request)
        finally:
            self._open[owner] -= 1
            self._open += Counter()  # forgets who has none

    def _check_room(self, owner: Owner, operator: bool) -> None:
        most = MOST_STREAMS if operator else MOST_STREAMS - RESERVED
        if self._open.total() >= most:
            raise TooMany(f"{most} streams are open", "close some, and try again")
        if not operator and self._open[owner] >= MOST_OF_ONE:
            raise TooMany(f"{MOST_OF_ONE} streams of {owner[0]} are open", "close some, and try again")

    async def during(self, request: web.Request, work: Coroutine[Any, Any, T]) -> T | None:
        """What it returns, or None when the client went or the server stopped before."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        connection.when_lost(task.cancel)
        if self.closing or request.transport is None:
            task.cancel()
        try:
            await asyncio.wait({task})
        finally:
            self._tasks.discard(task)
            connection.forget(task.cancel)
            task.cancel()
        return None if task.cancelled() else task.result()


def event_source() -> EventSourceResponse:
    return EventSourceResponse(send_timeout=PATIENCE, ping_interval=PING)


async def write(response: web.StreamResponse, data: bytes) -> None:
    """TimeoutError when the client does not read."""
    async with asyncio.timeout(PATIENCE):
        await response.write(data)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
