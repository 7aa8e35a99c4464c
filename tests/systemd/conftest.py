"""A host with systemd for each test that asks for one; it is gone afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.host import SystemdHost
from tests.systemd.installed import SOCKET_UNIT, UNIT, Installed, add_accounts, units


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SystemdHost]:
    """A machine that is not booted yet."""
    scratch = tmp_path / "host"
    scratch.mkdir()
    with SystemdHost(scratch) as machine:
        yield machine


@pytest.fixture
def installed(host: SystemdHost) -> Installed:
    """branchd on a machine that is up, with its socket, not started yet."""
    host.boot(units())
    add_accounts(host)
    return Installed(host)


@pytest.fixture
def service(installed: Installed) -> Installed:
    """branchd, running."""
    installed.host.start(UNIT)  # returns when the daemon has said that it is ready
    assert installed.host.property(SOCKET_UNIT, "ActiveState") == "active"
    return installed
