"""Apps: defaults that their instances share."""

from enum import StrEnum
from typing import Any

from aiohttp import web

from branchd.api.answers import (
    IF_MATCH,
    IF_NONE_MATCH,
    NAME,
    PAGE,
    answer,
    app_answer,
    app_match,
    matches,
    must_be_new,
    nothing,
    page,
)
from branchd.api.parameters import FLAG, Parameter, one_of, text
from branchd.api.routing import About, Call, Routes
from branchd.core.access import Scope
from branchd.core.errors import Conflict, Stale, Unavailable
from branchd.core.spec import Spec
from branchd.wire.resources import App, Operation

route = Routes()


class Restarting(StrEnum):
    """How what runs takes up a change."""

    NO = "no"
    NOW = "now"  #: all at once
    ROLLING = "rolling"  #: one after the other, those that the change concerns


RESTART: Parameter[Restarting] = Parameter(
    "restart", one_of(Restarting), Restarting.NO, "Restart what runs, so that it takes effect: all at once, or rolling."
)
INSTANCE: Parameter[tuple[str, ...]] = Parameter("instance", text(63), (), "Only these.", True)
OUTDATED = Parameter("outdated", FLAG, False, "Only those that run with something else than their spec says.")
CASCADE = Parameter("cascade", FLAG, False, "Delete its instances too.")

#: an RFC 7396 patch: any part of a spec, null where the field is to go
Patch = dict[str, Any]


@route("GET", "/v1/apps", scope=Scope.READ, returns={200: list[App]}, query=(*PAGE, NAME), about=About.DEFINITION)
async def list_apps(call: Call) -> web.Response:
    """All apps."""
    shown = [app for app in call.service.apps.list() if matches(call.get(NAME), app.name)]
    return page(call, shown, lambda app: (app.name,))


@route("GET", "/v1/apps/{app}", scope=Scope.READ, returns={200: App}, about=About.DEFINITION)
async def get_app(call: Call) -> web.Response:
    """One app."""
    return app_answer(call, call.service.apps.get(call.path["app"]))


@route(
    "PUT",
    "/v1/apps/{app}",
    scope=Scope.ADMIN,
    body=Spec,
    returns={200: App, 201: App},
    headers=IF_MATCH | IF_NONE_MATCH,
    raises=(Conflict, Stale),
    about=About.DEFINITION,
)
async def put_app(call: Call) -> web.Response:
    """Creates it, or replaces its spec; running instances keep what they run with until they are restarted."""
    name = call.path["app"]
    app, created = await call.service.apps.put(name, call.body, app_match(call), must_be_new(call))
    return app_answer(call, app, 201 if created else 200)


@route(
    "PATCH",
    "/v1/apps/{app}",
    scope=Scope.ADMIN,
    body=Patch,
    returns={200: App, 202: Operation},
    query=(RESTART,),
    headers=IF_MATCH,
    raises=(Conflict, Stale, Unavailable),
    about=About.DEFINITION,
)
async def patch_app(call: Call) -> web.Response:
    """Changes parts of its spec, by RFC 7396; with `restart=rolling` 202 and the operation that restarts."""
    name, restart = call.path["app"], call.get(RESTART)
    if restart is Restarting.ROLLING:
        call.service.rolling.check(name)  # before anything is changed
    app = await call.service.apps.patch(name, call.body, app_match(call), restart is Restarting.NOW)
    if restart is Restarting.ROLLING:
        return begun(call.service.rolling.begin(call.principal, name, outdated=True))
    return app_answer(call, app)


@route(
    "DELETE",
    "/v1/apps/{app}",
    scope=Scope.ADMIN,
    returns={204: None},
    query=(CASCADE,),
    headers=IF_MATCH,
    raises=(Conflict, Stale),
    about=About.DEFINITION,
)
async def delete_app(call: Call) -> web.Response:
    """Deletes it. Refuses while it has instances, unless they go too; then it answers when those here are gone."""
    await call.service.apps.delete(call.path["app"], call.get(CASCADE), app_match(call))
    return nothing()


@route(
    "POST",
    "/v1/apps/{app}/actions/restart",
    scope=Scope.OPERATE,
    returns={202: Operation},
    query=(INSTANCE, OUTDATED),
    raises=(Conflict, Unavailable),
    about=About.BRANCH,
)
async def restart_app(call: Call) -> web.Response:
    """Restarts the instances of one branch one at a time, each when the one before is ready; stops where one is not."""
    names = call.get(INSTANCE) or None
    rolling = call.service.rolling
    return begun(rolling.begin(call.principal, call.path["app"], names, outdated=call.get(OUTDATED)))


def begun(operation: Operation) -> web.Response:
    return answer(operation, 202, Location=f"/v1/operations/{operation.id}")


@route(
    "POST",
    "/v1/apps/{app}/actions/publish",
    scope=Scope.ADMIN,
    returns={200: App},
    raises=(Conflict,),
    about=About.DEFINITION,
)
async def publish_app(call: Call) -> web.Response:
    """Makes this branch's own definition, with its queues, the neighbourhood's."""
    return app_answer(call, await call.service.apps.publish(call.path["app"]))


@route(
    "POST",
    "/v1/apps/{app}/actions/adopt",
    scope=Scope.ADMIN,
    returns={200: App},
    raises=(Conflict,),
    about=About.DEFINITION,
)
async def adopt_app(call: Call) -> web.Response:
    """Drops this branch's own definition, with its queues, for the neighbourhood's."""
    return app_answer(call, await call.service.apps.adopt(call.path["app"]))
