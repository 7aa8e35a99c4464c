"""Answers that take long: bounded in number, ended when the client goes or the server stops, dropped when not read."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from branchd.api.connection import Connection
from branchd.api.problems import TooMany, internal

T = TypeVar("T")

#: followers of logs and subscribers of events together
MOST_STREAMS = 256

#: seconds that a client may leave a full buffer unread
PATIENCE = 30.0

#: seconds between two comments on a stream of server-sent events; proxies close what is silent for a minute
PING = 15.0


class Streams:
    def __init__(self) -> None:
        self._open = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def close(self) -> None:
        """Ends them all, and those to come."""
        self._closing = True
        for task in self._tasks:
            task.cancel()

    async def run(self, request: web.Request, pump: Coroutine[Any, Any, None]) -> None:
        """Runs what writes a stream, to its end or the client's or the server's. TooMany."""
        if self._open >= MOST_STREAMS:
            pump.close()
            raise TooMany(f"{MOST_STREAMS} streams are open", "close some, and try again")
        self._open += 1
        try:
            await self.during(request, pump)
        except (ConnectionError, TimeoutError):  # gone, or reads too slowly
            _abort(request)
        except Exception as error:  # noqa: BLE001  # the answer has begun: all that can be told is that it is not whole
            internal(error, f"{request.method} {request.raw_path!r}")
            _abort(request)
        finally:
            self._open -= 1

    async def during(self, request: web.Request, work: Coroutine[Any, Any, T]) -> T | None:
        """What it returns, or None when the client went or the server stopped before."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        connection.when_lost(task.cancel)
        if self._closing or request.transport is None:
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
