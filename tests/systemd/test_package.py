"""The Debian package on a machine with systemd: what an operator sees who installs, upgrades, removes and purges it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.systemd.host import REPOSITORY, SystemdHost
from tests.systemd.installed import SOCKET, SOCKET_UNIT, UNIT, Installed
from tests.waiting import until_sync

LIBRARY = "usr/lib/branchd/lib"
CONFIGURATION = "/etc/branchd/branchd.toml"

#: requests a second
RATE = 100

#: seconds that dpkg may take on a loaded machine
PATIENCE = 120

#: bigger, and there at once
UNCOMPRESSED = {**os.environ, "DPKG_DEB_COMPRESSOR_TYPE": "none"}

FAILS = 'raise RuntimeError("a version that does not start")\n'


@dataclass(frozen=True, slots=True)
class Packages:
    """One as it is built, and others made of it, in a folder that hosts see."""

    folder: Path
    first: Path

    def made(self, version: str, starts: bool = True) -> Path:
        """The same under another version, which its daemon tells too, and with a configuration file that differs.

        One that does not start has nothing else of branchd's modules: who has not loaded them will not find them.
        """
        made = self.folder / f"branchd_{version}.deb"
        if made.exists():
            return made
        root = self.folder / version
        subprocess.run(["dpkg-deb", "--raw-extract", self.first, root], check=True)
        control = root / "DEBIAN/control"
        control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
        with (root / CONFIGURATION.lstrip("/")).open("a") as file:
            file.write(f"# as {version} has it\n")
        (package,) = (root / LIBRARY).glob("python3.*/site-packages/branchd")
        if not starts:
            shutil.rmtree(package)
            package.mkdir()
        (package / "__init__.py").write_text(f'__version__ = "{version}"\n' if starts else FAILS)
        compiled = ["/usr/bin/python3", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
        subprocess.run([*compiled, package / "__init__.py"], check=True)
        (root / "DEBIAN/md5sums").unlink()
        built = ["dpkg-deb", "--root-owner-group", "--build", root, made]
        subprocess.run(built, env=UNCOMPRESSED, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(root)
        return made


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("packages")
    built = subprocess.run(
        ["sh", REPOSITORY / "deploy/debian/build", folder],
        env=UNCOMPRESSED,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Packages(folder, Path(built.stdout.splitlines()[-1]))


@dataclass(frozen=True, slots=True)
class Machine(Installed):
    """One on which the package is installed."""

    def dpkg(self, *arguments: str | Path) -> str:
        """What it says, and the maintainer scripts, as apt has it ask nothing. Nothing is amiss."""
        done = self.host.run("dpkg", "--force-confold", *arguments, seconds=PATIENCE)
        said = done.stdout + done.stderr
        assert "warning" not in said, said
        assert "not empty" not in said, said
        return said

    def version(self) -> str:
        return str(self.api("GET", "/v1/branches")["items"][0]["version"])

    def states(self) -> list[str]:
        """Of the service and of its socket: whether it is up, and whether it will be at a boot."""
        units = (UNIT, SOCKET_UNIT)
        return [self.host.property(unit, name) for unit in units for name in ("ActiveState", "UnitFileState")]

    def left(self) -> list[str]:
        """What is there by the name of the package."""
        folders = ("/etc", "/usr/bin", "/usr/lib", "/usr/share", "/var", "/run")
        return self.host.run("find", *folders, "-name", "*branchd*").stdout.split()


UP = ["active", "enabled"] * 2


@pytest.fixture
def bare(packages: Packages, tmp_path: Path) -> Iterator[Machine]:
    """The package is not installed there."""
    scratch = tmp_path / "host"
    scratch.mkdir()
    with SystemdHost(scratch, disks=[packages.folder]) as host:
        host.boot({})
        host.run("rm", "-f", "/usr/sbin/policy-rc.d")  # of a machine for builds: it forbids to start what is installed
        yield Machine(host)


@pytest.fixture
def machine(bare: Machine, packages: Packages) -> Machine:
    """The package was just installed there."""
    bare.dpkg("--install", packages.first)
    return bare


def test_an_installed_branchd_runs_with_an_account_for_its_programs(machine: Machine) -> None:
    assert machine.states() == UP
    assert machine.host.run("stat", "--format=%U", f"/proc/{machine.create_worker()}").stdout == "branchd\n"
    assert machine.host.run("branchctl", "ps", "--state", "RUNNING").stdout != ""
    assert machine.host.run("dpkg", "--verify", "branchd").stdout == ""
    verified = machine.host.run("systemd-analyze", "verify", "--man=no", UNIT, SOCKET_UNIT)
    assert verified.stdout + verified.stderr == ""


def test_an_upgrade_refuses_nobody_restarts_nothing_and_keeps_the_configuration(
    machine: Machine, packages: Packages
) -> None:
    machine.host.run("sed", "-i", "s/^#slots = .*/slots = 7/", CONFIGURATION)
    worker, ending, daemon = machine.create_worker(), machine.create_ending("seven", 7), machine.daemon()
    upgrade = packages.made("0.1.1")

    with machine.load(RATE, SOCKET) as load:
        said = machine.dpkg("--install", upgrade)

    assert "does not start" not in said, f"{said}{machine.host.journal(UNIT)}"
    assert load.failures == {}
    assert load.answered > RATE
    branch = machine.api("GET", "/v1/branches")["items"][0]
    assert (branch["version"], branch["slots"]) == ("0.1.1", 7)
    assert (machine.daemon(), machine.restarts(), machine.states()) == (daemon, 0, UP)
    assert (machine.worker(), machine.worker("seven")) == (worker, ending)
    assert machine.end("seven")["code"] == 7
    assert "as 0.1.1 has it" in machine.host.run("cat", f"{CONFIGURATION}.dpkg-dist").stdout


def test_a_version_that_does_not_start_leaves_the_old_one_and_the_next_good_one_takes_over(
    machine: Machine, packages: Packages
) -> None:
    worker, ending, daemon = machine.create_worker(), machine.create_ending("seven", 7), machine.daemon()
    version = machine.version()

    said = machine.dpkg("--install", packages.made("0.1.2", starts=False))

    assert "the new version does not start" in said
    assert "a version that does not start" in machine.host.journal(UNIT)
    assert (machine.worker(), machine.daemon(), machine.version()) == (worker, daemon, version)
    # It has all of its code: new instances, what they write, and what is wrong with them.
    machine.create_worker("talks", "/bin/sh", "-c", "echo hello; exec sleep 1000")
    argv = ["curl", "--silent", "--unix-socket", SOCKET, "http://branchd/v1/apps/plain/instances/talks/logs"]
    until_sync(lambda: "hello" in machine.host.run(*argv).stdout, 60, "the log")
    machine.api("POST", "/v1/apps/plain/instances", {"name": "broken", "command": ["/nonexistent/program"]})
    until_sync(lambda: "does not exist" in str(machine.status("broken")), 60, "the reason")

    # Now it dies as well: nothing supervises until a version comes that starts, and the worker does not notice.
    machine.host.run("kill", "-KILL", str(daemon))
    until_sync(lambda: machine.restarts() > 1, 60, "a daemon that cannot start")
    assert machine.program(worker) == "/usr/bin/sleep 100000"
    machine.dpkg("--install", packages.made("0.1.3"))
    until_sync(lambda: machine.daemon() not in {0, daemon}, 60, "a daemon that can")
    assert machine.version() == "0.1.3"
    assert (until_sync(machine.worker, 60), until_sync(lambda: machine.worker("seven"), 60)) == (worker, ending)
    assert machine.end("seven")["code"] == (7 if machine.tells_exits() else None)


def test_an_upgrade_starts_and_enables_nothing_that_an_operator_has_stopped_or_disabled(
    machine: Machine, packages: Packages
) -> None:
    machine.host.run("systemctl", "stop", UNIT)
    until_sync(lambda: machine.states() == ["inactive", "enabled"] * 2, 60, "no socket")
    machine.dpkg("--install", packages.made("0.1.1"))
    assert machine.states() == ["inactive", "enabled"] * 2

    machine.host.run("systemctl", "disable", UNIT, SOCKET_UNIT)
    machine.host.start(UNIT)
    daemon = machine.daemon()
    machine.dpkg("--install", packages.made("0.1.3"))
    assert (machine.version(), machine.daemon()) == ("0.1.3", daemon)
    assert machine.states() == ["active", "disabled"] * 2


def test_a_removal_stops_what_runs_and_keeps_what_it_knew_and_a_purge_leaves_nothing(
    machine: Machine, packages: Packages
) -> None:
    worker = machine.create_worker()
    script = "trap 'echo stopped >/tmp/told; exit' TERM; while :; do sleep 0.05; done"
    machine.create_worker("trap", "/bin/sh", "-c", script)
    machine.host.run("sh", "-c", f"echo '# mine' >>{CONFIGURATION}")
    machine.host.write("/etc/branchd/conf.d/shop.toml", "")

    machine.dpkg("--remove", "branchd")

    assert machine.program(worker) == ""
    assert machine.host.run("cat", "/tmp/told").stdout == "stopped\n"
    assert [path for path in machine.left() if path.startswith("/usr")] == []
    assert machine.states() == ["inactive", "masked"] * 2

    machine.dpkg("--install", packages.made("0.1.1"))
    assert machine.states() == UP
    assert until_sync(machine.worker, 60, "the instance, wanted up") != worker
    assert "# mine" in machine.host.run("cat", CONFIGURATION).stdout

    machine.dpkg("--purge", "branchd")
    assert machine.left() == []
    assert machine.host.run("id", "--user", "--name", "branchd").stdout == "branchd\n"
    assert machine.host.property(UNIT, "LoadState") == "not-found"


def test_where_no_systemd_runs_it_is_installed_upgraded_and_purged_all_the_same(
    bare: Machine, packages: Packages
) -> None:
    hidden = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs tmpfs /run/systemd; exec dpkg "$@"', "sh"]
    for package in (packages.first, packages.made("0.1.1")):
        bare.host.run(*hidden, "--install", package, seconds=PATIENCE)
        assert bare.daemon() == 0
    bare.host.run("systemctl", "daemon-reload")
    assert bare.states() == ["inactive", "enabled"] * 2  # at the next boot it runs
    bare.host.run(*hidden, "--purge", "branchd", seconds=PATIENCE)
    assert bare.left() == []
