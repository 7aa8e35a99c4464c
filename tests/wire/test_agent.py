"""What an agent may say: everything missing, nothing wrong."""

import pytest

from branchd.core.health import Phase
from branchd.core.values import QueueDeclaration
from branchd.wire import agent, json
from branchd.wire.agent import Heartbeat, Reply, parse

FULL = {
    "type": "heartbeat",
    "phase": "up",
    "pool": "prefork",
    "loop_age": 0.5,
    "active": 2,
    "total": 17,
    "tasks": ["one", "two"],
    "autoscale": [1, 4],
    "processes": 3,
    "queues": ["celery", "größer"],
    "celery": "5.7.0",
    "error": None,
}


def test_a_whole_heartbeat() -> None:
    assert parse(json.dumps(FULL)) == Heartbeat(
        phase=Phase.UP,
        pool="prefork",
        loop_age=0.5,
        active=2,
        total=17,
        tasks=("one", "two"),
        autoscale=(1, 4),
        processes=3,
        queues=("celery", "größer"),
        celery="5.7.0",
        error=None,
    )


@pytest.mark.parametrize("field", sorted(FULL.keys() - {"type"}))
def test_any_field_may_be_missing(field: str) -> None:
    parsed = parse(json.dumps({name: value for name, value in FULL.items() if name != field}))
    assert getattr(parsed, field) == getattr(Heartbeat(), field)


def test_fields_of_a_later_agent_are_ignored() -> None:
    assert parse(json.dumps({"type": "heartbeat", "mood": "good"})) == Heartbeat()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phase", "dancing"),
        ("phase", None),
        ("phase", ["up"]),
        ("pool", 1),
        ("pool", "x" * 256),
        ("loop_age", "1"),
        ("loop_age", -1),
        ("loop_age", True),
        ("loop_age", 1e300),
        ("active", -1),
        ("active", 1.0),
        ("active", True),
        ("active", None),
        ("total", 2**53),
        ("tasks", "one"),
        ("tasks", ["one"] * 21),
        ("tasks", [1]),
        ("autoscale", [1]),
        ("autoscale", [1, "2"]),
        ("autoscale", {"min": 1, "max": 2}),
        ("processes", []),
        ("queues", [None]),
        ("queues", ["x" * 256]),
        ("celery", {}),
        ("error", 5),
        ("error", "x" * 2001),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"(?i){field}"):
        parse(json.dumps({**FULL, field: value}))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"type": ["heartbeat"]}',
        b'{"type": "command", "id": 1}',
        b'{"type": "heartbeat", "loop_age": NaN}',
        b'{"type": "heartbeat", "loop_age": 1e999}',
        b'{"type": "heartbeat", "error": "\\ud800"}',
        b'{"type": "heartbeat", "total": ' + b"9" * 5000 + b"}",
        b"[" * 60_000,
        b'{"type": "heartbeat"' + b" " * agent.MESSAGE_LIMIT + b"}",
    ],
)
def test_what_is_no_message_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any words will do
        parse(raw)


def test_more_queues_than_a_worker_has_are_too_many_to_tell() -> None:
    assert parse(json.dumps({**FULL, "queues": ["q"] * 1001})).queues is None


def test_replies() -> None:
    assert parse(b'{"type": "reply", "id": 7, "ok": {"min": 1}}') == Reply(7, ok={"min": 1})
    assert parse(b'{"type": "reply", "id": 7, "error": "no"}') == Reply(7, error="no")


@pytest.mark.parametrize("reply", [{}, {"id": "7"}, {"id": -1}, {"id": 7, "error": ["no"]}])
def test_replies_have_a_number_and_at_most_a_text_as_error(reply: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"id|error"):
        parse(json.dumps({"type": "reply", **reply}))


def test_queues_go_out_whole() -> None:
    queue = QueueDeclaration("q", "e", "topic", "k.*", {"durable": False})
    sent = {"name": "q", "exchange": "e", "exchange_type": "topic", "routing_key": "k.*", "options": {"durable": False}}
    assert agent.add_consumer(queue) == {"type": "command", "op": "add_consumer", "queue": sent}
    assert json.loads(agent.settings("/run/agents.sock", [queue]).encode()) == {
        "socket": "/run/agents.sock",
        "queues": [sent],
    }
