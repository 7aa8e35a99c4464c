"""Which bus a URL asks for, and what is refused in which words."""

from pathlib import Path

import pytest

from branchd.adapters.amqp import AmqpBus
from branchd.adapters.amqp_connection import Broker
from branchd.adapters.bus import open_bus
from branchd.adapters.filesystem_bus import FilesystemBus
from branchd.core.errors import Fatal


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("amqp://", "amqp://127.0.0.1:5672/%2F"),
        ("amqp://u:p@broker", "amqp://broker:5672/%2F"),
        ("amqp://u:p@[::1]:1234/a%2Fb", "amqp://[::1]:1234/a%2Fb"),
        ("amqps://u:p@broker//", "amqps://broker:5671/%2F"),
        ("amqp://one; amqp://u:p@two;", "amqp://one:5672/%2F; amqp://two:5672/%2F"),
    ],
)
def test_amqp(url: str, where: str) -> None:
    bus = open_bus(url, "hood", "id")
    assert isinstance(bus, AmqpBus)
    assert bus.state.where == where
    assert not bus.state.connected


def test_credentials_are_unquoted_and_not_shown() -> None:
    broker = Broker.of("amqp://us%40er:hu%2Fsh@broker/a")
    assert (broker.user, broker.password, broker.vhost) == ("us@er", "hu/sh", "a")
    assert "hu" not in repr(broker) + str(broker)


def test_files_of_tls_are_taken() -> None:
    broker = Broker.of("amqps://broker?cacertfile=/ca.pem&certfile=/c.pem&keyfile=/k.pem")
    assert (broker.cacertfile, broker.certfile, broker.keyfile) == ("/ca.pem", "/c.pem", "/k.pem")


def test_a_folder(tmp_path: Path) -> None:
    bus = open_bus(f"filesystem://{tmp_path}/a%20folder", "hood", "id")
    assert isinstance(bus, FilesystemBus)
    assert bus.state.where == f"filesystem://{tmp_path}/a folder"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:hush@broker/0", "Redis as the broker of branches waits for a later version"),
        ("amqp://broker;redis://:hush@broker", "Redis as the broker of branches waits for a later version"),
        ("sqs://u:hush@", "of no kind that branches can use"),
        ("u:hush@broker", "of no kind that branches can use"),
        ("", "of no kind that branches can use"),
        ("amqp://broker;filesystem:///folder", "of different kinds"),
    ],
)
def test_another_kind_is_refused_and_the_possible_ones_are_named(url: str, words: str) -> None:
    with pytest.raises(Fatal, match=words) as refused:
        open_bus(url, "hood", "id")
    assert "hush" not in refused.value.detail
    for possible in ("amqp://", "amqps://", "filesystem:///FOLDER"):
        assert possible in refused.value.hint


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://u:hush@broker:port", "does not hold together"),
        ("amqp://u:hush@[::1", "does not hold together"),
        ("amqp://u:hush@broker?heartbeat=1", "options that are not known: heartbeat"),
        ("amqp://u:hush@broker?cacertfile=/ca.pem", "options that are not known: cacertfile"),
        ("filesystem://folder", "one folder"),
        ("filesystem:///", "one folder"),
        ("filesystem:///one;filesystem:///two", "one folder"),
    ],
)
def test_a_url_that_is_wrong_is_refused(url: str, words: str) -> None:
    with pytest.raises(Fatal, match=words) as refused:
        open_bus(url, "hood", "id")
    assert "hush" not in refused.value.detail + refused.value.hint
    assert refused.value.hint
