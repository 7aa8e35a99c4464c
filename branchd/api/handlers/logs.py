"""The output of instances: its last lines, and what comes."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from branchd.api.parameters import FLAG, Parameter, one_of, whole
from branchd.api.routing import About, Call, Routes, Text
from branchd.api.streams import event_source, write
from branchd.core.access import Scope
from branchd.core.errors import Conflict
from branchd.core.spec import Stderr
from branchd.core.values import Key, Stream

route = Routes()

TAIL = Parameter("tail", whole(0, 10_000), 100, "So many of the last lines.")
FOLLOW = Parameter("follow", FLAG, False, "Go on with what is written, until the caller hangs up or it is deleted.")
STREAM = Parameter("stream", one_of(Stream), Stream.STDOUT, "Which of the two.")

PLAIN = "text/plain"
EVENTS = "text/event-stream"

#: bytes after which a line goes out as it is, though its end has not come
LONGEST_LINE = 64 << 10


@route(
    "GET",
    "/v1/apps/{app}/instances/{instance}/logs",
    scope=Scope.READ,
    returns={200: Text((PLAIN, EVENTS))},
    query=(TAIL, FOLLOW, STREAM),
    raises=(Conflict,),
    streams=True,
    about=About.INSTANCE,
)
async def get_logs(call: Call) -> web.StreamResponse:
    """Its output as it was written; when followed and asked for as text/event-stream, each line is an event."""
    instance = call.service.instances.get(call.path["app"], call.path["instance"])
    stream, lines = call.get(STREAM), call.get(TAIL)
    if stream is Stream.STDERR and instance.effective["logs"]["stderr"] == Stderr.JOIN:
        raise Conflict(
            "its stderr is joined with its stdout",
            'read stream=stdout, or set "logs": {"stderr": "file"} and restart it',
        )
    key = Key(instance.app, instance.name)
    if not call.get(FOLLOW):
        body = await call.service.logs.tail(key, stream, lines)
        return web.Response(body=body, content_type=PLAIN, charset="utf-8")
    chunks = call.service.logs.follow(key, stream, lines)
    if EVENTS in call.request.headers.get("Accept", ""):
        events = event_source()
        pump = _while_there(call, lambda: _send_lines(call, events, chunks))
        await call.house.streams.run(call.request, call.principal, pump)
        return events
    response = web.StreamResponse(headers={"Content-Type": f"{PLAIN}; charset=utf-8"})
    pump = _while_there(call, lambda: _send(call, response, chunks))
    await call.house.streams.run(call.request, call.principal, pump)
    return response


async def _while_there(call: Call, send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Sends until that ends, or the instance is gone."""
    sending = asyncio.create_task(send())
    gone = asyncio.create_task(call.service.instances.wait(call.path["app"], call.path["instance"], "gone", math.inf))
    try:
        await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sending.cancel()
        gone.cancel()
        await asyncio.wait({sending, gone})
    if not sending.cancelled():
        sending.result()


async def _send(call: Call, response: web.StreamResponse, chunks: AsyncGenerator[bytes, None]) -> None:
    await response.prepare(call.request)
    async with aclosing(chunks):
        async for chunk in chunks:
            await write(response, chunk)


async def _send_lines(call: Call, response: EventSourceResponse, chunks: AsyncGenerator[bytes, None]) -> None:
    await response.prepare(call.request)
    async with response, aclosing(chunks):
        rest = b""
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                await response.send(line.decode(errors="replace"))
