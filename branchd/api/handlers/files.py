"""Definitions in files: how they differ from what was applied of them, and applying them."""

from aiohttp import web

from branchd.api.answers import answer
from branchd.api.parameters import Parameter, text
from branchd.api.routing import Call, Routes
from branchd.branch.files import Difference
from branchd.branch.operations import Progress
from branchd.core.access import Scope
from branchd.core.errors import Conflict
from branchd.wire.resources import Operation

route = Routes()

APP: Parameter[tuple[str, ...]] = Parameter("app", text(63), (), "Only of these apps.", True)


@route("GET", "/v1/files", scope=Scope.READ, returns={200: Difference})
async def get_files(call: Call) -> web.Response:
    """Reads the files, and tells what an update would do, or everything that is wrong with them. Changes nothing."""
    return answer(await call.service.files.reread())


@route(
    "POST",
    "/v1/files/actions/update",
    scope=Scope.ADMIN,
    returns={202: Operation},
    query=(APP,),
    raises=(Conflict,),
)
async def update_files(call: Call) -> web.Response:
    """Reads the files, and makes it as they say. Of each app one instance at a time is restarted, where it must be."""
    files, apps = call.service.files, call.get(APP) or None
    await files.check(apps)

    async def work(progress: Progress) -> None:
        await files.update(apps, progress)

    operation = call.service.operations.begin("update", call.principal, work)
    return answer(operation, 202, Location=f"/v1/operations/{operation.id}")
