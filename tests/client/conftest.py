from collections.abc import Iterator

import pytest

from tests.running_daemon import RunningDaemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    running = RunningDaemon()
    yield running
    running.stop()
