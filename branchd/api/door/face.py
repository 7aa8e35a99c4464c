"""The door's paths: POST /RPC2, and GET /logtail and /mainlogtail that go on without end.

The sender of a request, and errors that are problems, are looked after around these as around every route (edge.py);
which scope is needed is said by the method that is called.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from aiohttp import web

from branchd.api import body
from branchd.api.auth import Guard
from branchd.api.door import logs, names, xml
from branchd.api.door.faults import RpcError
from branchd.api.door.methods import call
from branchd.api.door.table import Door
from branchd.api.problems import NoSuchPath, NotXml
from branchd.api.routing import House
from branchd.api.streams import write
from branchd.branch.own_log import OwnLog
from branchd.core.access import Principal, Scope
from branchd.core.errors import Denied
from branchd.core.values import Stream

XML = "text/xml"


class Face:
    def __init__(self, house: House, guard: Guard, own_log: OwnLog) -> None:
        self._house = house
        self._guard = guard
        self._own_log = own_log

    def open(self, app: web.Application) -> None:
        """Adds the paths."""
        for method, path, handler in (
            ("POST", "/RPC2", self.rpc),
            ("GET", "/logtail/{name}", self.process_log),
            ("GET", "/logtail/{name}/{channel}", self.process_log),
            ("GET", "/mainlogtail", self.own_log),
        ):
            app.router.add_route(method, path, handler, expect_handler=body.expectation)

    async def rpc(self, request: web.Request) -> web.StreamResponse:
        principal = self._principal(request, Scope.READ)
        if self._house.service.endings.chosen is None:
            await self._house.service.take()
        if request.content_type != XML:
            raise NotXml(f"the body is {request.headers.get('Content-Type', 'of no type')[:255]!r}",
                         f"send Content-Type: {XML}")  # fmt: skip
        asked = xml.loads(await body.receive(request, self._house.settings.body_limit))

        def during(work: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
            return self._house.streams.during(request, work)

        try:
            result = await call(Door(self._house.service, self._own_log, principal, during), asked.method, asked.params)
        except RpcError as error:
            return web.Response(body=xml.fault(error.fault, str(error)), content_type=XML)
        return web.Response(body=xml.result(result), content_type=XML)

    async def process_log(self, request: web.Request) -> web.StreamResponse:
        principal = self._principal(request, Scope.READ)
        name, channel = request.match_info["name"], request.match_info.get("channel", Stream.STDOUT.value)
        try:
            instance = names.instance(self._house.service, name)
        except RpcError as error:
            raise NoSuchPath(str(error)) from None
        read = logs.of_process(self._house.service, instance, Stream(channel)) if channel in list(Stream) else None
        if read is None:
            raise NoSuchPath(f"{name[:80]} has no file of its {channel[:80]}")

        async def gone() -> None:
            await self._house.service.instances.wait(instance.app, instance.name, "gone", math.inf)

        return await self._send(request, principal, logs.follow(read), gone)

    async def own_log(self, request: web.Request) -> web.StreamResponse:
        principal = self._principal(request, Scope.ADMIN)
        return await self._send(request, principal, logs.follow(self._own_log.read), asyncio.Event().wait)

    def _principal(self, request: web.Request, scope: Scope) -> Principal:
        """Unauthenticated, Denied."""
        principal = self._guard.principal(request, password=True)
        if principal.via is not None:
            raise Denied("this cannot be asked for by way of another branch", "ask this branch's own")
        if not principal.scope.includes(scope):
            raise Denied(f"this needs the scope {scope}; {principal.name} has {principal.scope}")
        return principal

    async def _send(
        self,
        request: web.Request,
        principal: Principal,
        chunks: AsyncGenerator[bytes, None],
        ends: Callable[[], Coroutine[Any, Any, object]],
    ) -> web.StreamResponse:
        """Until the client goes, or ends() returns. The connection ends with it: supervisorctl waits for that."""
        response = web.StreamResponse(headers={"Content-Type": "text/plain;charset=utf-8", "X-Accel-Buffering": "no"})
        response.force_close()

        async def pump() -> None:
            await response.prepare(request)
            async with aclosing(chunks):
                async for chunk in chunks:
                    await write(response, chunk)

        async def both() -> None:
            tasks = {asyncio.create_task(pump()), asyncio.create_task(ends())}
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            for error in ended:
                if isinstance(error, Exception):
                    raise error

        await self._house.streams.run(request, principal, response, both())
        return response
