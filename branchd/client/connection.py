"""One request over one connection: h11 speaks HTTP/1.1, asyncio's streams carry it.

Why not an HTTP client that does both: docs/decisions/0006-the-client-speaks-h11.md. A connection carries one request:
that costs next to nothing on a unix socket or on loopback, and there is no idle connection that a restart of the daemon
breaks. What the API means stands in asking.py.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import h11

from branchd.client.errors import Unreachable
from branchd.core.value import Value

#: seconds for the connection to be made
CONNECT_TIMEOUT = 5.0

#: lines of the answer's head; how many bytes it may have is h11's to say
HEADER_LIMIT = 100

#: bytes that are read at once
PIECE = 64 << 10

_CUT = "the connection was closed before the answer was complete"


class Endpoint(Value):
    """Where an API is; exactly one of `host` and `path` is set."""

    url: str
    host: str = ""
    port: int = 0
    tls: bool = False
    path: str = ""  #: of a unix socket

    @property
    def authority(self) -> str:
        """For the Host header: as in the URL, because the API answers only to names that it knows."""
        return urlsplit(self.url).netloc.rpartition("@")[2] if self.host else "branchd"


def endpoint(url: str) -> Endpoint:
    """http://HOST:PORT, https://HOST:PORT or unix:PATH; ValueError."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"{url!r} has no absolute path")
        return Endpoint(url, path=path)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} is neither http://HOST:PORT, https://HOST:PORT nor unix:PATH")
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"{url!r} has more than a host and a port")
    tls = parts.scheme == "https"
    return Endpoint(url, host=parts.hostname, port=parts.port or (443 if tls else 80), tls=tls)


class _Stream:
    """The connection as h11's events."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.protocol = h11.Connection(h11.CLIENT)
        self._reader = reader

    async def event(self) -> object:
        """The next one, as h11 gives it."""
        while (event := self.protocol.next_event()) is h11.NEED_DATA:
            self.protocol.receive_data(await self._reader.read(PIECE))
        return event

    @property
    def was_cut(self) -> bool:
        """After an error: whether the other end broke off, rather than said what is no HTTP."""
        unread, ended = self.protocol.trailing_data
        spoke = self.protocol.their_http_version is not None
        return ended and (spoke or unread[:5] == b"HTTP/"[: len(unread)])


class Answer:
    """The head of an answer, and its body to be read once."""

    def __init__(self, head: h11.Response, stream: _Stream, timeout: float | None) -> None:
        self.status = head.status_code
        self.headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}  #: names in lower case
        self._stream = stream
        self._timeout = timeout

    async def read(self) -> bytes:
        async with asyncio.timeout(self._timeout):
            return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while isinstance(event := await self._stream.event(), h11.Data):
            yield bytes(event.data)


@asynccontextmanager
async def exchange(
    to: Endpoint, method: str, target: str, headers: Mapping[str, str], body: bytes | None, timeout: float
) -> AsyncIterator[Answer]:
    """Sends the request; head and body are each due within `timeout` seconds, where the body is read() as a whole.

    Unreachable, while the body is read too. ValueError for headers that cannot be sent.
    """
    request = head(to.authority, method, target, headers, body)
    reader, writer = await _connect(to)
    async with converse(reader, writer, to.url, request, body, timeout) as answer:
        yield answer


def head(authority: str, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> h11.Request:
    """ValueError."""
    sent = {"Host": authority, "Connection": "close"} | dict(headers)
    if body is not None or method in {"POST", "PUT", "PATCH"}:
        sent["Content-Length"] = str(len(body or b""))
    try:
        return h11.Request(method=method, target=target, headers=list(sent.items()))
    except h11.LocalProtocolError:
        raise ValueError("a header has characters that HTTP does not allow") from None


@asynccontextmanager
async def converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    url: str,
    request: h11.Request,
    body: bytes | None,
    timeout: float | None,
) -> AsyncIterator[Answer]:
    """exchange() over a connection that is there; closes it. `url`: what the other end is called in errors."""
    stream = _Stream(reader)
    try:
        async with asyncio.timeout(timeout):
            for event in (request, h11.Data(body or b""), h11.EndOfMessage()):
                writer.write(stream.protocol.send(event))
            with suppress(ConnectionError):  # it may answer, with a refusal, before it has read a large body
                await writer.drain()
            answer = Answer(await _answer_head(stream), stream, timeout)
        yield answer
    except TimeoutError:
        raise Unreachable(url, f"no answer within {timeout or 0:g} seconds") from None
    except OSError:
        raise Unreachable(url, _CUT) from None
    except h11.RemoteProtocolError:
        raise Unreachable(url, _CUT if stream.was_cut else "what answers there does not speak HTTP") from None
    finally:
        writer.close()


async def _connect(to: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            if to.path:
                return await asyncio.open_unix_connection(to.path)
            return await asyncio.open_connection(to.host, to.port, ssl=to.tls or None)
    except TimeoutError:
        raise Unreachable(to.url, f"no connection within {CONNECT_TIMEOUT:g} seconds") from None
    except PermissionError:
        raise Unreachable(to.url, "you may not open the socket", denied=True) from None
    except OSError as error:
        raise Unreachable(to.url, _reason(error)) from None


def _reason(error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "there is no socket"
        case ConnectionRefusedError():
            return "nobody listens there"
        case _:
            return error.strerror or str(error)


async def _answer_head(stream: _Stream) -> h11.Response:
    while not isinstance(event := await stream.event(), h11.Response):
        pass  # a notice that the answer will come
    if len(event.headers) > HEADER_LIMIT:
        raise h11.RemoteProtocolError("too many headers")
    return event
