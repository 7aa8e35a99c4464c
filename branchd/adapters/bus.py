"""Which bus a broker's URL asks for."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from branchd.adapters.amqp import AmqpBus
from branchd.adapters.amqp_connection import PORTS, Broker
from branchd.adapters.filesystem_bus import FilesystemBus
from branchd.branch.ports import Bus
from branchd.core.errors import Fatal

POSSIBLE = "possible are amqp:// and amqps:// for RabbitMQ, and filesystem:///FOLDER for one machine"


def open_bus(url: str, neighbourhood: str, branch: str) -> Bus:
    """The bus for a URL, not yet opened; several of one cluster are separated by ";". Fatal."""
    urls = [each.strip() for each in url.split(";") if each.strip()]
    schemes = {each.partition("://")[0].lower() for each in urls}
    if schemes and schemes <= PORTS.keys():
        return AmqpBus([Broker.of(each) for each in urls], neighbourhood, branch)
    if schemes == {"filesystem"}:
        parts = urlsplit(urls[0])
        if len(urls) > 1 or parts.netloc or not parts.path.strip("/"):
            raise Fatal("the filesystem bus is one folder", "filesystem:///FOLDER, with three slashes")
        return FilesystemBus(Path(unquote(parts.path)), neighbourhood, branch)
    if schemes & {"redis", "rediss", "sentinel"}:
        raise Fatal("Redis as the broker of branches waits for a later version", POSSIBLE)
    if len(schemes) > 1:
        raise Fatal("the broker's URLs are of different kinds", POSSIBLE)
    raise Fatal("the broker's URL is of no kind that branches can use", POSSIBLE)
