"""The output of instances: its last lines, those with a text or since a time, any part of it, and what comes."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from branchd.api.parameters import FLAG, Parameter, Unfit, moment, one_of, text, whole
from branchd.api.routing import About, Call, Routes, Text
from branchd.api.streams import event_source, write
from branchd.branch.output import check_readable
from branchd.branch.ports import Lines, Piece
from branchd.core.access import Scope
from branchd.core.errors import Conflict, Fault, Invalid, Unavailable
from branchd.core.spec import Logs
from branchd.core.values import Key, Stream
from branchd.wire.decode import decode

route = Routes()

#: lines, unless something else says where to begin
LAST = 100

#: bytes of a part: what is in memory for it
LONGEST_PART = 16 << 20

#: bytes of the text that is looked for
LONGEST_TEXT = 1000

_OFFSET = whole(0, 2**63 - 1)

TAIL: Parameter[int | None] = Parameter(
    "tail", whole(0, 10_000), None,
    f"So many of the last lines that are asked for; {LAST}, or with `since` or `offset` all.",
)  # fmt: skip
FOLLOW = Parameter("follow", FLAG, False, "Go on with what is written, until the caller hangs up or it is deleted.")
STREAM = Parameter("stream", one_of(Stream), Stream.STDOUT, "Which of the two.")
SINCE: Parameter[float | None] = Parameter(
    "since", moment(), None,
    "Written since then; where lines have no times, some older ones come too, and Branchd-Log-Since says so.",
)  # fmt: skip
GREP = Parameter("grep", text(LONGEST_TEXT), "", "Only lines with this text; it is no pattern.")
IGNORE_CASE = Parameter("ignore_case", FLAG, False, "`grep` finds ASCII letters of either case.")
OFFSET: Parameter[int | None] = Parameter(
    "offset", _OFFSET, None, "Begin with this byte, counted from the first that was ever written."
)
LENGTH: Parameter[int | None] = Parameter(
    "length", whole(1, LONGEST_PART), None, "So many bytes from `offset` on at most, exactly as they were written."
)

PLAIN = "text/plain"
EVENTS = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"

#: headers of an answer: offsets of its first byte, and of the one to go on with; bytes before it that are gone
AT, NEXT, GAP = "Branchd-Log-Offset", "Branchd-Log-Next", "Branchd-Log-Gap"

#: headers of an answer: whether `since` is exact or coarse; that there would have been more of what was asked for
TIMES, CUT = "Branchd-Log-Since", "Branchd-Log-Cut"

#: bytes after which a line goes out as it is, though its end has not come
LONGEST_LINE = 64 << 10


@route(
    "GET",
    "/v1/apps/{app}/instances/{instance}/logs",
    scope=Scope.READ,
    returns={200: Text((PLAIN, EVENTS))},
    query=(TAIL, FOLLOW, STREAM, SINCE, GREP, IGNORE_CASE, OFFSET, LENGTH),
    headers={LAST_EVENT_ID: "Like `offset`, as browsers resume by themselves when they follow."},
    raises=(Conflict,),
    streams=True,
    about=About.INSTANCE,
)
async def get_logs(call: Call) -> web.StreamResponse:
    """Its output as it was written; when followed and asked for as text/event-stream, each line is an event."""
    instance = call.service.instances.get(call.path["app"], call.path["instance"])
    key, stream = Key(instance.app, instance.name), call.get(STREAM)
    logs = decode(Logs, instance.effective.get("logs", {}))  # an unusable spec has nothing effective
    check_readable(key, logs, stream)
    _check(call)
    if (length := call.get(LENGTH)) is not None:
        offset = call.get(OFFSET) or 0
        data, begin, _ = await call.service.logs.read(key, stream, offset, length)
        return _answer(data, _where(Piece(data, begin, begin + len(data), max(begin - offset, 0))))
    sse = EVENTS in call.request.headers.get("Accept", "") and call.get(FOLLOW)
    lines = _lines(call, _resumed(call) if sse else None)
    pieces = call.service.logs.select(key, stream, lines, follow=call.get(FOLLOW))
    if not call.get(FOLLOW):
        return await _collected(call, pieces, lines)
    response = event_source() if sse else web.StreamResponse(headers={"Content-Type": f"{PLAIN}; charset=utf-8"})
    pump = _while_there(call, lambda: _send(call, response, pieces))
    await call.house.streams.run(call.request, call.principal, response, pump)
    return response


def _check(call: Call) -> None:
    """Invalid where parameters exclude each other."""
    faults = [
        Fault(f"?{parameter.name}", "excludes length", "leave one of the two out")
        for parameter in (TAIL, FOLLOW, SINCE, GREP)
        if call.get(LENGTH) is not None and call.parameters[parameter.name] != parameter.default
    ]
    if call.get(IGNORE_CASE) and not call.get(GREP):
        faults.append(Fault("?ignore_case", "there is no text to look for", "give grep too"))
    if call.get(TAIL) is not None and call.get(OFFSET) is not None and not call.get(GREP):
        faults.append(Fault("?tail", "excludes offset", "give one of the two"))
    if faults:
        raise Invalid(faults)


def _lines(call: Call, resumed: int | None) -> Lines:
    tail, since, offset = call.get(TAIL), call.get(SINCE), call.get(OFFSET)
    if resumed is not None:
        tail, since, offset = None, None, resumed
    elif tail is None and since is None and offset is None:
        tail = LAST
    return Lines(tail, since, call.get(GREP), call.get(IGNORE_CASE), offset)


def _resumed(call: Call) -> int | None:
    """Where a browser goes on by itself. Invalid."""
    given = call.request.headers.get(LAST_EVENT_ID)
    try:
        return None if given is None else _OFFSET.parse(given)
    except Unfit as error:
        raise Invalid([Fault(f"{LAST_EVENT_ID}:", error.detail, error.hint)]) from None


async def _collected(call: Call, pieces: AsyncGenerator[Piece, None], lines: Lines) -> web.StreamResponse:
    """As one answer, unless the client goes before it is complete: then nobody looks any further."""

    async def collect() -> list[Piece]:
        async with aclosing(pieces):
            return [piece async for piece in pieces]

    found = await call.house.streams.during(call.request, collect())
    if not found:
        raise Unavailable("this branch is stopping")
    headers = _where(found[0]) | {NEXT: str(found[-1].end)}
    if any(piece.cut for piece in found):
        headers[CUT] = "1"
    if lines.since is not None:
        headers[TIMES] = "coarse" if found[0].coarse else "exact"
    return _answer(b"".join(map(_shown, found)), headers)


def _answer(body: bytes, headers: dict[str, str]) -> web.Response:
    return web.Response(body=body, content_type=PLAIN, charset="utf-8", headers=headers)


def _where(first: Piece) -> dict[str, str]:
    return {AT: str(first.start), NEXT: str(first.end)} | ({GAP: str(first.gap)} if first.gap else {})


def _shown(piece: Piece) -> bytes:
    gap = b"[branchd: %d bytes were rotated away]\n" % piece.gap if piece.gap else b""
    return gap + piece.data


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


async def _send(call: Call, response: web.StreamResponse, pieces: AsyncGenerator[Piece, None]) -> None:
    async with aclosing(pieces):
        first = await anext(pieces, None)
        if first is None:
            return  # the daemon ends
        response.headers[AT] = str(first.start)
        if call.get(SINCE) is not None:
            response.headers[TIMES] = "coarse" if first.coarse else "exact"
        await response.prepare(call.request)
        if isinstance(response, EventSourceResponse):
            async with response:
                await _send_lines(response, first, pieces)
            return
        await _write(response, first)
        async for piece in pieces:
            await _write(response, piece)


async def _write(response: web.StreamResponse, piece: Piece) -> None:
    if data := _shown(piece):
        await write(response, data)


async def _send_lines(response: EventSourceResponse, first: Piece, others: AsyncIterator[Piece]) -> None:
    """Each line's id is the offset behind it, where known: of chosen lines, the last one's of some."""
    rest, piece = b"", first
    while True:
        if piece.gap:
            await response.send(str(piece.gap), id=str(piece.start), event="gap")
        chosen = len(piece.data) != piece.end - piece.start
        at = piece.start - len(rest)
        *lines, rest = (rest + piece.data).split(b"\n")
        if len(rest) > LONGEST_LINE or (chosen and rest):
            lines, rest = [*lines, rest], b""
        for number, line in enumerate(lines, 1):
            at = piece.end if chosen else min(at + len(line) + 1, piece.end)
            known = not chosen or number == len(lines)
            await response.send(line.decode(errors="replace"), id=str(at) if known else None)
        try:
            piece = await anext(others)
        except StopAsyncIteration:
            return
