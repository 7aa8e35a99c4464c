"""What the daemon and the agent in a Celery worker say to each other: JSON objects of at most 64 KiB, over a socket.

The agent (branchd/agent) shares no code with this. It runs beside the user's code, and that can lie: a field may be
missing, but what is there has the right type and a bounded length, or the whole message is refused.

agent to daemon: {"type": "heartbeat", ...} and {"type": "reply", "id", "ok" | "error"};
daemon to agent: {"type": "command", "id", "op", ...}, made here without the id, which the channel adds.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from branchd.core.health import Phase
from branchd.core.value import Value
from branchd.core.values import QueueDeclaration
from branchd.wire import json

#: bytes in one message, in either direction
MESSAGE_LIMIT = 65536
#: the environment variable that the agent reads its settings from
SETTINGS_VARIABLE = "BRANCHD_AGENT"
#: characters of a short text: names, ids, versions; AMQP's own limit for the name of a queue
SHORT = 255
#: characters of an error
LONG = 2000
#: tasks that one heartbeat names
TASKS = 20
#: queues that one heartbeat names; a worker that says more says nothing, and costs the daemon nothing
QUEUES = 1000
#: what a counter stays below: JSON's integers are exact to here in every language
LARGEST = 2**53


_Short = Annotated[str, Meta(max_length=SHORT)]
_Long = Annotated[str, Meta(max_length=LONG)]
_Count = Annotated[int, Meta(ge=0, lt=LARGEST)]
_Seconds = Annotated[float, Meta(ge=0, lt=LARGEST)]


class Heartbeat(Value, tag_field="type", tag="heartbeat", forbid_unknown_fields=False):
    """A worker about itself."""

    phase: Phase = Phase.BOOT
    pool: _Short = ""  #: prefork, threads, solo, gevent, eventlet or the user's own
    loop_age: _Seconds | None = None  #: seconds since its loop was last seen to run; None unless up
    active: _Count = 0  #: tasks that run now
    total: _Count = 0  #: tasks accepted since its start
    tasks: Annotated[tuple[_Short, ...], Meta(max_length=TASKS)] = ()  #: ids of tasks that run now, the first 20
    autoscale: tuple[_Count, _Count] | None = None  #: least and most processes; None when it was started without
    processes: _Count = 0  #: tasks that its pool can run at once now
    queues: tuple[_Short, ...] | None = None  #: what it consumes from; None when that is too much to tell
    celery: _Short = ""  #: Celery's version
    error: _Long | None = None  #: what the broker connection failed with last, until it is up


class Reply(Value, tag_field="type", tag="reply", forbid_unknown_fields=False):
    """A worker's answer to the command with this id."""

    id: _Count
    ok: Any = None  #: JSON; meaningless when there is an error
    error: _Long | None = None


_DECODER: msgspec.json.Decoder[Heartbeat | Reply] = msgspec.json.Decoder(Heartbeat | Reply)


def settings(socket: str, queues: Sequence[QueueDeclaration]) -> str:
    """What SETTINGS_VARIABLE holds for a worker: where the daemon listens, and how the queues are declared."""
    return json.dumps({"socket": socket, "queues": [_queue(queue) for queue in queues]}).decode()


def declare(queue: QueueDeclaration) -> dict[str, Any]:
    """Declares at the broker and no more; refused with the broker's words when it has something else by that name."""
    return _command("declare", queue=_queue(queue))


def add_consumer(queue: QueueDeclaration) -> dict[str, Any]:
    """Declares, then consumes; answered when it does."""
    return _command("add_consumer", queue=_queue(queue))


def cancel_consumer(name: str) -> dict[str, Any]:
    """Fine too when it did not consume from it."""
    return _command("cancel_consumer", name=name)


def autoscale(least: int, most: int) -> dict[str, Any]:
    """Answered with {"min", "max", "processes"}; no busy process is ended: the last may stay above max for a while."""
    return _command("autoscale", min=least, max=most)


def stats() -> dict[str, Any]:
    """Answered with what `celery inspect stats` tells, the broker reduced to its URI without the password."""
    return _command("stats")


def parse(raw: bytes) -> Heartbeat | Reply:
    """ValueError when it is not a message of an agent."""
    if len(raw) > MESSAGE_LIMIT:
        raise ValueError(f"longer than {MESSAGE_LIMIT} bytes")
    try:
        message = _DECODER.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if isinstance(message, Heartbeat) and message.queues is not None and len(message.queues) > QUEUES:
        return replace(message, queues=None)
    return message


def _command(operation: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "command", "op": operation, **arguments}


def _queue(queue: QueueDeclaration) -> dict[str, Any]:
    return {
        "name": queue.name,
        "exchange": queue.exchange,
        "exchange_type": queue.exchange_type,
        "routing_key": queue.routing_key,
        "options": dict(queue.options),
    }
