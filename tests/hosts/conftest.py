"""A network with a broker for all tests here, and branches on three hosts of it for each one."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from branchd.adapters import keys
from tests.e2e.programs import Programs
from tests.hosts.neighbourhood import HostBranch, Measured, Neighbourhood
from tests.hosts.network import Host, Network
from tests.rabbitmq import RabbitMQ

#: makes branches that are not started yet, by their slots
Maker = Callable[[Mapping[str, int]], Neighbourhood]

_TIMES = pytest.StashKey[list[str]]()


@dataclass(frozen=True, slots=True)
class Site:
    network: Network
    broker: RabbitMQ
    broker_host: Host
    hosts: tuple[Host, ...]
    key: Path  #: of the neighbourhoods


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hosts")
    key = folder / "key"
    keys.new(key)
    with Network() as network:
        at = network.host()
        broker = RabbitMQ(folder / "broker", at.address, at.within)
        try:
            broker.start()
            yield Site(network, broker, at, tuple(network.host() for _ in range(3)), key)
        finally:
            broker.stop()


@pytest.fixture
def neighbourhood(site: Site, request: pytest.FixtureRequest) -> Iterator[Maker]:
    """Each test has a neighbourhood of its own."""
    folder = Path(tempfile.mkdtemp(prefix="br-"))  # short, for unix sockets stand in it
    folder.chmod(0o755)  # the programs of another user have a pipe in it
    made: list[Neighbourhood] = []
    # Other branches may place here what runs as that user, and whatever else this machine does is no reason to refuse.
    env = {
        "BRANCHD_KEY_FILE": str(site.key),
        "BRANCHD_DEFAULT_USER": "nobody",
        "BRANCHD_ALLOW_USERS": "nobody",
        "BRANCHD_GUARD_MEMORY": "0",
        "BRANCHD_GUARD_DISK": "0",
        "BRANCHD_GUARD_LOAD": "10000",
    }

    def make(slots: Mapping[str, int]) -> Neighbourhood:
        mesh = ("--broker", site.broker.url, "--neighbourhood", folder.name)
        branches = [
            HostBranch(name, host, size, folder / name, env, *mesh)
            for host, (name, size) in zip(site.hosts, slots.items(), strict=True)
        ]
        made.append(Neighbourhood(site.network, site.broker, branches, Programs(folder)))
        return made[-1]

    yield make
    for neighbourhood in made:
        neighbourhood.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Takes what was measured, in seconds, and the design's goal for it; they are printed when the tests are over."""
    times = request.config.stash.setdefault(_TIMES, [])
    return lambda what, seconds, goal: times.append(f"{seconds:6.1f} s (goal {goal:g} s)  {what}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if times := config.stash.get(_TIMES, []):
        terminalreporter.section("times on hosts")
        for line in times:
            terminalreporter.write_line(line)
