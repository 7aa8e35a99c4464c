"""One connection: aiohttp's protocol, with our problems for what is not HTTP, limits in time, and word of its end."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from branchd.api import problems
from branchd.core.access import Principal
from branchd.core.errors import BranchdError

#: seconds between two requests before a connection is closed
KEEPALIVE = 75.0

#: seconds in which the head of a request must arrive, once it has begun; that of the first, once connected
HEAD_PATIENCE = 10.0

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
    """`ended` is called once, when it is over. `principal`: whose requests these are, where that is known before."""

    __slots__ = ("_ended", "_head_timer", "_on_lost", "by_credentials", "principal")

    def __init__(
        self,
        manager: web.Server,
        loop: asyncio.AbstractEventLoop,
        ended: Callable[[], object],
        principal: Principal | None = None,
    ):
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
        self.principal = principal
        #: who the kernel says is at the other end of a unix socket: that stays as it was when it connected
        self.by_credentials: Principal | None = None
        self._ended = ended
        self._head_timer: asyncio.TimerHandle | None = None
        self._on_lost: set[Callable[[], object]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        heads = self._request_count
        super().data_received(data)
        if self._request_count > heads:
            self._end_head_timer()
        elif self._head_timer is None and self._waiter is not None and not self._waiter.done():
            self._await_head()  # no request is worked on, so this begins one

    def _await_head(self) -> None:
        self._head_timer = self._loop.call_later(HEAD_PATIENCE, self._give_up)

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end_head_timer()
        self._ended()
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
