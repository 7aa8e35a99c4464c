"""The event stream: what happens on one branch, with ids to resume after; each branch has its own."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from branchd.api.encoded import encoded
from branchd.api.parameters import FLAG, Parameter, Unfit, text, whole
from branchd.api.routing import About, Call, Routes, Text
from branchd.api.streams import event_source, write
from branchd.branch.events import Reset
from branchd.branch.records import EventRecord
from branchd.branch.view import render_event
from branchd.core.access import Scope
from branchd.core.errors import Fault, Invalid

route = Routes()

#: a browser connects again after so many milliseconds: a reload takes about one second
RETRY = b"retry: 1000\r\n\r\n"

_ID = whole(0, 2**63 - 1)

AFTER: Parameter[int | None] = Parameter("after", _ID, None, "Begin after the event with this id; else now.")
TAIL: Parameter[int | None] = Parameter(
    "tail", _ID, None, "Begin with the last so many, counted before any are left out. Excludes `after`."
)
FOLLOW = Parameter("follow", FLAG, True, "Go on with what happens; else end when all up to now is told.")
APP: Parameter[str | None] = Parameter("app", text(63), None, "Only of this app.")
INSTANCE: Parameter[str | None] = Parameter("instance", text(63), None, "Only of instances with this name.")
TYPE: Parameter[tuple[str, ...]] = Parameter("type", text(80), (), "Only types that begin with one of these.", True)

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
LAST_EVENT_ID = "Last-Event-ID"


@route(
    "GET",
    "/v1/events",
    scope=Scope.READ,
    returns={200: Text((SSE, NDJSON))},
    query=(AFTER, TAIL, FOLLOW, APP, INSTANCE, TYPE),
    headers={LAST_EVENT_ID: "Like `after`, as browsers resume by themselves; `tail` is for the first time only."},
    streams=True,
    about=About.BRANCH,
)
async def get_events(call: Call) -> web.StreamResponse:
    """Events as they come, as server-sent events or one JSON object a line; Last-Event-ID resumes.

    An event `reset` comes first when that id is no longer kept: read the present state, and go on from here. A reader
    that is too slow is let go.
    """
    items = call.service.events.subscribe(_after(call), tail=call.get(TAIL) or 0, follow=call.get(FOLLOW))
    if NDJSON in call.request.headers.get("Accept", ""):
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await call.house.streams.run(call.request, call.principal, response, _send_lines(call, response, items))
        return response
    events = event_source()
    await call.house.streams.run(call.request, call.principal, events, _send_events(call, events, items))
    return events


def _after(call: Call) -> int | None:
    """`after`, or where a browser resumes by itself its Last-Event-ID. Invalid."""
    if call.get(AFTER) is not None and call.get(TAIL) is not None:
        raise Invalid([Fault("?tail", "excludes after", "give one of the two")])
    given = call.request.headers.get(LAST_EVENT_ID)
    if given is None or call.get(AFTER) is not None:
        return call.get(AFTER)
    try:
        return _ID.parse(given)
    except Unfit as error:
        raise Invalid([Fault(f"{LAST_EVENT_ID}:", error.detail, error.hint)]) from None


async def _send_events(
    call: Call, response: EventSourceResponse, items: AsyncGenerator[EventRecord | Reset, None]
) -> None:
    await response.prepare(call.request)
    async with response, aclosing(items):
        try:
            async for item in items:
                if isinstance(item, Reset):
                    await response.send(encoded({"last": item.last}).decode(), id=str(item.last), event="reset")
                elif _wanted(call, item):
                    await response.send(encoded(render_event(item)).decode(), id=str(item.id), event=item.type)
        finally:
            if call.house.streams.closing:
                await response.write(RETRY)


async def _send_lines(
    call: Call, response: web.StreamResponse, items: AsyncGenerator[EventRecord | Reset, None]
) -> None:
    await response.prepare(call.request)
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Reset):
                await write(response, encoded({"id": item.last, "type": "reset"}) + b"\n")
            elif _wanted(call, item):
                await write(response, encoded(render_event(item)) + b"\n")


def _wanted(call: Call, event: EventRecord) -> bool:
    app, instance, types = call.get(APP), call.get(INSTANCE), call.get(TYPE)
    return (
        app in (None, event.app) and instance in (None, event.instance) and (not types or event.type.startswith(types))
    )
