"""The branch itself: health, who asks, the branches that it knows, and the API's own description."""

from typing import Any

from aiohttp import web
from msgspec.structs import replace

from branchd.api.answers import NAME, PAGE, Elsewhere, Place, answer, matches, page
from branchd.api.forwarding import branch as branch_of
from branchd.api.forwarding import carried
from branchd.api.parameters import FLAG, Parameter
from branchd.api.routing import About, Call, Routes
from branchd.api.scatter import PATIENCE, gather
from branchd.core.access import Scope
from branchd.core.errors import Conflict, NoAnswer, NoRoute, Unavailable
from branchd.core.peers import Announcement, BranchState
from branchd.core.value import Value
from branchd.wire.resources import Branch, WhoAmI, timestamp

route = Routes()

FRESH = Parameter("fresh", FLAG, False, "Ask every branch, instead of showing what it said last.")


class Health(Value):
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


@route(
    "GET",
    "/v1/branches",
    scope=Scope.READ,
    returns={200: list[Branch]},
    query=(*PAGE, NAME, FRESH),
    about=About.NEIGHBOURHOOD,
)
async def list_branches(call: Call) -> web.Response:
    """The branches that this one knows, itself among them: the others as they said last, or with `fresh` as now."""
    mesh = call.neighbours
    others = [] if mesh is None else [other for other in mesh.others() if matches(call.get(NAME), other.name)]
    elsewhere = Elsewhere()
    if mesh is not None and call.get(FRESH):
        elsewhere = await gather(call, mesh, others, lambda branch: (branch["name"], branch["id"]))
        others = [other for other in others if other.name in elsewhere.unreachable]
    here = [branch for branch in (call.service.branch(),) if matches(call.get(NAME), branch.name)]
    known = sorted([*here, *map(_announced, others)], key=_place)
    return page(call, known, _place, elsewhere=elsewhere)


@route(
    "GET",
    "/v1/branches/{branch}",
    scope=Scope.READ,
    returns={200: Branch},
    raises=(Conflict,),
    about=About.NEIGHBOURHOOD,
)
async def get_branch(call: Call) -> web.StreamResponse:
    """One branch, by name or id; as it said last where it does not answer."""
    to, mesh = branch_of(call, call.path["branch"]), call.neighbours
    if to is None or mesh is None:
        return answer(call.service.branch())
    said = next(other for other in mesh.others() if other.id == to.id)
    try:
        return await carried(call, mesh, to, patience=PATIENCE)
    except NoRoute:
        return answer(_announced(replace(said, state=BranchState.CLOSED)))
    except NoAnswer:
        return answer(_announced(replace(said, state=BranchState.SILENT)))
    except Unavailable:  # this branch is the one that is cut off
        return answer(_announced(said))


def _place(branch: Branch) -> Place:
    return branch.name, branch.id


def _announced(said: Announcement) -> Branch:
    return Branch(
        id=said.id,
        name=said.name,
        state=said.state,
        version=said.version,
        slots=said.slots,
        reserved=said.reserved,
        labels=said.labels,
        address=said.address,
        seen_at=timestamp(said.at),
        load={},
    )
