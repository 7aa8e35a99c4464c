"""Long work, what begins it, and what a branch finds wrong with itself."""

from typing import TYPE_CHECKING

from aiohttp import web

from branchd.api.answers import PAGE, Elsewhere, Place, answer, page
from branchd.api.forwarding import branch as branch_of
from branchd.api.parameters import FLAG, Parameter
from branchd.api.routing import About, Call, Routes
from branchd.api.scatter import gather, objects
from branchd.branch.ending import Ending
from branchd.core.access import Scope
from branchd.core.diagnosis import Diagnosis
from branchd.core.errors import Conflict, Denied, NotFound, Unavailable
from branchd.core.value import Value
from branchd.wire.resources import Branch, Explanation, Operation

if TYPE_CHECKING:
    from branchd.branch.mesh.mesh import Mesh

route = Routes()

PINNED = Parameter("pinned", FLAG, False, "Stop the pinned instances too, at the end; they start again with undrain.")

_OPERATION = "/v1/operations/{operation}"
_ACTIONS = "/v1/branches/{branch}/actions"


class Doctor(Value):
    """What was looked at, the failures first."""

    branch: str
    findings: tuple[Diagnosis, ...]


@route("GET", "/v1/operations", scope=Scope.READ, returns={200: list[Operation]}, query=PAGE, about=About.NEIGHBOURHOOD)
async def list_operations(call: Call) -> web.Response:
    """Operations of all branches, the oldest first; the last ones that have ended are kept while the daemon runs."""
    mesh = call.neighbours
    elsewhere = Elsewhere()
    if mesh is not None:
        elsewhere = await gather(call, mesh, (*mesh.others(), *mesh.lost()), lambda one: (one["started_at"], one["id"]))
    return page(call, sorted(call.service.operations.list(), key=_place), _place, elsewhere=elsewhere)


@route("GET", _OPERATION, scope=Scope.READ, returns={200: Operation}, about=About.BRANCH)
async def get_operation(call: Call) -> web.Response:
    """One operation with its steps."""
    return answer(call.service.operations.get(call.path["operation"]))


@route("DELETE", _OPERATION, scope=Scope.OPERATE, returns={200: Operation}, raises=(Conflict,), about=About.BRANCH)
async def cancel_operation(call: Call) -> web.Response:
    """Cancels it: what is done stays done, and what is not stays as it is."""
    return answer(await call.service.operations.cancel(call.path["operation"]))


@route(
    "POST",
    f"{_ACTIONS}/drain",
    scope=Scope.OPERATE,
    returns={202: Operation},
    query=(PINNED,),
    raises=(Conflict, Unavailable),
    about=About.BRANCH,
)
async def drain_branch(call: Call) -> web.Response:
    """Moves its placed instances to other branches, and takes nothing new until it is undrained."""
    operation = await _mesh(call).draining.begin(call.principal, pinned=call.get(PINNED))
    return answer(operation, 202, Location=f"/v1/operations/{operation.id}")


@route(
    "POST", f"{_ACTIONS}/undrain", scope=Scope.OPERATE, returns={200: Branch}, raises=(Conflict,), about=About.BRANCH
)
async def undrain_branch(call: Call) -> web.Response:
    """Takes new instances again; what has not moved yet stays."""
    await _mesh(call).draining.end()
    return answer(call.service.branch())


@route(
    "POST", f"{_ACTIONS}/confirm", scope=Scope.OPERATE, returns={200: Branch}, raises=(Conflict,), about=About.BRANCH
)
async def confirm_absence(call: Call) -> web.Response:
    """Says that branches which are missing are gone: it concludes what it otherwise does not for 5 or 10 minutes."""
    _mesh(call).presence.confirm()
    return answer(call.service.branch())


@route("POST", f"{_ACTIONS}/shutdown", scope=Scope.ADMIN, returns={202: Branch}, raises=(Denied,))
async def shut_branch_down(call: Call) -> web.Response:
    """Ends this daemon as a TERM does: every instance stops by its stop plan. Only the branch's own API takes it."""
    if branch_of(call, call.path["branch"]) is not None:
        raise Denied("a branch is shut down by its own API alone", "ask it there, on its machine")
    branch = call.service.branch()
    call.service.endings.ask(Ending.STOP)
    return answer(branch, 202)


@route("POST", f"{_ACTIONS}/reload", scope=Scope.ADMIN, returns={202: Branch}, raises=(Denied, Conflict))
async def reload_branch(call: Call) -> web.Response:
    """Has the daemon replaced in place by the code and configuration of now; what runs goes on, with its processes.

    They are tried first: 409 says why they do not start, and the daemon goes on as it was. Else it answers before the
    daemon is replaced; from then on `started_at` is another one. Only the branch's own API takes it.
    """
    if branch_of(call, call.path["branch"]) is not None:
        raise Denied("a branch is reloaded by its own API alone", "ask it there, on its machine")
    branch = call.service.branch()
    await call.service.endings.reload()
    return answer(branch, 202)


@route("GET", "/v1/doctor", scope=Scope.READ, returns={200: Doctor}, about=About.BRANCH)
async def doctor(call: Call) -> web.Response:
    """What is wrong with this branch, and the cure of each."""
    return answer(Doctor(call.service.name, tuple(call.service.diagnoses())))


@route(
    "GET",
    "/v1/apps/{app}/instances/{instance}/explain",
    scope=Scope.READ,
    returns={200: Explanation},
    about=About.NEIGHBOURHOOD,
)
async def explain_instance(call: Call) -> web.Response:
    """Why it is on the branch where it is: who was asked for room, what they answered, who was offered it.

    The branch that was asked to create it remembers, for its last thousand placements.
    """
    app, name = call.path["app"], call.path["instance"]
    mesh = call.service.mesh
    if mesh is not None and (found := mesh.explain(app, name)) is not None:
        return answer(found)
    others = [] if call.neighbours is None else await objects(call, call.neighbours)
    if not others:
        raise NotFound(f"no branch remembers how {app}:{name} was placed", "pinned instances are not placed")
    return answer(max(others, key=lambda one: one["at"]))


def _mesh(call: Call) -> "Mesh":
    if call.service.mesh is None:
        raise Conflict("this branch is alone: it has no broker, and there is nowhere to move to", "set [mesh] broker")
    return call.service.mesh


def _place(operation: Operation) -> Place:
    return operation.started_at, operation.id
