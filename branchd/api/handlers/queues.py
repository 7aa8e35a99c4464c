"""How an app's queues are declared at the broker."""

from aiohttp import web

from branchd.api.answers import IF_NONE_MATCH, NAME, PAGE, answer, matches, must_be_new, nothing, page
from branchd.api.routing import About, Call, Routes
from branchd.core.access import Scope
from branchd.core.errors import Conflict, Stale
from branchd.wire.resources import Queue, QueueBody

route = Routes()


@route(
    "GET",
    "/v1/apps/{app}/queues",
    scope=Scope.READ,
    returns={200: list[Queue]},
    query=(*PAGE, NAME),
    about=About.DEFINITION,
)
async def list_queues(call: Call) -> web.Response:
    """The queues that the app declares. One that it does not declare means Celery's default."""
    shown = [queue for queue in call.service.queues.list(call.path["app"]) if matches(call.get(NAME), queue.name)]
    return page(call, shown, lambda queue: (queue.name,))


@route("GET", "/v1/apps/{app}/queues/{queue}", scope=Scope.READ, returns={200: Queue}, about=About.DEFINITION)
async def get_queue(call: Call) -> web.Response:
    """One declaration."""
    return answer(call.service.queues.get(call.path["app"], call.path["queue"]))


@route(
    "PUT",
    "/v1/apps/{app}/queues/{queue}",
    scope=Scope.ADMIN,
    body=QueueBody,
    returns={200: Queue, 201: Queue},
    headers=IF_NONE_MATCH,
    raises=(Conflict, Stale),
    about=About.DEFINITION,
)
async def put_queue(call: Call) -> web.Response:
    """Declares it, or declares it otherwise."""
    app, name = call.path["app"], call.path["queue"]
    queue, created = await call.service.queues.put(app, name, call.body, must_be_new(call))
    return answer(queue, 201, Location=call.request.rel_url.raw_path) if created else answer(queue)


@route(
    "DELETE",
    "/v1/apps/{app}/queues/{queue}",
    scope=Scope.ADMIN,
    returns={204: None},
    raises=(Conflict,),
    about=About.DEFINITION,
)
async def delete_queue(call: Call) -> web.Response:
    """Forgets the declaration; the broker's queue stays."""
    await call.service.queues.delete(call.path["app"], call.path["queue"])
    return nothing()
