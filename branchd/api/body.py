"""The body of a request: JSON, bounded, asked for only when the rest of the request was found good."""

import asyncio
from typing import Any

from aiohttp import web

from branchd.api.problems import BadRequest, BrokenJson, NotJson, TooLarge, TooSlow
from branchd.api.routing import Route
from branchd.core.errors import Fault, Invalid
from branchd.wire import json

#: seconds in which a body must arrive
PATIENCE = 30.0

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"


async def expectation(request: web.Request) -> None:
    """Instead of aiohttp's, which would ask for a body before anybody looked at the request: `read` asks for it."""


async def read(request: web.Request, route: Route, limit: int) -> Any:
    """The JSON value, None for a route without a body. NotJson, TooLarge, TooSlow, BadRequest, BrokenJson, Invalid."""
    raw = await _bytes(request, route, limit) if request.body_exists else b""
    if not raw:
        if route.body is not None:
            raise Invalid([Fault("", "a JSON body is needed", 'send an object, "{}" at least')])
        return None
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise BrokenJson(str(error)) from error
    if route.body is None and value not in (None, {}):
        raise Invalid([Fault("", "this takes no body", "leave it out")])
    return value


async def _bytes(request: web.Request, route: Route, limit: int) -> bytes:
    accepted = (JSON, MERGE_PATCH) if route.method == "PATCH" else (JSON,)
    if request.content_type not in accepted:
        raise NotJson(f"the body is {request.headers.get('Content-Type', 'of no type')[:255]!r}",
                      f"send Content-Type: {' or '.join(accepted)}")  # fmt: skip
    return await receive(request, limit)


async def receive(request: web.Request, limit: int) -> bytes:
    """The body as it came, of whichever type. NotJson where it is compressed, TooLarge, TooSlow, BadRequest."""
    if (encoding := request.headers.get("Content-Encoding", "identity")).lower() != "identity":
        raise NotJson(f"the body is encoded as {encoding[:80]!r}", "send it as it is")
    too_large = TooLarge(f"the body is larger than {limit} bytes")
    if (request.content_length or 0) > limit:
        raise too_large
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
    try:
        async with asyncio.timeout(PATIENCE):
            return await request.read()
    except TimeoutError:
        raise TooSlow(f"not within {PATIENCE:g} s", headers={"Connection": "close"}) from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except web.RequestPayloadError as error:
        raise BadRequest("the body is not framed as its headers say") from error
