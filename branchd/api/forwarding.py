"""Requests that another branch has to answer: which one, carried there, and its answer passed on.

A wait is carried in slices, so that a branch that goes away meanwhile is not waited for to the end.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from branchd.api.answers import must_be_new
from branchd.api.problems import TooLarge
from branchd.api.routing import WAIT, WHERE, About, Call
from branchd.api.streams import write
from branchd.branch.mesh.neighbours import ANSWER_WITHIN, LONGEST_BODY, Neighbours
from branchd.branch.ports import Served
from branchd.core.access import Principal
from branchd.core.errors import BranchdError, Conflict, NoAnswer, NoRoute, NotFound, OutcomeUnknown, Stale, Unavailable
from branchd.core.peers import Address, placed_key
from branchd.core.spec import Wanted
from branchd.core.value import Value
from branchd.core.values import Key, Truth
from branchd.wire import json
from branchd.wire.resources import ConditionType, Placement

#: headers of an answer: the branch that gave it, and the one that it came by
OWNER = "Branchd-Owner"
VIA = "Branchd-Via"

#: seconds of one slice of a wait
SLICE = 10.0


async def forwarded(call: Call) -> web.StreamResponse | None:
    """The answer of the branch that the request is about; None where this one has to answer it itself."""
    match call.route.about:
        case About.BRANCH:
            return await _to_branch(call, _chosen(call))
        case About.INSTANCE | About.NEW if call.get(WHERE) is not None:
            return await _to_branch(call, call.get(WHERE))
        case About.INSTANCE if (mesh := call.neighbours) is not None and not is_here(call):
            return await _to_owner(call, mesh, {})
        case About.NEW if (mesh := call.neighbours) is not None and "instance" in call.path and not is_here(call):
            return await _to_owner_if_any(call, mesh)
        case About.INSTANCE | About.NEW if (mesh := call.neighbours) is not None and "instance" in call.path:
            to = await _successor(call, mesh)
            return None if to is None else await carried(call, mesh, to)
        case _:
            return None


def branch(call: Call, name: str | None) -> Address | None:
    """Where the branch of that name or id is; None: it is this one. NotFound."""
    here = call.service
    if name is None or name in {here.name, here.id}:
        return None
    found = None if call.neighbours is None else call.neighbours.find(name)
    if found is None:
        raise NotFound(f"no branch {name[:80]!r} is known here", f"this one is {here.name}")
    return None if found.id == here.id else found


def _chosen(call: Call) -> str | None:
    """The branch that the path names: itself, or by one of its operations; else that of the query."""
    if "operation" in call.path and call.get(WHERE) is None:
        return call.path["operation"].rpartition("-")[0] or None
    return call.path["branch"] if "branch" in call.path else call.get(WHERE)


async def _to_branch(call: Call, name: str | None) -> web.StreamResponse | None:
    to = branch(call, name)
    if to is None or call.neighbours is None:
        return None
    return await carried(call, call.neighbours, to)


def is_here(call: Call) -> bool:
    """Whether this branch has the instance."""
    return call.service.instances.stands_for(call.path["app"], call.path["instance"])


async def _successor(call: Call, mesh: Neighbours) -> Address | None:
    """Where an instance went of which only the end is still here: its last tasks may take hours. None: nowhere."""
    app, name = call.path["app"], call.path["instance"]
    mine = call.service.instances.get(app, name)
    if not mine.status.deleting or mine.placement is Placement.PINNED:
        return None
    try:
        to = await mesh.locate(app, name)
    except (NotFound, Conflict, Unavailable):
        return None
    return None if to.id == call.service.id else to


async def _to_owner(call: Call, mesh: Neighbours, headers: Mapping[str, str]) -> web.StreamResponse | None:
    app, name = call.path["app"], call.path["instance"]
    if not call.route.changes and not call.parameters.get(WAIT.name):
        try:
            return await _read(call, mesh, placed_key(Key(app, name)))
        except NoRoute:
            pass  # it is pinned, or there is none
    for again in (True, False):
        to = await mesh.locate(app, name)
        if to.id == call.service.id:
            return None
        try:
            return await carried(call, mesh, to, headers)
        except NoRoute:
            if not again:
                raise
    return None


async def _to_owner_if_any(call: Call, mesh: Neighbours) -> web.StreamResponse | None:
    """None where nobody has it. It is not created by its last owner, where it goes away meanwhile."""
    asked = any(name in call.request.headers for name in ("If-Match", "If-None-Match"))
    try:
        if must_be_new(call):
            await mesh.locate(call.path["app"], call.path["instance"])
            raise Stale("it exists already", "leave If-None-Match out to replace it")
        response = await _to_owner(call, mesh, {} if asked else {"If-Match": "*"})
    except NotFound:
        return None
    gone = response is not None and response.status == HTTPStatus.PRECONDITION_FAILED and not asked
    return None if gone else response


async def _read(call: Call, mesh: Neighbours, key: str) -> web.StreamResponse:
    request = call.request
    asking = mesh.carrier.carry_key(key, call.principal, request.method, request.rel_url.raw_path_qs, request.headers)
    async with asking as (owner, served):
        return await _passed_on(call, mesh.name_of(owner.id), served)


async def carried(
    call: Call,
    mesh: Neighbours,
    to: Address,
    headers: Mapping[str, str] = MappingProxyType({}),
    patience: float | None = None,
) -> web.StreamResponse:
    """That branch's answer. NoRoute: it was not asked; NoAnswer, OutcomeUnknown, Unavailable."""
    if call.parameters.get(WAIT.name):
        return await _waited(call, mesh, to, headers)
    async with _asked(call, mesh, to, headers, patience) as served:
        return await _passed_on(call, mesh.name_of(to.id), served)


