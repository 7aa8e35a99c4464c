"""deploy/branchd.service under a real systemd: what an operator sees who starts, breaks and stops it."""

from pathlib import Path

import pytest

from tests.systemd.host import SystemdHost
from tests.systemd.installed import SOCKET, SOCKET_UNIT, TCP, UNIT, Installed, add_accounts, units
from tests.waiting import until_sync


def test_it_is_ready_when_systemd_says_so(service: Installed) -> None:
    assert service.daemon()
    assert service.api("GET", "/v1/whoami")["scope"] == "admin"
    assert service.restarts() == 0


@pytest.mark.parametrize(
    ("signal", "override"),
    [("KILL", ""), ("STOP", "[Service]\nWatchdogSec=8s\n")],
    ids=["killed", "hung and killed by the watchdog"],
)
def test_a_daemon_that_dies_is_started_again_and_takes_over_its_workers(
    service: Installed, signal: str, override: str
) -> None:
    if override:
        service.override("watchdog", override)
        service.host.run("systemctl", "restart", UNIT)
    worker, daemon = service.create_worker(), service.daemon()

    service.host.run("kill", f"-{signal}", str(daemon))

    until_sync(lambda: service.daemon() not in {0, daemon}, 60, "a new daemon")
    until_sync(lambda: service.restarts() == 1, what="one restart on systemd's books")
    assert until_sync(service.worker, 60, "the instance, adopted") == worker
    service.host.run("kill", "-KILL", str(worker))
    replacement = until_sync(lambda: (pid := service.worker()) != worker and pid, 60, "a supervised instance")
    assert service.program(replacement) == "/usr/bin/sleep 100000"


def test_a_stop_ends_the_workers_and_stays_down_with_its_socket(service: Installed) -> None:
    worker = service.create_worker()

    service.host.run("systemctl", "stop", UNIT)

    assert service.program(worker) == ""
    assert service.host.property(UNIT, "ActiveState") == "inactive"
    assert service.host.property(UNIT, "Result") == "success"
    assert service.host.property(UNIT, "ExecMainStatus") == "0"
    until_sync(lambda: service.host.property(SOCKET_UNIT, "ActiveState") == "inactive", what="no socket")
    assert service.host.run("curl", "--unix-socket", SOCKET, "http://x/healthz", check=False).returncode != 0
    service.host.start(UNIT)
    assert until_sync(service.worker, 60, "the instance, wanted up") != worker


def test_a_shutdown_that_is_asked_for_over_the_api_stays_down(service: Installed) -> None:
    worker, branch = service.create_worker(), service.api("GET", "/v1/whoami")["branch"]
    service.api("POST", f"/v1/branches/{branch}/actions/shutdown")
    until_sync(lambda: service.host.property(UNIT, "ActiveState") == "inactive", 60, "the end")
    assert service.program(worker) == ""
    until_sync(lambda: service.host.property(SOCKET_UNIT, "ActiveState") == "inactive", what="no socket")
    assert service.host.property(UNIT, "ExecMainStatus") == "0"


@pytest.mark.parametrize("verb", ["restart", "try-restart"])
def test_a_restart_leaves_the_workers_alone_and_refuses_nobody_on_the_socket(service: Installed, verb: str) -> None:
    worker, ending, daemon = service.create_worker(), service.create_ending("seven", 7), service.daemon()

    with service.load(60, SOCKET, "-") as load:
        service.host.run("systemctl", verb, UNIT)

    assert load.failures == {}
    assert load.answered > 0
    assert service.daemon() not in {0, daemon}
    assert (service.worker(), service.worker("seven")) == (worker, ending)
    assert service.restarts() == 0
    # it is no child of the new daemon's: the kernel tells how it ended, from Linux 6.15 on
    assert service.end("seven")["code"] == (7 if service.tells_exits() else None)


def test_a_daemon_that_hangs_is_killed_by_a_restart_and_its_workers_live(service: Installed) -> None:
    """Not after the 30 s of the real thing: the test lets it go on, once the restart waits for it."""
    worker, daemon = service.create_worker(), service.daemon()
    service.host.run("kill", "-STOP", str(daemon))
    service.host.run("systemctl", "restart", "--no-block", UNIT)
    until_sync(lambda: service.host.property(UNIT, "ActiveState") == "deactivating", what="the stop")
    service.host.run("kill", "-CONT", str(daemon))
    until_sync(lambda: service.daemon() not in {0, daemon}, 60, "a new daemon")
    assert service.worker() == worker


def test_a_connection_from_before_the_daemon_is_answered_by_it(installed: Installed) -> None:
    installed.host.start(SOCKET_UNIT)
    assert installed.daemon() == 0
    assert installed.api("GET", "/v1/whoami")["scope"] == "admin"
    assert until_sync(installed.daemon, 60, "the daemon, started by that") != 0
    listening = installed.api("GET", "/v1/branches")["items"][0]["address"]
    assert listening == f"http://{TCP}"  # it opens itself what the socket unit does not have


def test_without_the_socket_unit_it_opens_its_socket_itself(host: SystemdHost) -> None:
    host.boot({name: text for name, text in units().items() if name != SOCKET_UNIT})
    host.start(UNIT)
    assert Installed(host).api("GET", "/v1/whoami")["scope"] == "admin"


def test_a_shutdown_of_the_machine_runs_the_stop_plans(tmp_path: Path) -> None:
    disk, scratch = tmp_path / "disk", tmp_path / "host"
    disk.mkdir()
    scratch.mkdir()
    script = f"trap 'echo stopped >{disk}/told; exit 0' TERM; while :; do sleep 0.05; done"
    with SystemdHost(scratch, disks=[disk]) as host:
        host.boot(units())
        host.start(UNIT)
        Installed(host).create_worker("trap", "/bin/sh", "-c", script)
        host.poweroff()
    assert (disk / "told").read_text() == "stopped\n"


def test_systemd_shows_how_many_run(service: Installed) -> None:
    service.create_worker()
    service.api("POST", "/v1/apps/plain/instances", {"name": "broken", "command": ["/nonexistent/program"]})
    told = "2 instances, 1 not running"
    until_sync(lambda: told in service.host.property(UNIT, "StatusText"), 60, told)


def test_after_a_power_cut_what_was_wanted_up_comes_up(tmp_path: Path) -> None:
    state, scratch = tmp_path / "state", tmp_path / "host"
    state.mkdir()
    scratch.mkdir()
    with SystemdHost(scratch, disks=[state]) as host:
        host.boot(units(f"--state={state}"))
        add_accounts(host)
        service = Installed(host)
        host.start(UNIT)
        service.create_worker()
        host.power_cut()

        host.boot({})
        add_accounts(host)
        host.start(UNIT)
        assert service.program(until_sync(service.worker, 60, "the instance")) == "/usr/bin/sleep 100000"
