"""What the daemon tells its service manager, heard on a real socket."""

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from branchd.adapters.systemd import Notifier


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and the address as it would put it into NOTIFY_SOCKET."""
    file = str(tmp_path / "notify")
    name = f"branchd-tests-{secrets.token_hex(8)}"
    bound, address = (file, file) if request.param == "file" else (f"\0{name}", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(bound)
        listener.settimeout(10)
        yield listener, address


def test_the_manager_hears_each_message(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    assert listener.recv(100) == b"READY=1"
    notifier.watchdog()
    assert listener.recv(100) == b"WATCHDOG=1"
    notifier.stopping()
    assert listener.recv(100) == b"STOPPING=1"
    notifier.reloading()
    assert listener.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_a_status_stays_one_line(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    Notifier({"NOTIFY_SOCKET": address}).status("3 instances\nREADY=1\x1b[31m \N{SNOWMAN}")
    assert listener.recv(100).decode() == "STATUS=3 instances READY=1 [31m \N{SNOWMAN}"


def test_the_managers_variables_do_not_stay_for_children() -> None:
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    notifier = Notifier(environment)
    assert environment == {"PATH": "/bin"}
    # but an image that takes this process's place needs them
    assert notifier.environment == {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}


def test_nothing_is_sent_where_nobody_asked_and_nothing_breaks_where_nobody_listens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        notifier = Notifier(environment)
        notifier.ready()
        notifier.status("x")
        notifier.watchdog()
        notifier.stopping()


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_in_the_time_that_the_manager_allows(
    environment: dict[str, str], interval: float | None
) -> None:
    assert Notifier(environment).watchdog_interval == interval
