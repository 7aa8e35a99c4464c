"""The branch itself: health, who asks, the branches that it knows, and the API's own description."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from branchd.api.answers import NAME, PAGE, answer, matches, page
from branchd.api.routing import Call, Routes
from branchd.core.access import Scope
from branchd.core.errors import NotFound, Unavailable
from branchd.wire.resources import Branch, WhoAmI

route = Routes()


@dataclass(frozen=True, slots=True)
class Health:
    status: str  #: always "ok": what is not answers otherwise


@route("GET", "/healthz", scope=None, returns={200: Health})
async def healthz(_call: Call) -> web.Response:
    """Whether the daemon lives: it does when it answers."""
    return answer(Health("ok"))


@route("GET", "/readyz", scope=None, returns={200: Health}, raises=(Unavailable,))
async def readyz(call: Call) -> web.Response:
    """Whether it has taken over what ran before and accepts work."""
    if not call.service.ready:
        raise Unavailable("; ".join(call.service.problems()) or "not ready")
    return answer(Health("ok"))


@route("GET", "/v1/whoami", scope=Scope.READ, returns={200: WhoAmI})
async def whoami(call: Call) -> web.Response:
    """Who asks, and what they may do."""
    return answer(WhoAmI(call.principal.name, call.principal.scope, call.service.name))


@route("GET", "/v1/openapi.json", scope=Scope.READ, returns={200: dict[str, Any]})
async def openapi(call: Call) -> web.Response:
    """This document."""
    return web.Response(body=call.house.document(), content_type="application/json")


@route("GET", "/v1/branches", scope=Scope.READ, returns={200: list[Branch]}, query=(*PAGE, NAME))
async def list_branches(call: Call) -> web.Response:
    """The branches that this one knows, itself among them."""
    known = [branch for branch in (call.service.branch(),) if matches(call.get(NAME), branch.name)]
    return page(call, known, lambda branch: (branch.name,))


@route("GET", "/v1/branches/{branch}", scope=Scope.READ, returns={200: Branch})
async def get_branch(call: Call) -> web.Response:
    """One branch, by name or id."""
    here = call.service.branch()
    if call.path["branch"] not in {here.name, here.id}:
        raise NotFound(f"no branch {call.path['branch']} is known here", f"this one is {here.name}")
    return answer(here)
