"""The way of requests that other branches carried here: to this daemon's own API, over a connection without a network.

The port Door, put together of the server and the client, which do not know each other.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from socket import socket

from branchd.branch.ports import Served
from branchd.client import Unreachable
from branchd.client.connection import converse, head
from branchd.core.access import Principal
from branchd.core.errors import Fault, Invalid, NoAnswer

#: what the other end is called
_HERE = "branchd"


class Loopback:
    def __init__(self, connect: Callable[[Principal], Awaitable[socket]]) -> None:
        """`connect`: as branchd.api.server.Server has it."""
        self._connect = connect

    @asynccontextmanager
    async def serve(
        self, principal: Principal, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[Served]:
        """NoAnswer, while the body is read too; Invalid for what no HTTP request can say."""
        try:
            request = head(_HERE, method, target, headers, body or None)
        except ValueError as error:
            raise Invalid([Fault("", str(error))]) from None
        connection = await self._connect(principal)
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            async with converse(reader, writer, _HERE, request, body or None, None) as answer:
                yield Served(answer.status, answer.headers, answer.pieces())
        except Unreachable as error:
            raise NoAnswer(f"this branch gave no whole answer: {error.reason}") from None
