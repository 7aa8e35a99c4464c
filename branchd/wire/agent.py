"""What the daemon and the agent in a Celery worker say to each other: JSON objects of at most 64 KiB, over a socket.

The agent (branchd/agent) shares no code with this. It runs beside the user's code, and that can lie: a field may be
missing, but what is there has the right type and a bounded length, or the whole message is refused.

agent to daemon: {"type": "heartbeat", ...} and {"type": "reply", "id", "ok" | "error"};
daemon to agent: {"type": "command", "id", "op", ...}, made here without the id, which the channel adds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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


class Heartbeat(Value):
    """A worker about itself."""

    phase: Phase = Phase.BOOT
    pool: str = ""  #: prefork, threads, solo, gevent, eventlet or the user's own
    loop_age: float | None = None  #: seconds since its loop was last seen to run; None unless up
    active: int = 0  #: tasks that run now
    total: int = 0  #: tasks accepted since its start
    tasks: tuple[str, ...] = ()  #: ids of tasks that run now, the first 20
    autoscale: tuple[int, int] | None = None  #: least and most processes; None when it was started without
    processes: int = 0  #: tasks that its pool can run at once now
    queues: tuple[str, ...] | None = None  #: what it consumes from; None when that is too much to tell
    celery: str = ""  #: Celery's version
    error: str | None = None  #: what the broker connection failed with last, until it is up


class Reply(Value):
    """A worker's answer to the command with this id."""

    id: int
    ok: Any = None  #: JSON; meaningless when there is an error
    error: str | None = None


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
    message = json.loads(raw)
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    match message.get("type"):
        case "heartbeat":
            return _heartbeat(message)
        case "reply":
            return Reply(_integer(message, "id"), message.get("ok"), _optional_text(message, "error"))
    raise ValueError("neither a heartbeat nor a reply")


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


def _heartbeat(message: Mapping[str, Any]) -> Heartbeat:
    autoscale = message.get("autoscale")
    if autoscale is not None:
        if not (isinstance(autoscale, list) and len(autoscale) == 2 and all(_counts(bound) for bound in autoscale)):
            raise ValueError("autoscale is not two numbers")
        autoscale = (autoscale[0], autoscale[1])
    return Heartbeat(
        phase=Phase(message.get("phase", Phase.BOOT)),
        pool=_text(message, "pool"),
        loop_age=_seconds(message, "loop_age"),
        active=_integer(message, "active", 0),
        total=_integer(message, "total", 0),
        tasks=_texts(message, "tasks", TASKS) or (),
        autoscale=autoscale,
        processes=_integer(message, "processes", 0),
        queues=_queues(message),
        celery=_text(message, "celery"),
        error=_optional_text(message, "error"),
    )


def _queues(message: Mapping[str, Any]) -> tuple[str, ...] | None:
    queues = _texts(message, "queues", MESSAGE_LIMIT)
    return queues if queues is not None and len(queues) <= QUEUES else None


def _counts(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _integer(message: Mapping[str, Any], field: str, missing: int | None = None) -> int:
    value = message.get(field, missing)
    if not _counts(value):
        raise ValueError(f"{field} is not a count")
    return int(value)


def _seconds(message: Mapping[str, Any], field: str) -> float | None:
    value = message.get(field)
    if value is None:
        return None
    if type(value) not in {int, float} or not 0 <= value < LARGEST:
        raise ValueError(f"{field} is not a time")
    return float(value)


def _is_text(value: object, limit: int) -> bool:
    return isinstance(value, str) and len(value) <= limit


def _text(message: Mapping[str, Any], field: str) -> str:
    value = message.get(field, "")
    if not _is_text(value, SHORT):
        raise ValueError(f"{field} is not a text of at most {SHORT} characters")
    return str(value)


def _optional_text(message: Mapping[str, Any], field: str) -> str | None:
    value = message.get(field)
    if value is None:
        return None
    if not _is_text(value, LONG):
        raise ValueError(f"{field} is not a text of at most {LONG} characters")
    return str(value)


def _texts(message: Mapping[str, Any], field: str, limit: int) -> tuple[str, ...] | None:
    value = message.get(field)
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) <= limit and all(_is_text(item, SHORT) for item in value)):
        raise ValueError(f"{field} is not a list of at most {limit} texts of at most {SHORT} characters")
    return tuple(value)
