"""One connection: aiohttp's protocol, with our problems for what is not HTTP, a bound, and word of its end."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from branchd.api import problems
from branchd.core.errors import BranchdError

#: of one listener; each costs a descriptor and some 20 KiB
MOST_CONNECTIONS = 1000

#: seconds without a (whole) request before a connection is closed
KEEPALIVE = 75.0

#: seconds that the rest of a refused body is read and thrown away, so that the client gets to read why
LINGER = 2.0

#: bytes of the request line, and of one header
LINE_LIMIT = 8190

#: headers of a request
MOST_HEADERS = 100

#: on every answer; that of a page may set its own Content-Security-Policy
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Server": "branchd",
}


class Connection(web.RequestHandler):
    """`peers` holds the connections of the same listener."""

    __slots__ = ("_on_lost", "_peers")

    def __init__(self, manager: web.Server, loop: asyncio.AbstractEventLoop, peers: "set[Connection]"):
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=KEEPALIVE,
            access_log=None,  # type: ignore[arg-type]  # None turns it off
            max_line_size=LINE_LIMIT,
            max_field_size=LINE_LIMIT,
            max_headers=MOST_HEADERS,
            lingering_time=LINGER,
            auto_decompress=False,
        )
        self._peers = peers
        self._on_lost: set[Callable[[], object]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._peers.add(self)
        if len(self._peers) > MOST_CONNECTIONS:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._peers.discard(self)
        super().connection_lost(exc)
        for callback in list(self._on_lost):
            callback()

    def when_lost(self, callback: Callable[[], object]) -> None:
        """Calls it when the client is gone."""
        self._on_lost.add(callback)

    def forget(self, callback: Callable[[], object]) -> None:
        self._on_lost.discard(callback)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp's parser, or a hole in edge.py, has to say."""
        error: BranchdError
        if isinstance(exc, LineTooLong):
            error = problems.HeadersTooLarge(f"a line is longer than {LINE_LIMIT} bytes")
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR:
            words = (message or "").partition("\n")[0].strip(" :")
            error = problems.BadRequest(words if words.isprintable() and words else "it does not parse")
        else:
            error = problems.internal(exc or RuntimeError(message), f"{request.method} {request.raw_path!r}")
        response = problems.answer(error)
        response.headers.update(SECURITY_HEADERS)
        response.force_close()
        return response
