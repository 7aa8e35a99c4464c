"""The server: the application made of the routes, and its life on the listeners."""

import asyncio
import socket
from functools import cache

from aiohttp import web

from branchd.api import body, edge, openapi
from branchd.api.accepting import Acceptor, room
from branchd.api.auth import Guard
from branchd.api.connection import Connection
from branchd.api.encoded import Encoded
from branchd.api.handlers import ROUTES
from branchd.api.listeners import Opened, open_all
from branchd.api.routing import House
from branchd.api.settings import HttpSettings
from branchd.api.streams import Streams
from branchd.branch.service import Service
from branchd.core.access import Principal
from branchd.core.errors import Unavailable
from branchd.wire import json

#: seconds that stop() leaves requests to be answered
SHUTDOWN_TIMEOUT = 3.0


def make_app(service: Service, settings: HttpSettings) -> web.Application:
    streams = Streams()
    document = cache(lambda: json.dumps(openapi.document(ROUTES)))
    house = House(service, settings, streams, Encoded(), document)
    rim = edge.Edge(house, Guard(service.tokens, settings))
    app = web.Application(middlewares=[rim.middleware()], client_max_size=settings.body_limit)
    for route in ROUTES:
        handler = rim.serve(route)
        app.router.add_route(route.method, route.path, handler, expect_handler=body.expectation)
        if route.method == "GET" and not route.streams:
            app.router.add_route("HEAD", route.path, handler, expect_handler=body.expectation)

    async def end_streams(_app: web.Application) -> None:
        streams.close()

    app.on_shutdown.append(end_streams)
    app.on_response_prepare.append(rim.prepare)
    return app


class Server:
    def __init__(self, service: Service, settings: HttpSettings) -> None:
        self._settings = settings
        self._runner = web.AppRunner(make_app(service, settings), shutdown_timeout=SHUTDOWN_TIMEOUT)
        self._opened: list[Opened] = []
        self._acceptors: list[Acceptor] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, as URLs and unix:PATH, in the order of the settings; empty before start()."""
        return tuple(opened.address for opened in self._opened)

    async def start(self) -> None:
        """Opens every listener, and serves; Fatal where one cannot be had."""
        self._opened = open_all(self._settings)
        await self._runner.setup()
        manager = self._runner.server
        assert manager is not None
        for opened in self._opened:
            acceptor = Acceptor(opened, manager, room(len(self._opened)))
            acceptor.start()
            self._acceptors.append(acceptor)

    async def connect(self, principal: Principal) -> socket.socket:
        """The other end of a new connection; whatever is asked over it is asked by that principal. Unavailable."""
        manager = self._runner.server
        if manager is None:
            raise Unavailable("this branch's API is not open")
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        try:
            ours.setblocking(False)
            theirs.setblocking(False)
            await loop.connect_accepted_socket(lambda: Connection(manager, loop, _nobody_waits, principal), ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return theirs

    async def stop(self) -> None:
        """Takes no more connections, ends long answers, and leaves the others a moment."""
        for acceptor in self._acceptors:
            acceptor.stop()
        await self._runner.cleanup()
        for opened in self._opened:
            opened.close()
        self._acceptors, self._opened = [], []


def _nobody_waits() -> None:
    """There is no listener whose room the connection took."""
