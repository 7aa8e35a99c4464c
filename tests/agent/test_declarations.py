"""What a wanted queue becomes in an application, and what of a broker's words is repeated."""

import importlib
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from tests.agent.harness import AGENT


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(AGENT))
    return importlib.import_module("_branchd_steps")


def application(**settings: Any) -> Celery:
    app = Celery("declarations", set_as_current=False)
    app.conf.update(task_queues=[Queue("own", exchange="theirs", routing_key="key")], **settings)
    return app


def test_a_bare_name_is_the_applications_own(steps: Any) -> None:
    queue = steps.declaration(application(), {"name": "own"})
    assert (queue.exchange.name, queue.routing_key) == ("theirs", "key")


def test_another_bare_name_is_what_celery_makes_of_it_and_stays_unknown_to_the_application(steps: Any) -> None:
    app = application(task_queue_max_priority=7)
    queue = steps.declaration(app, {"name": "new", "exchange_type": "direct", "options": {}})
    assert (queue.exchange.name, queue.exchange.type, queue.routing_key) == ("new", "direct", "new")
    assert queue.queue_arguments == {"x-max-priority": 7}
    assert "new" not in app.amqp.queues


def test_an_application_that_makes_no_queues_has_none_made(steps: Any) -> None:
    app = application(task_create_missing_queues=False)
    with pytest.raises(steps.Impossible, match="has no queue new"):
        steps.declaration(app, {"name": "new"})
    assert steps.declaration(app, {"name": "new", "routing_key": "key"}).routing_key == "key"


@pytest.mark.parametrize(
    ("wanted", "exchange", "kind", "key"),
    [
        ({"exchange": "e"}, "e", "direct", "own"),
        ({"exchange_type": "topic"}, "own", "topic", "own"),
        ({"routing_key": "k"}, "own", "direct", "k"),
        ({"options": {"durable": False}}, "own", "direct", "own"),
        ({"exchange": "e", "exchange_type": "fanout", "routing_key": "k"}, "e", "fanout", "k"),
    ],
)
def test_what_is_told_counts_more_than_the_applications_own(
    steps: Any, wanted: dict[str, Any], exchange: str, kind: str, key: str
) -> None:
    queue = steps.declaration(application(), {"name": "own", **wanted})
    assert (queue.exchange.name, queue.exchange.type, queue.routing_key) == (exchange, kind, key)
    assert queue.durable is wanted.get("options", {}).get("durable", True)


@pytest.mark.parametrize(
    ("words", "repeated"),
    [
        ("cannot reach amqp://guest:sesame@host:1//", "cannot reach amqp://guest:**@host:1//"),
        ("redis://:p@ss@host/0 and sqs://key:se/cret@", "redis://:**@host/0 and sqs://key:**@"),
        ("[Errno 111] Connection refused", "[Errno 111] Connection refused"),
        ("x" * 1000, "x" * 500),
    ],
)
def test_errors_are_repeated_without_passwords(steps: Any, words: str, repeated: str) -> None:
    assert steps.text(OSError(words)) == repeated
