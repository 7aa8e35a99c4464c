"""A machine with a real systemd, booted in namespaces of this one in about a second, for tests of what deploy/ ships.

It sees this machine's files through an overlay and keeps nothing that it writes, except below the paths in `disks`.
No network but its own loopback. What it asks of this machine stands in NEEDS.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.waiting import until_sync

REPOSITORY = Path(__file__).resolve().parents[2]
BOOT = Path(__file__).with_name("boot.sh")

#: seconds that a boot or a shutdown may take on a loaded machine; alone it takes about one
PATIENCE = 60

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


NEEDS = (
    "Such a host needs root with all capabilities (in a container: a privileged one), overlayfs, a cgroup2 mount that "
    "can be written to, and the packages systemd, util-linux and iproute2."
)


class CannotBoot(AssertionError):
    """The host did not come up; the message is its console and what a machine needs for it."""


class SystemdHost:
    """One such machine. It can be booted again after a poweroff or a power cut; its disks still hold what they held.

    scratch: an empty folder, for its units, its console and its mounts.
    disks: folders of this machine that it may write to, at the same path inside.
    """

    def __init__(self, scratch: Path, name: str = "host", disks: Sequence[Path] = ()) -> None:
        self.name = name
        self.units = scratch / "units"
        self.units.mkdir()
        self._mounts = scratch / "mounts"
        self._mounts.mkdir()
        self._console = scratch / "console"
        self._visible = [str(path) for path in _visible_paths()] + [f"{path}:rw" for path in disks]
        self.cgroup = own_cgroup() / f"branchd-tests-{os.getpid()}-{name}"
        self._namespaces: subprocess.Popen[bytes] | None = None
        self.init = 0  #: pid of its systemd, as this machine sees it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.power_cut()

    def boot(self, units: Mapping[str, str]) -> None:
        """Starts it with these files of units (`a.service` or `a.service.d/b.conf`: text) and waits for the boot's end.

        CannotBoot when it does not come up.
        """
        assert self._namespaces is None, "it is already up"
        for name, text in units.items():
            (self.units / name).parent.mkdir(exist_ok=True)
            (self.units / name).write_text(text)
        try:
            self.cgroup.mkdir()
        except OSError as error:
            raise CannotBoot(f"no control group for it: {error}. {NEEDS}") from error
        # into the group first: the root of a new cgroup namespace is the group that its maker is in
        enter = ["sh", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "sh", str(self.cgroup)]
        unshare = ["unshare", "--mount", "--pid", "--net", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child"]
        script = ["sh", str(BOOT), str(self._mounts), self.name, str(self.units), *self._visible]
        with self._console.open("wb") as console:
            self._namespaces = subprocess.Popen(
                [*enter, *unshare, *script],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        try:
            self.init = until_sync(self._systemd, PATIENCE, "systemd as PID 1")
            until_sync(self._is_up, PATIENCE, "the end of the boot")
        except AssertionError as error:
            self.power_cut()
            raise CannotBoot(f"{error}\n{self.console()}\n{NEEDS}") from error

    def run(self, *argv: str | Path, check: bool = True, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Runs a command in there as root; AssertionError with its output when it fails and `check` is set."""
        done = subprocess.run(
            self._inside(*argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def begin(self, *argv: str | Path) -> subprocess.Popen[str]:
        """Begins a command in there as root, with pipes, which the caller waits for."""
        return subprocess.Popen(
            self._inside(*argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def write(self, path: str, text: str) -> None:
        """A file in there, and the folders that it needs."""
        self.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && printf %s "$1" >"$0"', path, text)

    def _inside(self, *argv: str | Path) -> list[str | Path]:
        enter = ["nsenter", "-t", str(self.init), "-m", "-p", "-n", "-C", "-u", "-i", "-r", "-w"]
        return [*enter, "env", "-i", f"PATH={SEARCH_PATH}", "LANG=C.UTF-8", "HOME=/root", *argv]

    def start(self, unit: str) -> None:
        """Starts a unit and waits until it has; AssertionError with its journal when it does not."""
        done = self.run("systemctl", "start", unit, check=False)
        assert done.returncode == 0, f"{done.stderr}{self.journal(unit)}"

    def property(self, unit: str, name: str) -> str:
        """What `systemctl show` says of one property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """What a unit wrote, and systemd about it."""
        return self.run("journalctl", "--no-pager", "--output=short-precise", f"--unit={unit}").stdout

    def console(self) -> str:
        """What systemd itself had to say."""
        return self._console.read_text(errors="replace")

    def poweroff(self) -> None:
        """Shuts it down in order: units are stopped by their own rules."""
        assert self._namespaces is not None
        self.run("systemctl", "poweroff", "--no-block")
        self._namespaces.wait(PATIENCE)
        self.power_cut()

    def power_cut(self) -> None:
        """Ends every process in it at once and removes what it left on this machine. Nothing happens when it is off."""
        if self._namespaces is not None:
            self._namespaces.kill()  # --kill-child: its systemd dies with it, and with that all of its pid namespace
            self._namespaces.wait()
            self._namespaces = None
            self.init = 0
        if self.cgroup.exists():
            until_sync(lambda: _remove_cgroup(self.cgroup), PATIENCE, f"an empty {self.cgroup}")

    def _systemd(self) -> int:
        """The pid of its PID 1 once that is systemd; 0 before."""
        assert self._namespaces is not None
        assert self._namespaces.poll() is None, "the script that makes it has failed"
        pid = self._namespaces.pid
        with contextlib.suppress(OSError, ValueError, IndexError):
            child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return child
        return 0

    def _is_up(self) -> bool:
        # degraded: a unit of this machine's own did not fit; the tests look at theirs
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in {"running", "degraded"}


def own_cgroup() -> Path:
    """The folder of this process's own cgroup2 group, on pure and on hybrid machines; CannotBoot without one."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    roots = [Path(fields[4]) for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    if not roots:
        raise CannotBoot(f"no cgroup2 mount on this machine. {NEEDS}")
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    group = next(line.removeprefix("0::/") for line in groups if line.startswith("0::"))
    return roots[0] / group if (roots[0] / group).is_dir() else roots[0]


def _remove_cgroup(group: Path) -> bool:
    """Removes a group and those below it; False while processes are still ending in one."""
    try:
        for path, _, _ in os.walk(group, topdown=False):
            os.rmdir(path)
    except OSError:
        return False
    return True


def _visible_paths() -> list[Path]:
    """What a host must see at its place, wherever it is mounted here: the project, and the Python that runs it."""
    paths = {REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    return sorted(path for path in paths if not path.is_relative_to("/usr"))
