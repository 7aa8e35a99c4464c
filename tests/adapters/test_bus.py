"""Which bus the broker asks for."""

from pathlib import Path

from branchd.adapters.amqp import AmqpBus
from branchd.adapters.bus import open_bus
from branchd.adapters.filesystem_bus import FilesystemBus
from branchd.core.brokers import parse


def test_brokers_of_one_cluster() -> None:
    bus = open_bus(parse("amqp://one; amqp://u:p@two/v"), "hood", "id")
    assert isinstance(bus, AmqpBus)
    assert bus.state.where == "amqp://one:5672/%2F; amqp://two:5672/v"
    assert not bus.state.connected


def test_a_folder(tmp_path: Path) -> None:
    bus = open_bus(parse(f"filesystem://{tmp_path}/a%20folder"), "hood", "id")
    assert isinstance(bus, FilesystemBus)
    assert bus.state.where == f"filesystem://{tmp_path}/a folder"
    assert list(tmp_path.iterdir()) == []
