"""What a request that was carried here comes to where this daemon's own API breaks off."""

import asyncio
from socket import socket, socketpair

import pytest

from branchd.cli.loopback import Loopback
from branchd.core.access import Principal, Scope
from branchd.core.errors import Invalid, NoAnswer, Unavailable

SOMEBODY = Principal("token:ci", Scope.ADMIN)


def answering(with_: bytes) -> Loopback:
    """Of an API that reads the request and answers with these bytes, then hangs up."""

    async def connect(_: Principal) -> socket:
        ours, theirs = socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)

        async def serve() -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(with_)
            await writer.drain()
            writer.close()

        served.append(asyncio.create_task(serve()))
        return theirs

    served: list[asyncio.Task[None]] = []
    return Loopback(connect)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal"])
async def test_what_breaks_off_may_have_been_done(answer: bytes) -> None:
    with pytest.raises(NoAnswer, match="no whole answer"):
        async with answering(answer).serve(SOMEBODY, "DELETE", "/v1/apps/web", {}, b"") as served:
            assert [piece async for piece in served.body] == [b"never"]


async def test_what_comes_whole_is_the_answer() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"
    async with answering(whole).serve(SOMEBODY, "GET", "/v1/apps/web", {}, b"") as served:
        assert b"".join([piece async for piece in served.body]) == b"whole"


async def test_what_was_not_begun_is_told_apart() -> None:
    async def closed(_: Principal) -> socket:
        raise Unavailable("this branch's API is not open")

    with pytest.raises(Unavailable) as told:
        async with Loopback(closed).serve(SOMEBODY, "GET", "/", {}, b""):
            pass
    assert not isinstance(told.value, NoAnswer)
    with pytest.raises(Invalid):
        async with Loopback(closed).serve(SOMEBODY, "GET", "/\r\n", {}, b""):
            pass
