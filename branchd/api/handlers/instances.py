"""Instances: created, changed, started and stopped, listed."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web

from branchd.api.answers import (
    IF_MATCH,
    IF_NONE_MATCH,
    NAME,
    PAGE,
    answer,
    instance_answer,
    match,
    matches,
    must_be_new,
    nothing,
    page,
)
from branchd.api.handlers.apps import RESTART, Patch
from branchd.api.parameters import Parameter, duration, one_of, text
from branchd.api.routing import Call, Routes
from branchd.core.access import Scope
from branchd.core.errors import Conflict, Fault, Invalid, NotFound, Stale, Unavailable
from branchd.core.lifecycle import State
from branchd.core.spec import Spec, Wanted
from branchd.wire.decode import decode
from branchd.wire.resources import Instance, Stats

route = Routes()

#: seconds that a request may wait; a caller that waits longer asks again
LONGEST_WAIT = 3600.0

WAIT = Parameter("wait", duration(LONGEST_WAIT), 0.0, "Answer when it has come to that, after so long at the latest.")
STATE: Parameter[tuple[State, ...]] = Parameter("state", one_of(State), (), "Only in one of these states.", True)
LABEL: Parameter[tuple[str, ...]] = Parameter(
    "label", text(400, r"[^=]+=.*", "NAME=VALUE"), (), "Only with all of these labels, each NAME=VALUE.", True
)
BRANCH: Parameter[str | None] = Parameter("branch", text(255), None, "Only on branches whose name matches.")
FILTERS = (*PAGE, NAME, STATE, LABEL, BRANCH)

IDEMPOTENCY_KEY = "Idempotency-Key"

#: characters
LONGEST_KEY = 255


@dataclass(frozen=True, slots=True)
class NewInstance(Spec):
    """A spec, and the name; without one branchd makes one up."""

    name: str | None = None


@dataclass(frozen=True, slots=True)
class Signal:
    signal: str  #: such as "HUP"


@route("GET", "/v1/instances", scope=Scope.READ, returns={200: list[Instance]}, query=FILTERS)
async def list_all_instances(call: Call) -> web.Response:
    """Instances of all apps."""
    instances = call.service.instances.list()
    call.house.encoded.prune(instances)
    return _page(call, instances)


@route("GET", "/v1/apps/{app}/instances", scope=Scope.READ, returns={200: list[Instance]}, query=FILTERS)
async def list_instances(call: Call) -> web.Response:
    """Instances of one app."""
    return _page(call, call.service.instances.list(call.path["app"]))


def _page(call: Call, instances: list[Instance]) -> web.Response:
    name, branch, states = call.get(NAME), call.get(BRANCH), call.get(STATE)
    labels = [label.partition("=")[::2] for label in call.get(LABEL)]
    if name or branch or states or labels:
        instances = [
            instance
            for instance in instances
            if matches(name, instance.name)
            and matches(branch, instance.branch)
            and (not states or instance.status.state in states)
            and all(instance.effective.get("labels", {}).get(label) == value for label, value in labels)
        ]
    return page(call, instances, lambda instance: (instance.app, instance.name), call.house.encoded.one)


@route(
    "POST",
    "/v1/apps/{app}/instances",
    scope=Scope.ADMIN,
    body=NewInstance,
    returns={201: Instance},
    query=(WAIT,),
    headers={IDEMPOTENCY_KEY: f"The caller's own name for this request, at most {LONGEST_KEY} characters; kept a day."},
    raises=(Conflict, Unavailable),
)
async def create_instance(call: Call) -> web.Response:
    """Creates one. The same request under the same Idempotency-Key creates it once."""
    key = call.request.headers.get(IDEMPOTENCY_KEY)
    if key is not None and not (0 < len(key) <= LONGEST_KEY and key.isprintable()):
        raise Invalid([Fault(f"{IDEMPOTENCY_KEY}:", "is not valid", f"1 to {LONGEST_KEY} printable characters")])
    instance, _created = await call.service.instances.create(call.principal, call.path["app"], call.body, key)
    return await _when_up(call, instance, 201)


@route("GET", "/v1/apps/{app}/instances/{instance}", scope=Scope.READ, returns={200: Instance})
async def get_instance(call: Call) -> web.Response:
    """One instance."""
    return instance_answer(call, _present(call))


@route(
    "PUT",
    "/v1/apps/{app}/instances/{instance}",
    scope=Scope.ADMIN,
    body=Spec,
    returns={200: Instance, 201: Instance},
    query=(WAIT,),
    headers=IF_MATCH | IF_NONE_MATCH,
    raises=(Conflict, Stale, Unavailable),
)
async def put_instance(call: Call) -> web.Response:
    """Creates it, or replaces its spec."""
    app, name = call.path["app"], call.path["instance"]
    expected = match(call, lambda: _present(call))
    instance, created = await call.service.instances.put(app, name, call.body, expected, must_be_new(call))
    return await _when_up(call, instance, 201 if created else 200)


@route(
    "PATCH",
    "/v1/apps/{app}/instances/{instance}",
    scope=Scope.ADMIN,
    body=Patch,
    returns={200: Instance},
    query=(RESTART,),
    headers=IF_MATCH,
    raises=(Conflict, Stale),
)
async def patch_instance(call: Call) -> web.Response:
    """Changes parts of its spec, by RFC 7396; null means: as the app has it."""
    app, name = call.path["app"], call.path["instance"]
    expected = match(call, lambda: _present(call))
    return instance_answer(call, await call.service.instances.patch(app, name, call.body, expected, call.get(RESTART)))


@route(
    "DELETE",
    "/v1/apps/{app}/instances/{instance}",
    scope=Scope.ADMIN,
    returns={202: Instance, 204: None},
    query=(WAIT,),
    headers=IF_MATCH,
    raises=(Stale,),
)
async def delete_instance(call: Call) -> web.Response:
    """Stops it and deletes it: 204 when it is gone, 202 while it stops. Its name is free when it is gone."""
    match(call, lambda: _present(call))
    await call.service.instances.delete(call.path["app"], call.path["instance"])
    if call.get(WAIT):
        await _wait(call, call.path["instance"], "gone")
    try:
        return instance_answer(call, _present(call), 202)
    except NotFound:
        return nothing()


_ACTIONS = "/v1/apps/{app}/instances/{instance}/actions"
_DONE: dict[int, Any] = {200: Instance, 202: Instance}


@route("POST", f"{_ACTIONS}/start", scope=Scope.OPERATE, returns=_DONE, query=(WAIT,), raises=(Conflict, Unavailable))
async def start_instance(call: Call) -> web.Response:
    """Wants it up: 202, or with `wait` 200 when it is ready."""
    return await _act(call, call.service.instances.start, "ready")


@route("POST", f"{_ACTIONS}/stop", scope=Scope.OPERATE, returns=_DONE, query=(WAIT,), raises=(Conflict,))
async def stop_instance(call: Call) -> web.Response:
    """Wants it down: 202, or with `wait` 200 when it has stopped."""
    return await _act(call, call.service.instances.stop, "stopped")


@route("POST", f"{_ACTIONS}/restart", scope=Scope.OPERATE, returns=_DONE, query=(WAIT,), raises=(Conflict, Unavailable))
async def restart_instance(call: Call) -> web.Response:
    """Stops it and starts it: 202, or with `wait` 200 when it is ready."""
    return await _act(call, call.service.instances.restart, "ready")


@route("POST", f"{_ACTIONS}/signal", scope=Scope.OPERATE, body=Signal, returns={200: Instance}, raises=(Conflict,))
async def signal_instance(call: Call) -> web.Response:
    """Sends a signal to its main process."""
    signal = decode(Signal, call.body).signal
    return instance_answer(call, await call.service.instances.signal(call.path["app"], call.path["instance"], signal))


@route("GET", "/v1/apps/{app}/instances/{instance}/stats", scope=Scope.READ, returns={200: Stats})
async def get_stats(call: Call) -> web.Response:
    """What its processes use now, and what the Celery worker says of itself."""
    return answer(await call.service.stats(call.path["app"], call.path["instance"]))


def _present(call: Call) -> Instance:
    return call.service.instances.get(call.path["app"], call.path["instance"])


async def _act(
    call: Call, action: Callable[[str, str], Awaitable[Instance]], until: Literal["ready", "stopped"]
) -> web.Response:
    instance = await action(call.path["app"], call.path["instance"])
    reached = bool(call.get(WAIT)) and await _wait(call, instance.name, until)
    return instance_answer(call, _present(call), 200 if reached else 202)


async def _when_up(call: Call, instance: Instance, status: int) -> web.Response:
    if call.get(WAIT):
        up = instance.status.wanted is Wanted.UP
        await _wait(call, instance.name, "ready" if up else "stopped")
        instance = call.service.instances.get(instance.app, instance.name)
    return instance_answer(call, instance, status)


async def _wait(call: Call, name: str, what: Literal["ready", "stopped", "gone"]) -> bool:
    """False also when the server stops meanwhile."""
    waiting = call.service.instances.wait(call.path["app"], name, what, call.get(WAIT))
    return bool(await call.house.streams.during(call.request, waiting))
