"""What Celery workers can do beyond running: their consumers, their autoscale."""

from aiohttp import web

from branchd.api.answers import PAGE, answer, nothing, page
from branchd.api.routing import About, Call, Routes
from branchd.core.access import Scope
from branchd.core.errors import Conflict, NoChannel, Refused
from branchd.core.spec import Autoscale
from branchd.wire.resources import AutoscaleView, Consumer

route = Routes()

_INSTANCE = "/v1/apps/{app}/instances/{instance}"


@route(
    "GET",
    f"{_INSTANCE}/queues",
    scope=Scope.READ,
    returns={200: list[Consumer]},
    query=PAGE,
    raises=(Conflict,),
    about=About.INSTANCE,
)
async def list_consumers(call: Call) -> web.Response:
    """The queues that it consumes from, as wanted and as the worker says."""
    consumers = call.service.celery.consumers(call.path["app"], call.path["instance"])
    return page(call, consumers, lambda consumer: (consumer.queue,))


@route(
    "GET",
    f"{_INSTANCE}/queues/{{queue}}",
    scope=Scope.READ,
    returns={200: Consumer},
    raises=(Conflict,),
    about=About.INSTANCE,
)
async def get_consumer(call: Call) -> web.Response:
    """Whether it consumes from one queue."""
    return answer(call.service.celery.consumer(call.path["app"], call.path["instance"], call.path["queue"]))


@route(
    "PUT",
    f"{_INSTANCE}/queues/{{queue}}",
    scope=Scope.OPERATE,
    returns={200: Consumer},
    raises=(Conflict, Refused, NoChannel),
    about=About.INSTANCE,
)
async def put_consumer(call: Call) -> web.Response:
    """Lets it consume from the queue, now and after every restart."""
    return answer(await call.service.celery.put_consumer(call.path["app"], call.path["instance"], call.path["queue"]))


@route(
    "DELETE",
    f"{_INSTANCE}/queues/{{queue}}",
    scope=Scope.OPERATE,
    returns={204: None},
    raises=(Conflict, Refused, NoChannel),
    about=About.INSTANCE,
)
async def delete_consumer(call: Call) -> web.Response:
    """Lets it consume from the queue no longer."""
    await call.service.celery.delete_consumer(call.path["app"], call.path["instance"], call.path["queue"])
    return nothing()


@route(
    "GET",
    f"{_INSTANCE}/autoscale",
    scope=Scope.READ,
    returns={200: AutoscaleView},
    raises=(Conflict,),
    about=About.INSTANCE,
)
async def get_autoscale(call: Call) -> web.Response:
    """The bounds of its pool, and its size now."""
    return answer(call.service.celery.autoscale(call.path["app"], call.path["instance"]))


@route(
    "PUT",
    f"{_INSTANCE}/autoscale",
    scope=Scope.OPERATE,
    body=Autoscale,
    returns={200: AutoscaleView},
    raises=(Conflict, Refused, NoChannel),
    about=About.INSTANCE,
)
async def put_autoscale(call: Call) -> web.Response:
    """Sets the bounds of its pool, now and after every restart."""
    app, name = call.path["app"], call.path["instance"]
    return answer(await call.service.celery.put_autoscale(app, name, call.body))
