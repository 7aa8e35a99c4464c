"""A machine with a kernel of its own, where cgroup v2 has the controllers that a host with v1 lacks.

It is Debian's user-mode Linux, a kernel that runs as a program: no KVM, no boot loader, 15 s to systemd's last target.
Its disk is made once and kept beside the virtual environment; what a test writes goes to a file of that test. There is
no network. The machine's clock of CPU time ticks every 10 ms, and it has one CPU.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO, Self

REPOSITORY = Path(__file__).parents[2]

CONTROL = REPOSITORY / "tests/vm/control.py"

PACKAGES = "systemd-sysv,dbus,dbus-user-session,libpam-systemd,python3,adduser,sudo,procps"

#: what a start would take time for, and a machine without devices or a network has no use for
NEEDLESS = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "getty@tty1.service", "kmod-static-nodes.service", "modprobe@.service", "systemd-binfmt.service",
    "systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
)  # fmt: skip

UNIT = """[Unit]
Description=what a test asks for

[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/control.py
KillMode=process
OOMScoreAdjust=-1000

[Install]
WantedBy=multi-user.target
"""

#: seconds for a start, a command, an end, on a loaded machine
PATIENCE = 240


def disk() -> Path:
    """Debian, of the release that this is, with what listens to a test; made where there is none yet, in minutes."""
    recipe = "".join((PACKAGES, *NEEDLESS, UNIT, CONTROL.read_text()))
    made = REPOSITORY / f".venv/vm/{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.ext4"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        root = Path(folder) / "root"
        release = next(
            line.partition("=")[2] for line in Path("/etc/os-release").read_text().splitlines()
            if line.startswith("VERSION_CODENAME=")
        )  # fmt: skip
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", release, root],
            stdin=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        units = root / "etc/systemd/system"
        for name in NEEDLESS:
            (units / name).symlink_to("/dev/null")
        (units / "control.service").write_text(UNIT)
        (units / "multi-user.target.wants").mkdir(exist_ok=True)
        (units / "multi-user.target.wants/control.service").symlink_to(units.relative_to(root) / "control.service")
        shutil.copy(CONTROL, root / "usr/local/lib/control.py")
        for name, text in {
            "hostname": "vm\n",
            "fstab": "",
            "machine-id": "",
            "hosts": "127.0.0.1 localhost vm\n",
        }.items():
            (root / "etc" / name).write_text(text)
        image = Path(folder) / "ext4"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, "1500M"], check=True)
        image.rename(made)
    return made


class Machine:
    """Off until boot()."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where its disk and its memory are."""
        self._folder = folder
        self._linux: subprocess.Popen[bytes] | None = None
        self._line: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.power_cut()

    def boot(self) -> None:
        ours, its = socket.socketpair()
        ours.settimeout(PATIENCE)
        with its, (self._folder / "console").open("ab") as console:
            self._linux = subprocess.Popen(
                ["linux.uml", f"ubda={self._folder / 'disk'},{disk()}", "root=/dev/ubda", "rw", "mem=1G",
                 "con=null", "con0=null,fd:1", "ssl=null", f"ssl1=fd:{its.fileno()}", f"uml_dir={self._folder}",
                 "systemd.unified_cgroup_hierarchy=1"],
                env={**os.environ, "TMPDIR": str(self._folder)}, stdin=subprocess.DEVNULL, stdout=console,
                stderr=console, pass_fds=[its.fileno()], start_new_session=True,
            )  # fmt: skip
        self._line = ours.makefile("rwb")
        ours.close()  # the file has it
        assert self._line.readline() == b"up\n", "it ended while it was booting: see `console`"

    def run(self, command: str) -> str:
        """What bash says on both outputs; AssertionError where it fails."""
        status, output = self.tried(command)
        assert status == 0, f"{command}: {status}\n{output}"
        return output

    def tried(self, command: str) -> tuple[int, str]:
        """Its status and what it says."""
        line = self._asked(command)
        status, output = json.loads(line.readline())
        return status, output

    def power_cut(self) -> None:
        if self._linux is not None:
            os.killpg(self._linux.pid, signal.SIGKILL)
            self._off()

    def power_off(self) -> None:
        """As `poweroff` does, to the end."""
        self._asked("systemctl poweroff")  # who would answer ends too
        self._off()

    def _asked(self, command: str) -> BinaryIO:
        assert self._line is not None
        self._line.write(json.dumps(command).encode() + b"\n")
        self._line.flush()
        return self._line

    def _off(self) -> None:
        assert self._linux is not None
        self._linux.wait(PATIENCE)
        self._linux = None
        if self._line is not None:
            self._line.close()
            self._line = None