@asynccontextmanager
async def _asked(
    call: Call, mesh: Neighbours, to: Address, headers: Mapping[str, str], patience: float | None = None
) -> AsyncIterator[Served]:
    """The request itself, without its wait. NoRoute: it was not asked; OutcomeUnknown for a change."""
    body = b"" if call.body is None else json.dumps(call.body)
    if len(body) > LONGEST_BODY:
        raise TooLarge(f"the body is larger than {LONGEST_BODY} bytes, which is what can be carried to another branch",
                       f"send it to branch {mesh.name_of(to.id)} itself")  # fmt: skip
    request = call.request
    sent = {name: ",".join(request.headers.getall(name)) for name in request.headers} | dict(headers)
    carrying = mesh.carrier.carry(
        to, call.principal, request.method, _target(request), sent, body, patience or ANSWER_WITHIN
    )
    try:
        async with carrying as served:
            yield served
    except NoAnswer as error:
        if call.route.changes:
            raise OutcomeUnknown(error.detail, "look whether it was done before you ask again") from None
        raise


def _target(request: web.Request) -> str:
    """Its path and query, without the wait. What has no value has passed as a flag that stands alone."""
    query = urlencode([(name, value or "1") for name, value in request.rel_url.query.items() if name != WAIT.name])
    return request.rel_url.raw_path + (f"?{query}" if query else "")


async def _passed_on(call: Call, owner: str, served: Served) -> web.StreamResponse:
    headers = dict(served.headers) | {OWNER: owner, VIA: call.service.name}
    if not call.route.streams or served.status >= HTTPStatus.BAD_REQUEST:
        return web.Response(status=served.status, headers=headers, body=await whole(served))
    response = web.StreamResponse(status=served.status, headers=headers)
    await call.house.streams.run(call.request, call.principal, response, _copy(call.request, response, served))
    return response


async def whole(served: Served) -> bytes:
    """Its body. NoAnswer."""
    return b"".join([piece async for piece in served.body])


