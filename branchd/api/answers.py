"""What answers have in common: JSON bodies, entity tags, pages of lists."""

import base64
import binascii
import bisect
import fnmatch
import heapq
from collections.abc import Callable, Sequence
from http import HTTPStatus
from operator import itemgetter
from typing import Any, TypeVar

from aiohttp import web

from branchd.api.encoded import encoded
from branchd.api.parameters import Form, Parameter, Unfit, text, whole
from branchd.api.routing import Call
from branchd.core.errors import Fault, Invalid, NotFound, Stale
from branchd.core.value import Value
from branchd.wire import json
from branchd.wire.resources import App, Instance

T = TypeVar("T")
V = TypeVar("V", App, Instance)

#: the place of an item in its list: names, which sort like the list
Place = tuple[str, ...]

JSON = "application/json"

#: headers of a change
IF_MATCH = {"If-Match": "Only if it still has this ETag."}
IF_NONE_MATCH = {"If-None-Match": "`*`: only if it does not exist yet."}


def _place(given: str) -> Place:
    try:
        decoded = json.loads(base64.urlsafe_b64decode(given.encode("ascii", "replace")))
        if isinstance(decoded, list) and decoded and all(isinstance(part, str) for part in decoded):
            return tuple(decoded)
    except (ValueError, binascii.Error):
        pass
    raise Unfit("it is not one of ours", "take `next` of the page before")


LIMIT = Parameter("limit", whole(1, 1000), 100, "The most items to answer with.")
CURSOR: Parameter[Place | None] = Parameter(
    "cursor", Form(_place, {"type": "string"}), None, "`next` of the page before: the list goes on after it."
)
NAME: Parameter[str | None] = Parameter("name", text(255), None, "Only names that match this pattern, such as `web*`.")
PAGE = (LIMIT, CURSOR)


def answer(value: Any, status: int = HTTPStatus.OK, **headers: str) -> web.Response:
    return web.Response(body=encoded(value), status=status, headers=headers, content_type=JSON)


def nothing() -> web.Response:
    return web.Response(status=HTTPStatus.NO_CONTENT)


def app_answer(call: Call, app: App, status: int = HTTPStatus.OK) -> web.Response:
    return _tagged(call, app, encoded(app), status, f"/v1/apps/{app.name}")


def instance_answer(call: Call, instance: Instance, status: int = HTTPStatus.OK) -> web.Response:
    location = f"/v1/apps/{instance.app}/instances/{instance.name}"
    return _tagged(call, instance, call.house.encoded.one(instance), status, location)


def _tagged(call: Call, value: App | Instance, body: bytes, status: int, location: str) -> web.Response:
    headers = {"ETag": entity_tag(call, value)} | ({"Location": location} if status == HTTPStatus.CREATED else {})
    return web.Response(body=body, status=status, headers=headers, content_type=JSON)


def entity_tag(call: Call, value: App | Instance) -> str:
    if isinstance(value, App):
        return f'"{call.service.apps.tag(value.name)}"'
    return f'"{call.service.id}.{value.generation}"'


def must_be_new(call: Call) -> bool:
    """Whether If-None-Match asks for what does not exist. Invalid where it asks for anything else."""
    header = ",".join(call.request.headers.getall("If-None-Match", []))
    if header.strip() not in ("", "*"):
        raise Invalid([Fault("If-None-Match:", "is not valid", "only * is, which means: if it does not exist yet")])
    return bool(header)


def match(call: Call, present: Callable[[], Instance]) -> int | None:
    """The generation that If-Match asks for; None without that header. Stale."""
    value = _matched(call, present)
    return None if value is None else value.generation


def app_match(call: Call) -> str | None:
    """The tag of the app that If-Match asks for; None without that header. Stale."""
    apps, name = call.service.apps, call.path["app"]
    return None if _matched(call, lambda: apps.get(name)) is None else apps.tag(name)


def _matched(call: Call, present: Callable[[], V]) -> V | None:
    header = ",".join(call.request.headers.getall("If-Match", []))
    if not header:
        return None
    try:
        value = present()
    except NotFound as error:
        raise Stale("it does not exist") from error
    tag = entity_tag(call, value)
    if header.strip() != "*" and tag not in {one.strip() for one in header.split(",")}:
        raise Stale(f"it is {tag} now", "read it again, and decide again")
    return value


def matches(pattern: str | None, name: str) -> bool:
    return pattern is None or fnmatch.fnmatchcase(name, pattern)


class Elsewhere(Value):
    """What other branches have of a page."""

    items: Sequence[tuple[Place, Any]] = ()  #: after the cursor, at most `limit` of each branch; plain JSON values
    more: bool = False  #: one of them has further items
    known: bool = False  #: one of them knows what the page is about
    unreachable: Sequence[str] = ()  #: the names of those that do not answer


_NOWHERE = Elsewhere()


def page(
    call: Call,
    items: Sequence[T],
    place: Callable[[T], Place],
    encode: Callable[[T], bytes] = encoded,
    elsewhere: Elsewhere = _NOWHERE,
) -> web.Response:
    """The items after the cursor, at most `limit`; they are sorted by their place."""
    limit, cursor = call.get(LIMIT), call.get(CURSOR)
    first = 0 if cursor is None else bisect.bisect_right(items, cursor, key=place)
    chosen = items[first : first + limit]
    shown = [encode(item) for item in chosen]
    last = place(chosen[-1]) if chosen else None
    more = first + limit < len(items) or elsewhere.more
    if elsewhere.items:
        more = more or len(shown) + len(elsewhere.items) > limit
        theirs = heapq.nsmallest(limit, elsewhere.items, key=itemgetter(0))  # of many branches few are shown
        found = sorted([*zip(map(place, chosen), shown, strict=True), *((at, json.dumps(item)) for at, item in theirs)])
        shown, last = [each for _, each in found[:limit]], found[:limit][-1][0]
    following = base64.urlsafe_b64encode(json.dumps(last)).decode() if more and last else None
    body = b'{"items":[%b],"next":%b,"partial":%b,"unreachable":%b}' % (
        b",".join(shown),
        json.dumps(following),
        json.dumps(bool(elsewhere.unreachable)),
        json.dumps(sorted(elsewhere.unreachable)),
    )
    return web.Response(body=body, content_type=JSON)
