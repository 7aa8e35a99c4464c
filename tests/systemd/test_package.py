"""The Debian package on a machine with systemd: what an operator sees who installs, upgrades, removes and purges it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.systemd.host import REPOSITORY, SystemdHost
from tests.waiting import until_sync

UNIT = "branchd.service"
LIBRARY = "usr/lib/branchd/lib"


@dataclass(frozen=True, slots=True)
class Packages:
    """One as it is built, and others made of it, in a folder that hosts see."""

    folder: Path
    first: Path

    def made(self, version: str, breaks: bool = False) -> Path:
        """The same under another version, which its daemon tells too; or one whose daemon cannot start."""
        made = self.folder / f"branchd_{version}.deb"
        root = self.folder / version
        subprocess.run(["dpkg-deb", "--raw-extract", self.first, root], check=True)
        control = root / "DEBIAN/control"
        control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
        (package,) = (root / LIBRARY).glob("python3.*/site-packages/branchd")
        (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
        if breaks:
            (package / "cli/compose.py").write_text('raise RuntimeError("a version that does not start")\n')
        for compiled in (package / "__pycache__").glob("__init__.*"), (package / "cli/__pycache__").glob("compose.*"):
            for file in compiled:
                file.unlink()
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, made], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(root)
        return made


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("packages")
    built = subprocess.run(
        ["sh", REPOSITORY / "deploy/debian/build", folder], check=True, stdout=subprocess.PIPE, text=True
    )
    return Packages(folder, Path(built.stdout.splitlines()[-1]))


@dataclass(frozen=True, slots=True)
class Machine:
    """One on which the package is installed, as its operator meets it."""

    host: SystemdHost

    def dpkg(self, *arguments: str | Path) -> str:
        """What it says, and the maintainer scripts."""
        done = self.host.run("dpkg", *arguments, seconds=120)
        return done.stdout + done.stderr

    def ask(self, *arguments: str) -> str:
        return self.host.run("branchctl", *arguments).stdout

    def version(self) -> str:
        return str(json.loads(self.ask("branch", "show", "-o", "json"))["version"])

    def start_worker(self) -> int:
        self.ask("create", "plain", "sleeper", "--wait", "--json", '{"kind": "command"}', "--", "sleep", "100000")
        return self.worker()

    def worker(self) -> int:
        """Its pid, as the daemon tells it, and the process is what it should be."""
        pid = int(json.loads(self.ask("show", "plain:sleeper", "-o", "json"))["status"]["pid"])
        assert self.host.run("cat", f"/proc/{pid}/cmdline").stdout == "sleep\x00100000\x00"
        return pid

    def daemon(self) -> int:
        return int(self.host.property(UNIT, "MainPID"))


@pytest.fixture
def machine(packages: Packages, tmp_path: Path) -> Iterator[Machine]:
    """The package was just installed there."""
    scratch = tmp_path / "host"
    scratch.mkdir()
    with SystemdHost(scratch, disks=[packages.folder]) as host:
        host.boot({})
        host.run("rm", "-f", "/usr/sbin/policy-rc.d")
        installed = Machine(host)
        installed.dpkg("--install", packages.first)
        yield installed


def test_an_installed_branchd_runs_with_an_account_for_its_programs(machine: Machine) -> None:
    assert machine.host.property(UNIT, "ActiveState") == "active"
    assert machine.host.property(UNIT, "UnitFileState") == "enabled"
    assert machine.host.property("branchd.socket", "ActiveState") == "active"
    machine.ask("app", "set", "plain", "--json", '{"kind": "command"}')
    worker = machine.start_worker()
    assert machine.host.run("stat", "--format=%U", f"/proc/{worker}").stdout.strip() == "branchd"
    assert machine.host.run("dpkg", "--verify", "branchd").stdout == ""
    verified = machine.host.run("systemd-analyze", "verify", "--man=no", UNIT, "branchd.socket")
    assert verified.stdout + verified.stderr == ""


def test_an_upgrade_restarts_nothing(machine: Machine, packages: Packages) -> None:
    machine.ask("app", "set", "plain", "--json", '{"kind": "command"}')
    worker, daemon = machine.start_worker(), machine.daemon()

    machine.dpkg("--install", packages.made("0.1.1"))

    assert machine.version() == "0.1.1"
    assert (machine.worker(), machine.daemon()) == (worker, daemon)
    assert machine.host.property(UNIT, "NRestarts") == "0"


def test_a_version_that_does_not_start_leaves_the_old_one_and_the_next_good_one_takes_over(
    machine: Machine, packages: Packages
) -> None:
    machine.ask("app", "set", "plain", "--json", '{"kind": "command"}')
    worker, daemon, version = machine.start_worker(), machine.daemon(), machine.version()

    said = machine.dpkg("--install", packages.made("0.1.2", breaks=True))

    assert "the new version does not start" in said
    assert (machine.worker(), machine.daemon(), machine.version()) == (worker, daemon, version)

    # Now it dies as well: nothing supervises until a version comes that starts, and the worker does not notice.
    machine.host.run("kill", "-KILL", str(daemon))
    until_sync(lambda: int(machine.host.property(UNIT, "NRestarts")) > 1, 30, "a daemon that cannot start")
    machine.dpkg("--install", packages.made("0.1.3"))
    until_sync(lambda: machine.host.property(UNIT, "ActiveState") == "active", 30, "a daemon that can")
    assert machine.version() == "0.1.3"
    assert machine.worker() == worker


def test_a_removal_stops_what_runs_and_keeps_what_it_knew_and_a_purge_leaves_nothing(
    machine: Machine, packages: Packages
) -> None:
    machine.ask("app", "set", "plain", "--json", '{"kind": "command"}')
    worker = machine.start_worker()
    machine.host.run("sh", "-c", "echo '# mine' >>/etc/branchd/branchd.toml")

    machine.dpkg("--remove", "branchd")

    assert machine.host.run("test", "-e", f"/proc/{worker}", check=False).returncode == 1
    assert machine.host.run("test", "-e", "/usr/bin/branchd", check=False).returncode == 1
    machine.dpkg("--install", packages.first)
    assert machine.worker() != worker
    assert "# mine" in machine.host.run("cat", "/etc/branchd/branchd.toml").stdout

    machine.dpkg("--purge", "branchd")

    left = machine.host.run("find", "/etc", "/usr/bin", "/usr/lib", "/lib/systemd", "/var", "/run", "-name", "branchd*")
    kept = {"/var/cache", "/var/log/journal"}
    assert [path for path in left.stdout.split() if not any(path.startswith(place) for place in kept)] == []