async def _copy(request: web.Request, response: web.StreamResponse, served: Served) -> None:
    await response.prepare(request)
    try:
        async for piece in served.body:
            await write(response, piece)
    except BranchdError as error:  # all that can be told now is that it is not whole
        raise ConnectionAbortedError(error.detail) from None


# Waiting


class Look(Value):
    """An instance of another branch, as it is there."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def instance(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = json.loads(self.body) if self.status == HTTPStatus.OK else None
        return found

    @property
    def settled(self) -> bool:
        """It is as it is wanted, or gone."""
        return self.status == HTTPStatus.NOT_FOUND or (self.instance is not None and _as_wanted(self.instance))


def _as_wanted(instance: Mapping[str, Any]) -> bool:
    status = instance["status"]
    if status["wanted"] == Wanted.DOWN or status["deleting"]:
        return not status["deleting"] and status["pid"] is None and status["state"] in {"STOPPED", "EXITED", "FATAL"}
    return any(one["type"] == ConditionType.READY and one["status"] == Truth.TRUE for one in status["conditions"])


async def _look(mesh: Neighbours, to: Address, principal: Principal, app: str, name: str, seconds: float) -> Look:
    """As it is when it has settled, after at most so many seconds, a slice at most. NoRoute, NoAnswer, Unavailable."""
    target = f"/v1/apps/{app}/instances/{name}?wait={seconds:.3f}s"
    async with mesh.carrier.carry(to, principal, "GET", target, {}, b"", ANSWER_WITHIN + seconds) as served:
        return Look(served.status, served.headers, await whole(served))


async def settled(
    mesh: Neighbours, to: Address, principal: Principal, app: str, name: str, seconds: float
) -> Look | None:
    """As it is when it has settled, or when it cannot any more, or after so many seconds; None: nobody tells."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    seen = None
    while (left := end - loop.time()) > 0:
        began, patience = loop.time(), min(left, SLICE)
        try:
            seen = await _look(mesh, to, principal, app, name, patience)
        except (NoRoute, Unavailable):
            return seen
        early = loop.time() - began < patience * 0.9
        if seen.settled or early or seen.status != HTTPStatus.OK:
            return seen
    return seen


async def _waited(call: Call, mesh: Neighbours, to: Address, headers: Mapping[str, str]) -> web.StreamResponse:
    owner, app, seconds = mesh.name_of(to.id), call.path["app"], call.get(WAIT)
    if not call.route.changes:
        name, status = call.path["instance"], int(HTTPStatus.OK)
        first = await _look(mesh, to, call.principal, app, name, min(seconds, SLICE))
        if first.settled or first.status != HTTPStatus.OK or seconds <= SLICE:
            return _shown(call, owner, first.status, first)
        seconds -= SLICE
    else:
        async with _asked(call, mesh, to, headers) as served:
            first = Look(served.status, served.headers, await whole(served))
        status = first.status
        if status not in {HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED} or "etag" not in first.headers:
            return _shown(call, owner, status, first)
        name = json.loads(first.body)["name"]
    work = settled(mesh, to, call.principal, app, name, seconds)
    seen = await call.house.streams.during(call.request, work)
    if seen is None or seen.status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
        return _shown(call, owner, status, first)
    if seen.status == HTTPStatus.NOT_FOUND:
        deleted = call.request.method == "DELETE"
        return (
            _shown(call, owner, HTTPStatus.NO_CONTENT, Look(204, {}, b""))
            if deleted
            else _shown(call, owner, 404, seen)
        )
    done = status == HTTPStatus.ACCEPTED and seen.settled
    return _shown(call, owner, HTTPStatus.OK if done else status, seen, first.headers)


def _shown(
    call: Call, owner: str, status: int, seen: Look, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    named = {OWNER: owner, VIA: call.service.name}
    return web.Response(status=status, headers={**(headers or {}), **seen.headers, **named}, body=seen.body)
