"""Instances: listed, changed, started and stopped, deleted. How they are created stands in creation.py."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from aiohttp import web

from branchd.api.answers import (
    IF_MATCH,
    NAME,
    PAGE,
    Elsewhere,
    Place,
    answer,
    instance_answer,
    match,
    matches,
    nothing,
    page,
)
from branchd.api.encoded import Encoded
from branchd.api.handlers.apps import RESTART, Patch, Restarting, begun
from branchd.api.parameters import Parameter, one_of, text
from branchd.api.routing import WAIT, About, Call, Routes
from branchd.api.scatter import gather
from branchd.core.access import Scope
from branchd.core.errors import Conflict, NotFound, Stale, Unavailable
from branchd.core.lifecycle import State
from branchd.core.spec import Wanted
from branchd.core.value import Value
from branchd.wire.decode import decode
from branchd.wire.resources import Instance, InstanceStatus, Operation, Stats

route = Routes()

STATE: Parameter[tuple[State, ...]] = Parameter("state", one_of(State), (), "Only in one of these states.", True)
LABEL: Parameter[tuple[str, ...]] = Parameter(
    "label", text(400, r"[^=]+=.*", "NAME=VALUE"), (), "Only with all of these labels, each NAME=VALUE.", True
)
BRANCH: Parameter[str | None] = Parameter("branch", text(255), None, "Only on branches whose name matches.")
APP: Parameter[str | None] = Parameter("app", text(63), None, "Only of this app.")
FILTERS = (*PAGE, NAME, STATE, LABEL, BRANCH)


class Signal(Value):
    signal: str  #: such as "HUP"


@route(
    "GET",
    "/v1/instances",
    scope=Scope.READ,
    returns={200: list[Instance]},
    query=(*FILTERS, APP),
    about=About.NEIGHBOURHOOD,
)
async def list_all_instances(call: Call) -> web.Response:
    """Instances of all apps, of all branches."""
    return await _all(call, call.house.encoded)


@route(
    "GET",
    "/v1/status",
    scope=Scope.READ,
    returns={200: list[InstanceStatus]},
    query=(*FILTERS, APP),
    about=About.NEIGHBOURHOOD,
)
async def list_statuses(call: Call) -> web.Response:
    """How the instances of all apps are, of all branches: of each what changes, without what was asked for."""
    return await _all(call, call.house.statuses)


async def _all(call: Call, shown: Encoded) -> web.Response:
    instances = call.service.instances.list()
    for each in (call.house.encoded, call.house.statuses):
        each.prune(instances)
    if (app := call.get(APP)) is not None:
        instances = [instance for instance in instances if instance.app == app]
    return _page(call, instances, await _elsewhere(call), shown)


@route(
    "GET",
    "/v1/apps/{app}/instances",
    scope=Scope.READ,
    returns={200: list[Instance]},
    query=FILTERS,
    about=About.NEIGHBOURHOOD,
)
async def list_instances(call: Call) -> web.Response:
    """Instances of one app, of all branches."""
    elsewhere = await _elsewhere(call)
    try:
        instances = call.service.instances.list(call.path["app"])
    except NotFound:
        if not elsewhere.known and not elsewhere.unreachable:
            raise
        instances = []
    return _page(call, instances, elsewhere, call.house.encoded)


async def _elsewhere(call: Call) -> Elsewhere:
    mesh, branch = call.neighbours, call.get(BRANCH)
    if mesh is None:
        return Elsewhere()
    asked = [other for other in (*mesh.others(), *mesh.lost()) if matches(branch, other.name)]
    return await gather(call, mesh, asked, _place)


def _place(instance: Mapping[str, Any]) -> Place:
    return instance["app"], instance["name"], instance["branch"]


def _page(call: Call, instances: list[Instance], elsewhere: Elsewhere, shown: Encoded) -> web.Response:
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
    return page(call, instances, lambda one: (one.app, one.name, one.branch), shown.one, elsewhere)


@route(
    "GET",
    "/v1/apps/{app}/instances/{instance}",
    scope=Scope.READ,
    returns={200: Instance},
    query=(WAIT,),
    raises=(Conflict,),
    about=About.INSTANCE,
)
async def get_instance(call: Call) -> web.Response:
    """One instance; with `wait`, when it is as it is wanted: ready, stopped, or gone, and then there is none."""
    instance = present(call)
    if call.get(WAIT):
        await wait(call, instance.name, _wanted(instance))
        instance = present(call)
    return instance_answer(call, instance)


def _wanted(instance: Instance) -> Literal["ready", "stopped", "gone"]:
    if instance.status.deleting:
        return "gone"
    return "ready" if instance.status.wanted is Wanted.UP else "stopped"


@route(
    "PATCH",
    "/v1/apps/{app}/instances/{instance}",
    scope=Scope.ADMIN,
    body=Patch,
    returns={200: Instance, 202: Operation},
    query=(RESTART,),
    headers=IF_MATCH,
    raises=(Conflict, Stale, Unavailable),
    about=About.INSTANCE,
)
async def patch_instance(call: Call) -> web.Response:
    """Changes parts of its spec, by RFC 7396; null means: as the app has it."""
    app, name = call.path["app"], call.path["instance"]
    expected = match(call, lambda: present(call))
    now, limited = call.get(RESTART) is Restarting.NOW, call.principal.limited
    if call.get(RESTART) is Restarting.ROLLING:
        call.service.rolling.check(app)
    instance = await call.service.instances.patch(app, name, call.body, expected, now, limited=limited)
    if call.get(RESTART) is Restarting.ROLLING:
        return begun(call.service.rolling.begin(call.principal, app, [name], outdated=True))
    return instance_answer(call, instance)


@route(
    "DELETE",
    "/v1/apps/{app}/instances/{instance}",
    scope=Scope.ADMIN,
    returns={202: Instance, 204: None},
    query=(WAIT,),
    headers=IF_MATCH,
    raises=(Conflict, Stale),
    about=About.INSTANCE,
)
async def delete_instance(call: Call) -> web.Response:
    """Stops it and deletes it: 204 when it is gone, 202 while it stops. Its name is free when it is gone."""
    match(call, lambda: present(call))
    await call.service.instances.delete(call.path["app"], call.path["instance"], call.principal.limited)
    if call.get(WAIT):
        await wait(call, call.path["instance"], "gone")
    try:
        return instance_answer(call, present(call), 202)
    except NotFound:
        return nothing()


_ACTIONS = "/v1/apps/{app}/instances/{instance}/actions"
_DONE: dict[int, Any] = {200: Instance, 202: Instance}


@route(
    "POST",
    f"{_ACTIONS}/start",
    scope=Scope.OPERATE,
    returns=_DONE,
    query=(WAIT,),
    raises=(Conflict, Unavailable),
    about=About.INSTANCE,
)
async def start_instance(call: Call) -> web.Response:
    """Wants it up: 202, or with `wait` 200 when it is ready."""
    return await _act(call, call.service.instances.start, "ready")


@route(
    "POST",
    f"{_ACTIONS}/stop",
    scope=Scope.OPERATE,
    returns=_DONE,
    query=(WAIT,),
    raises=(Conflict,),
    about=About.INSTANCE,
)
async def stop_instance(call: Call) -> web.Response:
    """Wants it down: 202, or with `wait` 200 when it has stopped."""
    return await _act(call, call.service.instances.stop, "stopped")


@route(
    "POST",
    f"{_ACTIONS}/restart",
    scope=Scope.OPERATE,
    returns=_DONE,
    query=(WAIT,),
    raises=(Conflict, Unavailable),
    about=About.INSTANCE,
)
async def restart_instance(call: Call) -> web.Response:
    """Stops it and starts it: 202, or with `wait` 200 when it is ready."""
    return await _act(call, call.service.instances.restart, "ready")


@route(
    "POST",
    f"{_ACTIONS}/signal",
    scope=Scope.OPERATE,
    body=Signal,
    returns={200: Instance},
    raises=(Conflict,),
    about=About.INSTANCE,
)
async def signal_instance(call: Call) -> web.Response:
    """Sends a signal to its main process."""
    signal = decode(Signal, call.body).signal
    return instance_answer(call, await call.service.instances.signal(call.path["app"], call.path["instance"], signal))


@route(
    "GET",
    "/v1/apps/{app}/instances/{instance}/stats",
    scope=Scope.READ,
    returns={200: Stats},
    raises=(Conflict,),
    about=About.INSTANCE,
)
async def get_stats(call: Call) -> web.Response:
    """What its processes use now, and what the Celery worker says of itself."""
    return answer(await call.service.stats(call.path["app"], call.path["instance"]))


def present(call: Call) -> Instance:
    return call.service.instances.get(call.path["app"], call.path["instance"])


async def _act(
    call: Call, action: Callable[[str, str], Awaitable[Instance]], until: Literal["ready", "stopped"]
) -> web.Response:
    instance = await action(call.path["app"], call.path["instance"])
    reached = bool(call.get(WAIT)) and await wait(call, instance.name, until)
    return instance_answer(call, present(call), 200 if reached else 202)


async def wait(call: Call, name: str, what: Literal["ready", "stopped", "gone"]) -> bool:
    """False also when the server stops meanwhile."""
    waiting = call.service.instances.wait(call.path["app"], name, what, call.get(WAIT))
    return bool(await call.house.streams.during(call.request, waiting))
