"""branchd as it is installed on a host with systemd, for tests: its units, what an operator asks of it, other versions.

The units are those that ship, with the daemon of this virtual environment in place of /usr/bin/branchd. Tests of a
package, which brings its own, give `units` and take the rest.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.systemd.host import REPOSITORY, SystemdHost
from tests.waiting import until_sync

UNIT = "branchd.service"
SOCKET_UNIT = "branchd.socket"

SOCKET = "/run/branchd/api.sock"
TCP = "127.0.0.1:8710"

#: what stands here is found before this project's branchd
VERSION = "/opt/version"

PROGRAMS = f"{sys.prefix}/bin"


def units(*arguments: str, profile: str = "") -> dict[str, str]:
    """The service and its socket; `arguments` go to `branchd run`. `profile`: "-single-user"."""
    shipped = REPOSITORY / "deploy"
    text = (shipped / f"branchd{profile}.service").read_text().replace("/usr/bin/branch", f"{PROGRAMS}/branch")
    further = " ".join(("", *arguments))
    return {
        UNIT: text.replace(f"{PROGRAMS}/branchd run\n", f"{PROGRAMS}/branchd run{further}\n"),
        f"{UNIT}.d/test.conf": f"[Service]\nEnvironment=PYTHONPATH={VERSION}:{REPOSITORY} PYTHONDONTWRITEBYTECODE=1\n",
        SOCKET_UNIT: (shipped / f"branchd{profile}.socket").read_text(),
    }


@dataclass(frozen=True, slots=True)
class Load:
    """What load.py tells; known when the load has ended."""

    told: dict[str, Any]

    @property
    def answered(self) -> int:
        return int(self.told["answered"])

    @property
    def failures(self) -> Mapping[str, int]:
        found: Mapping[str, int] = self.told["failures"]
        return found


@dataclass(frozen=True, slots=True)
class Installed:
    """The daemon on a host, and what an operator asks of both."""

    host: SystemdHost

    def api(self, method: str, path: str, body: object = None) -> Any:
        """What the API answers, decoded; AssertionError when it refuses."""
        argv = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "20"]
        argv += ["--unix-socket", SOCKET, "--request", method, f"http://branchd{path}"]
        if body is not None:
            argv += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        answer = self.host.run(*argv).stdout
        return json.loads(answer) if answer else None

    def status(self, name: str = "sleeper") -> dict[str, Any]:
        status: dict[str, Any] = self.api("GET", f"/v1/apps/plain/instances/{name}")["status"]
        return status

    def worker(self, name: str = "sleeper") -> int:
        """The pid of an instance once it runs; 0 before."""
        status = self.status(name)
        return int(status["pid"]) if status["state"] == "RUNNING" else 0

    def create_worker(self, name: str = "sleeper", *command: str, **spec: Any) -> int:
        """An instance of that command, by default one that runs on until it is told to stop; and its pid."""
        argv = command or ("/usr/bin/sleep", "100000")
        self.api("PUT", "/v1/apps/plain", {"kind": "command"})
        self.api("POST", "/v1/apps/plain/instances", {"name": name, "command": argv, **spec})
        return until_sync(lambda: self.worker(name), 60, "a running instance")

    def create_ending(self, name: str, code: int) -> int:
        """One that ends with that code when end() tells it to, and is not started again; its pid."""
        script = f"while ! test -e /tmp/end-{name}; do sleep 0.05; done; exit {code}"
        return self.create_worker(name, "/bin/sh", "-c", script, restart={"policy": "never"})

    def end(self, name: str) -> dict[str, Any]:
        """How it ended, as the API tells it."""
        self.host.run("touch", f"/tmp/end-{name}")
        ended: dict[str, Any] = until_sync(lambda: self.status(name)["last_exit"], 60, f"the end of {name}")
        return ended

    def tells_exits(self) -> bool:
        """Whether the kernel tells how somebody else's child ended."""
        version, release = os.uname().release.split(".")[:2]
        return (int(version), int(release)) >= (6, 15)

    def started_at(self) -> str:
        """Another one for each start and each reload of the daemon."""
        branch = self.api("GET", "/v1/whoami")["branch"]
        return str(self.api("GET", f"/v1/branches/{branch}")["started_at"])

    def daemon(self) -> int:
        """The pid of the daemon once systemd holds it for ready; 0 before."""
        ready = self.host.property(UNIT, "ActiveState") == "active"
        return int(self.host.property(UNIT, "MainPID")) if ready else 0

    def program(self, pid: int) -> str:
        """The command line of a process on the host; empty when there is none."""
        return self.host.run("cat", f"/proc/{pid}/cmdline", check=False).stdout.replace("\0", " ").strip()

    def restarts(self) -> int:
        """How often systemd started it again because it had failed."""
        return int(self.host.property(UNIT, "NRestarts"))

    def override(self, name: str, text: str) -> None:
        """A drop-in of the service, in force at its next start."""
        self.host.write(f"/run/systemd/system/{UNIT}.d/{name}.conf", text)
        self.host.run("systemctl", "daemon-reload")

    def configure(self, text: str) -> None:
        self.host.write("/etc/branchd/branchd.toml", text)

    def install(self, init: str) -> None:
        """A version of branchd whose `__init__.py` is this, beside which nothing is found: one that does not start."""
        self.host.write(f"{VERSION}/branchd/__init__.py", init)

    def install_version(self, version: str) -> None:
        """This version under another number."""
        self.uninstall()
        self.host.run("mkdir", "-p", VERSION)
        self.host.run("cp", "-r", REPOSITORY / "branchd", f"{VERSION}/branchd")
        self.install(f'__version__ = "{version}"\n')

    def uninstall(self) -> None:
        """Back to this version."""
        self.host.run("rm", "-rf", VERSION)

    @contextmanager
    def load(self, rate: int, *addresses: str) -> Iterator[Load]:
        """So many requests a second meanwhile, and some before and after; what came of them is known afterwards."""
        asking = self.host.begin(sys.executable, REPOSITORY / "tests" / "systemd" / "load.py", str(rate), *addresses)
        load = Load({})
        try:
            yield load
        finally:
            out, error = asking.communicate(timeout=60)
            assert asking.returncode == 0, error
            load.told.update(json.loads(out))


def add_accounts(host: SystemdHost) -> None:
    """What a package adds: the group of those who may operate, and the account of the single-user profile."""
    host.run("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", "branchd")


def example(path: str) -> str:
    """A file of deploy/."""
    return (REPOSITORY / "deploy" / path).read_text()


def program_path(name: str) -> Path:
    """branchd or branchctl of this virtual environment."""
    return Path(PROGRAMS) / name
