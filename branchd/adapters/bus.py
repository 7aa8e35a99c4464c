"""Which bus the broker of a neighbourhood asks for; what its URLs say stands in core/brokers.py."""

from pathlib import Path

from branchd.adapters.amqp import AmqpBus
from branchd.adapters.filesystem_bus import FilesystemBus
from branchd.branch.ports import Bus
from branchd.core.brokers import Broker, Folder


def open_bus(broker: tuple[Broker, ...] | Folder, neighbourhood: str, branch: str) -> Bus:
    """Not yet opened. Several brokers are of one cluster."""
    if isinstance(broker, Folder):
        return FilesystemBus(Path(broker.path), neighbourhood, branch)
    return AmqpBus(broker, neighbourhood, branch)
