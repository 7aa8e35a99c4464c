"""A host with systemd for each test that asks for one; it is gone afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.host import SystemdHost


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SystemdHost]:
    """A machine that is not booted yet."""
    scratch = tmp_path / "host"
    scratch.mkdir()
    with SystemdHost(scratch) as machine:
        yield machine
