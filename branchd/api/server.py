"""The server: the application made of the routes, and its life on the listeners."""

import asyncio
import socket
from collections.abc import Sequence
from functools import cache

from aiohttp import web

from branchd.api import body, edge, openapi
from branchd.api.accepting import Acceptor, room
from branchd.api.auth import Guard
from branchd.api.connection import Connection
from branchd.api.encoded import Encoded
from branchd.api.handlers import ROUTES
from branchd.api.listeners import Given, Opened, open_all
from branchd.api.routing import House
from branchd.api.settings import HttpSettings
from branchd.api.streams import Streams
from branchd.branch.own_log import OwnLog
from branchd.branch.service import Service
from branchd.core.access import Principal
from branchd.core.errors import Unavailable
from branchd.wire import json
from branchd.wire.resources import InstanceStatus

#: seconds that stop() leaves requests to be answered
SHUTDOWN_TIMEOUT = 3.0

#: seconds that release() leaves connections without a request, for one may be on its way
GRACE = 0.25

#: seconds that release() leaves answers which are given to be read
FLUSH = 1.0

#: seconds between two looks at whether connections are left
LOOK = 0.01


#: what ends the long answers of an application
STREAMS = web.AppKey("streams", Streams)


def make_app(service: Service, settings: HttpSettings, own_log: OwnLog) -> web.Application:
    streams = Streams()
    document = cache(lambda: json.dumps(openapi.document(ROUTES)))
    house = House(service, settings, streams, Encoded(), Encoded(InstanceStatus.of), document)
    guard = Guard(service.tokens, settings)
    rim = edge.Edge(house, guard)
    app = web.Application(middlewares=[rim.middleware()], client_max_size=settings.body_limit)
    for route in ROUTES:
        handler = rim.serve(route)
        app.router.add_route(route.method, route.path, handler, expect_handler=body.expectation)
        if route.method == "GET" and not route.streams:
            app.router.add_route("HEAD", route.path, handler, expect_handler=body.expectation)

    if settings.supervisor_door:
        from branchd.api.door.face import Face  # noqa: PLC0415  # for start-up time

        Face(house, guard, own_log).open(app)

    async def end_streams(_app: web.Application) -> None:
        streams.close()

    async def last_answer(_request: web.Request, response: web.StreamResponse) -> None:
        if streams.closing:  # who asks again is to connect again, and finds the next daemon
            response.headers["Connection"] = "close"
            response.force_close()

    app.on_shutdown.append(end_streams)
    app.on_response_prepare.append(rim.prepare)
    app.on_response_prepare.append(last_answer)
    app[STREAMS] = streams
    return app


class Server:
    def __init__(
        self,
        service: Service,
        settings: HttpSettings,
        given: Sequence[Given] = (),
        own_log: OwnLog | None = None,
    ) -> None:
        """`given`: sockets that are open already. `own_log`: what the daemon logs; None: nothing of it is shown."""
        self._settings = settings
        self._given = given
        self._app = make_app(service, settings, own_log or OwnLog())
        self._runner = web.AppRunner(self._app, shutdown_timeout=SHUTDOWN_TIMEOUT)
        self._opened: list[Opened] = []
        self._acceptors: list[Acceptor] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, as URLs and unix:PATH, in the order of the settings; empty before start()."""
        return tuple(opened.address for opened in self._opened)

    async def start(self) -> None:
        """Opens every listener, and serves; Fatal where one cannot be had."""
        self._opened = open_all(self._settings, self._given)
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

    async def release(self) -> None:
        """As stop(), but leaves the listening sockets open: nobody who connects is refused, and the kernel keeps them.

        What has been asked is answered, what is asked on a connection that is open too, and then these end.
        """
        for acceptor in self._acceptors:
            acceptor.release()
        self._app[STREAMS].close()
        await self._until_quiet(GRACE)
        await self._runner.cleanup()
        await self._until_quiet(FLUSH)

    def hand_over(self) -> tuple[Given, ...]:
        """After release(): the listening sockets, for the next server; stop() leaves them open then."""
        given = tuple(Given(opened.socket, opened.ours, opened.inode) for opened in self._opened)
        self._acceptors, self._opened = [], []
        return given

    async def _until_quiet(self, seconds: float) -> None:
        """Returns when no connection is open that a listener took, and after so long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        # no event tells of it, and it is looked at once in a daemon's life
        while any(acceptor.busy for acceptor in self._acceptors) and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(LOOK)

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
