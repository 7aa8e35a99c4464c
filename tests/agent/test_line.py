"""The agent's line by itself, without Celery: what it makes of large facts, large answers and strange commands."""

import contextlib
import importlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from branchd.core.health import Phase
from branchd.wire import json
from branchd.wire.agent import MESSAGE_LIMIT, Heartbeat, Reply, parse
from tests.agent.harness import AGENT, PATIENCE

FACTS = {"type": "heartbeat", "phase": "up"}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(AGENT))
    return importlib.import_module("_branchd_line")


class Conversation:
    """One, with this test as the daemon."""

    def __init__(self, line: Any, connection: socket.socket, thread: threading.Thread) -> None:
        self.line = line
        self._connection = connection
        self._thread = thread

    def hears(self) -> Heartbeat | Reply:
        return parse(self._connection.recv(10 * MESSAGE_LIMIT))

    def says(self, raw: bytes) -> None:
        self._connection.send(raw)

    def asks(self, **command: Any) -> Reply:
        self.says(json.dumps({"type": "command", "id": 7, **command}))
        while not isinstance(heard := self.hears(), Reply):
            pass
        return heard

    def is_over(self) -> bool:
        self._thread.join(PATIENCE)
        return not self._thread.is_alive()


@pytest.fixture
def conversation(module: ModuleType, tmp_path: Path) -> Iterator[Conversation]:
    def answer_with(command: dict[str, Any], answer: Any) -> None:
        answer(ok={"long": "x" * MESSAGE_LIMIT, "strange": {1, 2}, "cyclic": command}[command["op"]])

    def run() -> None:
        with contextlib.closing(module.Conversation(line)) as conversation, contextlib.suppress(Exception):
            conversation.run()

    path = str(tmp_path / "daemon.sock")
    line = module.Line(path, lambda: FACTS, lambda command, answer: answer_with({**command, "self": command}, answer))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE)
        thread = threading.Thread(target=run)
        thread.start()
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(PATIENCE)
        yield Conversation(line, connection, thread)
    thread.join(PATIENCE)
    for descriptor in (line.wake_reader, line._wake_writer):
        os.close(descriptor)


def test_it_says_at_once_how_it_is_and_again_when_something_changed(conversation: Conversation) -> None:
    assert conversation.hears() == Heartbeat(Phase.UP)
    conversation.line.beat()
    assert conversation.hears() == Heartbeat(Phase.UP)


def test_an_answer_that_does_not_fit_is_an_error(conversation: Conversation) -> None:
    reply = conversation.asks(op="long")
    assert reply.error
    assert "longer than" in reply.error


def test_an_answer_that_json_does_not_know_is_put_in_words(conversation: Conversation) -> None:
    assert conversation.asks(op="strange").ok == "{1, 2}"


@pytest.mark.parametrize("raw", [b"no JSON", b"[]", b"{}", b"\xff"])
def test_a_daemon_that_speaks_something_else_is_left(conversation: Conversation, raw: bytes) -> None:
    conversation.says(raw)
    assert conversation.is_over()


def test_queues_are_left_out_when_there_are_too_many_to_tell(module: ModuleType) -> None:
    queues = [f"queue-{number}-{'x' * 100}" for number in range(1000)]
    line = module.Line("/nowhere", lambda: {**FACTS, "queues": queues}, lambda command, answer: None)
    assert parse(line.heartbeat()) == Heartbeat(Phase.UP, queues=None)


def test_half_characters_do_not_make_a_heartbeat_unreadable(module: ModuleType) -> None:
    line = module.Line("/nowhere", lambda: {**FACTS, "error": "caf\udce9"}, lambda command, answer: None)
    assert parse(line.heartbeat()) == Heartbeat(Phase.UP, error="caf?")
