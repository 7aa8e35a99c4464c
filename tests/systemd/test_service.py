"""deploy/branchd.service under a real systemd: what an operator sees who starts, breaks and stops it."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.host import REPOSITORY, SystemdHost
from tests.waiting import until_sync

UNIT = "branchd.service"


def units(*arguments: str) -> dict[str, str]:
    """The unit as it ships, but with the daemon of this virtual environment in place of /usr/bin/branchd."""
    command = " ".join([f"{sys.prefix}/bin/branchd", "run", *arguments])
    return {
        UNIT: (REPOSITORY / "deploy" / UNIT).read_text(),
        f"{UNIT}.d/test.conf": f"[Service]\nExecStart=\nExecStart={command}\n",
    }


@dataclass(frozen=True, slots=True)
class Service:
    """The daemon on a host, and what an operator asks of both."""

    host: SystemdHost

    def api(self, method: str, path: str, body: object = None) -> Any:
        """What the API answers, decoded; AssertionError when it refuses."""
        argv = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "20"]
        argv += ["--unix-socket", "/run/branchd/api.sock", "--request", method, f"http://branchd{path}"]
        if body is not None:
            argv += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        answer = self.host.run(*argv).stdout
        return json.loads(answer) if answer else None

    def worker(self) -> int:
        """The pid of the one instance once it runs; 0 before."""
        status = self.api("GET", "/v1/apps/plain/instances/sleeper")["status"]
        return int(status["pid"]) if status["state"] == "RUNNING" else 0

    def create_worker(self) -> int:
        """An instance that runs on until it is told to stop, and its pid."""
        self.api("PUT", "/v1/apps/plain", {"kind": "command", "command": ["/usr/bin/sleep", "100000"]})
        self.api("POST", "/v1/apps/plain/instances", {"name": "sleeper"})
        return until_sync(self.worker, 20, "a running instance")

    def daemon(self) -> int:
        """The pid of the daemon once systemd holds it for ready; 0 before."""
        ready = self.host.property(UNIT, "ActiveState") == "active"
        return int(self.host.property(UNIT, "MainPID")) if ready else 0

    def program(self, pid: int) -> str:
        """The command line of a process on the host; empty when there is none."""
        return self.host.run("cat", f"/proc/{pid}/cmdline", check=False).stdout.replace("\0", " ").strip()


@pytest.fixture
def service(host: SystemdHost) -> Service:
    host.boot(units())
    host.start(UNIT)  # returns when the daemon has said that it is ready
    return Service(host)


def test_it_is_ready_when_systemd_says_so(service: Service) -> None:
    assert service.daemon()
    assert service.api("GET", "/v1/whoami")["scope"] == "admin"
    assert service.host.property(UNIT, "NRestarts") == "0"


def test_systemd_finds_nothing_to_complain_about(service: Service) -> None:
    verified = service.host.run("systemd-analyze", "verify", "--man=no", UNIT)
    assert verified.stdout + verified.stderr == ""


@pytest.mark.parametrize(
    ("signal", "override"),
    [("KILL", ""), ("STOP", "[Service]\nWatchdogSec=2s\n")],
    ids=["killed", "hung and killed by the watchdog"],
)
def test_a_daemon_that_dies_is_started_again_and_takes_over_its_workers(
    service: Service, signal: str, override: str
) -> None:
    if override:
        service.host.run("mkdir", "-p", f"/run/systemd/system/{UNIT}.d")
        service.host.run("sh", "-c", f'printf %s "$0" >/run/systemd/system/{UNIT}.d/watchdog.conf', override)
        service.host.run("systemctl", "daemon-reload")
        service.host.run("systemctl", "restart", UNIT)
    worker, daemon = service.create_worker(), service.daemon()

    service.host.run("kill", f"-{signal}", str(daemon))

    until_sync(lambda: service.daemon() not in {0, daemon}, 30, "a new daemon")
    until_sync(lambda: service.host.property(UNIT, "NRestarts") == "1", 10, "one restart on systemd's books")
    assert until_sync(service.worker, 20, "the instance, adopted") == worker
    service.host.run("kill", "-KILL", str(worker))
    replacement = until_sync(lambda: (pid := service.worker()) != worker and pid, 20, "a supervised instance")
    assert service.program(replacement) == "/usr/bin/sleep 100000"


def test_a_stop_ends_the_workers_and_stays_down(service: Service) -> None:
    worker = service.create_worker()

    service.host.run("systemctl", "stop", UNIT)

    assert service.program(worker) == ""
    assert service.host.property(UNIT, "ActiveState") == "inactive"
    assert service.host.property(UNIT, "Result") == "success"
    assert service.host.property(UNIT, "ExecMainStatus") == "0"


def test_after_a_power_cut_what_was_wanted_up_comes_up(tmp_path: Path) -> None:
    state, scratch = tmp_path / "state", tmp_path / "host"
    state.mkdir()
    scratch.mkdir()
    with SystemdHost(scratch, disks=[state]) as host:
        host.boot(units(f"--state={state}"))
        service = Service(host)
        host.start(UNIT)
        service.create_worker()
        host.power_cut()

        host.boot({})
        host.start(UNIT)
        assert service.program(until_sync(service.worker, 20, "the instance")) == "/usr/bin/sleep 100000"
