from collections.abc import Iterator

import pytest

from tests.running_daemon import RunningDaemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    running = RunningDaemon()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _logging_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that runs inside this process must not configure the logging of all tests that come after it."""
    monkeypatch.setattr("branchd.cli.compose.configure_logging", lambda *_: None)
