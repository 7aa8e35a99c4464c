"""New instances: one or many, on a branch of the caller's choice or on the one that has room for them."""

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from branchd.api import problems
from branchd.api.answers import IF_MATCH, IF_NONE_MATCH, answer, instance_answer, match, must_be_new
from branchd.api.forwarding import OWNER, VIA, is_here, settled
from branchd.api.handlers.instances import present, wait
from branchd.api.routing import WAIT, WHERE, About, Call, Routes
from branchd.branch.mesh.neighbours import Made, Neighbours
from branchd.core.access import Scope
from branchd.core.errors import BranchdError, Conflict, Fault, Invalid, NoCapacity, Stale, Unavailable
from branchd.core.spec import Spec, Wanted
from branchd.core.value import Value
from branchd.wire.decode import encode
from branchd.wire.resources import Instance
from branchd.wire.spec import accept

route = Routes()

IDEMPOTENCY_KEY = "Idempotency-Key"

#: characters
LONGEST_KEY = 255

#: instances of one request
MOST_OF_REQUEST = 1000

#: one that is here, or elsewhere
One = Instance | Made


class NewInstance(Spec):
    """A spec, and the name; without one branchd makes one up. With `count` so many, and then no name."""

    name: str | None = None
    count: int | None = None


class Several(Value):
    """What became of a request with `count`."""

    items: tuple[Instance, ...]
    problems: tuple[Mapping[str, Any], ...]  #: one for each that could not be made


@route(
    "POST",
    "/v1/apps/{app}/instances",
    scope=Scope.ADMIN,
    body=NewInstance,
    returns={201: Instance | Several, 207: Several},
    query=(WAIT,),
    headers={IDEMPOTENCY_KEY: f"The caller's own name for this request, at most {LONGEST_KEY} characters."},
    raises=(Conflict, NoCapacity, Unavailable),
    about=About.NEW,
)
async def create_instance(call: Call) -> web.Response:
    """Creates one, or `count` of them. The same request under the same Idempotency-Key creates them once.

    In a neighbourhood it goes to the branch with the most room, unless `branch` says where it belongs for good.
    """
    key = call.request.headers.get(IDEMPOTENCY_KEY)
    if key is not None and not (0 < len(key) <= LONGEST_KEY and key.isprintable()):
        raise Invalid([Fault(f"{IDEMPOTENCY_KEY}:", "is not valid", f"1 to {LONGEST_KEY} printable characters")])
    body, count = _counted(call.body)
    if count is None:
        return _shown(call, await _up(call, await _make(call, body, key)), 201)
    return await _several(call, body, key, count)


@route(
    "PUT",
    "/v1/apps/{app}/instances/{instance}",
    scope=Scope.ADMIN,
    body=Spec,
    returns={200: Instance, 201: Instance},
    query=(WAIT,),
    headers=IF_MATCH | IF_NONE_MATCH,
    raises=(Conflict, NoCapacity, Stale, Unavailable),
    about=About.NEW,
)
async def put_instance(call: Call) -> web.Response:
    """Creates it, or replaces its spec."""
    app, name = call.path["app"], call.path["instance"]
    expected = match(call, lambda: present(call))
    new = must_be_new(call)
    if _mesh(call) is not None and not is_here(call):  # nor anywhere else: else it would have been carried there
        made = await _make(call, {**accept(call.body, {}), "name": name}, None)
        return _shown(call, await _up(call, made), 201)
    limited = call.principal.limited
    instance, created = await call.service.instances.put(app, name, call.body, expected, new, limited)
    return _shown(call, await _up(call, instance), 201 if created else 200)


def _mesh(call: Call) -> Neighbours | None:
    """Where the branch is not the caller's choice."""
    return call.neighbours if call.get(WHERE) is None else None


def _counted(body: Any) -> tuple[Any, int | None]:
    """The body of one, and how many. Invalid."""
    if not isinstance(body, dict) or body.get("count") is None:
        return body, None
    one = {name: value for name, value in body.items() if name != "count"}
    count, faults = body["count"], []
    if type(count) is not int or not 1 <= count <= MOST_OF_REQUEST:
        faults.append(Fault("/count", f"{count!r:.60} is not a number in range", f"1 to {MOST_OF_REQUEST}"))
    if one.pop("name", None) is not None:
        faults.append(Fault("/name", "excludes count", "leave one of the two out"))
    if faults:
        try:
            accept(one, {})
        except Invalid as invalid:
            faults += invalid.faults
        raise Invalid(faults)
    return one, count


async def _make(call: Call, body: Any, key: str | None) -> One:
    (made,) = await _make_all(call, body, [key])
    if isinstance(made, BranchdError):
        raise made
    return made


async def _make_all(call: Call, body: Any, keys: list[str | None]) -> list[One | BranchdError]:
    """One for each Idempotency-Key."""
    service, app, mesh = call.service, call.path["app"], _mesh(call)
    results: list[One | BranchdError] = []
    if mesh is None:
        for key in keys:
            try:
                results.append((await service.instances.create(call.principal, app, body, key))[0])
            except BranchdError as error:
                results.append(error)
        return results
    for made in await mesh.create(call.principal, app, body, keys):
        if isinstance(made, Made) and made.owner.id == service.id:
            results.append(service.instances.get(app, made.instance["name"]))
        else:
            results.append(made)
    return results


async def _several(call: Call, body: Any, key: str | None, count: int) -> web.Response:
    """The first problem alone where nothing could be made."""
    # No caller can send such keys himself: they have a character that does not print.
    results = await _make_all(call, body, [None if key is None else f"{key}\0{number}" for number in range(count)])
    failures = [result for result in results if isinstance(result, BranchdError)]
    if len(failures) == count:
        raise failures[0]
    made = await asyncio.gather(*(_up(call, one) for one in results if not isinstance(one, BranchdError)))
    items = [one.instance if isinstance(one, Made) else encode(one) for one in made]
    told = [problems.shown(problems.problem(failure)) for failure in failures]
    return answer({"items": items, "problems": told}, 207 if failures else 201)


async def _up(call: Call, made: One) -> One:
    """As it is when it is as wanted, where that was asked for."""
    seconds = call.get(WAIT)
    if not seconds:
        return made
    if isinstance(made, Instance):
        await wait(call, made.name, "ready" if made.status.wanted is Wanted.UP else "stopped")
        return call.service.instances.get(made.app, made.name)
    assert call.neighbours is not None
    app, name = call.path["app"], made.instance["name"]
    waiting = settled(call.neighbours, made.owner, call.principal, app, name, seconds)
    seen = await call.house.streams.during(call.request, waiting)
    return made if seen is None or seen.instance is None else Made(seen.instance, made.made, made.owner)


def _shown(call: Call, made: One, status: int) -> web.Response:
    if isinstance(made, Instance):
        return instance_answer(call, made, status)
    app, name = made.instance["app"], made.instance["name"]
    headers = {
        "ETag": f'"{made.owner.id}.{made.instance["generation"]}"',
        "Location": f"/v1/apps/{app}/instances/{name}",
        OWNER: made.instance["branch"],
        VIA: call.service.name,
    }
    return answer(made.instance, status, **headers)
