"""Apps: defaults that their instances share."""

from typing import Any

from aiohttp import web

from branchd.api.answers import (
    IF_MATCH,
    IF_NONE_MATCH,
    NAME,
    PAGE,
    app_answer,
    app_match,
    matches,
    must_be_new,
    nothing,
    page,
)
from branchd.api.parameters import FLAG, Form, Parameter, Unfit
from branchd.api.routing import About, Call, Routes
from branchd.core.access import Scope
from branchd.core.errors import Conflict, Stale
from branchd.core.spec import Spec
from branchd.wire.resources import App

route = Routes()


def _now(given: str) -> bool:
    if given == "rolling":
        raise Unfit("rolling restarts are not possible yet", "restart=now restarts all of them at once")
    if given != "now":
        raise Unfit(f"{given[:40]!r} is not known", "now")
    return True


RESTART: Parameter[bool] = Parameter(
    "restart", Form(_now, {"type": "string", "enum": ["now"]}), False, "Restart what runs, so that it takes effect."
)
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
    returns={200: App},
    query=(RESTART,),
    headers=IF_MATCH,
    raises=(Conflict, Stale),
    about=About.DEFINITION,
)
async def patch_app(call: Call) -> web.Response:
    """Changes parts of its spec, by RFC 7396."""
    name = call.path["app"]
    return app_answer(call, await call.service.apps.patch(name, call.body, app_match(call), call.get(RESTART)))


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
