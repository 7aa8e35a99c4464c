"""One request over one connection: the little of HTTP/1.1 (RFC 9112) that a client of branchd's API needs.

On asyncio's streams rather than on aiohttp, whose import alone takes longer than all of `branchctl ps` (150 ms beside
90, measured with compiled modules). A connection carries one request: that costs next to nothing on a unix socket or on
loopback, and there is no idle connection that a restart of the daemon breaks. What the API means stands in client.py.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from branchd.client.errors import Unreachable

#: seconds for the connection to be made
CONNECT_TIMEOUT = 5.0

#: bytes of a line of the answer's head
LINE_LIMIT = 64 << 10

#: lines of the answer's head
HEADER_LIMIT = 100

#: bytes that are read at once
PIECE = 64 << 10


@dataclass(frozen=True, slots=True)
class Endpoint:
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


class Answer:
    """The head of an answer, and its body to be read once."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader, timeout: float) -> None:
        self.status = status
        self.headers = headers  #: names in lower case
        self._reader = reader
        self._timeout = timeout

    async def read(self) -> bytes:
        async with asyncio.timeout(self._timeout):
            return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if self.status in {204, 304}:
            return
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._reader.readline()).split(b";")[0], 16):
                async for piece in self._exactly(size):
                    yield piece
                await self._reader.readexactly(2)
        elif "content-length" in self.headers:
            async for piece in self._exactly(int(self.headers["content-length"])):
                yield piece
        else:
            while piece := await self._reader.read(PIECE):
                yield piece

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size:
            piece = await self._reader.read(min(size, PIECE))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            yield piece


@asynccontextmanager
async def exchange(
    to: Endpoint, method: str, target: str, headers: Mapping[str, str], body: bytes | None, timeout: float
) -> AsyncIterator[Answer]:
    """Sends the request; head and body are each due within `timeout` seconds, where the body is read() as a whole.

    Unreachable, while the body is read too.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {to.authority}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None or method in {"POST", "PUT", "PATCH"}:
        lines.append(f"Content-Length: {len(body or b'')}")
    request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b"")

    reader, writer = await _connect(to)
    try:
        async with asyncio.timeout(timeout):
            writer.write(request)
            with suppress(ConnectionError):  # it may answer, with a refusal, before it has read a large body
                await writer.drain()
            status, received = await _head(reader)
        yield Answer(status, received, reader, timeout)
    except TimeoutError:
        raise Unreachable(to.url, f"no answer within {timeout:g} seconds") from None
    except (asyncio.IncompleteReadError, OSError):
        raise Unreachable(to.url, "the connection was closed before the answer was complete") from None
    except ValueError:
        raise Unreachable(to.url, "what answers there does not speak HTTP") from None
    finally:
        writer.close()


async def _connect(to: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            if to.path:
                return await asyncio.open_unix_connection(to.path, limit=LINE_LIMIT)
            return await asyncio.open_connection(to.host, to.port, limit=LINE_LIMIT, ssl=to.tls or None)
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


async def _head(reader: asyncio.StreamReader) -> tuple[int, Mapping[str, str]]:
    while True:
        protocol, _, rest = (await _line(reader)).partition(" ")
        status = int(rest[:3])
        if not protocol.startswith("HTTP/1.") or not 100 <= status <= 599:
            raise ValueError(protocol)
        headers: dict[str, str] = {}
        while line := await _line(reader):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
            if len(headers) > HEADER_LIMIT:
                raise ValueError("too many headers")
        if status >= 200:  # those before are only notices that the answer will come
            return status, headers


async def _line(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    return line.rstrip(b"\r\n").decode("latin-1")
