"""The host that the other tests here stand on: does it boot a real systemd, and is nothing left of it?"""

import subprocess
import sys
from pathlib import Path

from tests.systemd.host import NEEDS, REPOSITORY, SystemdHost, own_cgroup
from tests.waiting import until_sync

READY = """\
import os, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.send(b"READY=1\\nSTATUS=hello")
print("at your service", flush=True)
time.sleep(1000)
"""

UNIT = f"""\
[Service]
Type=notify
ExecStart={sys.executable} -c '{READY.encode("unicode_escape").decode()}'
"""


def test_a_machine_that_may_not_make_namespaces_fails_with_what_it_lacks(tmp_path: Path) -> None:
    program = (
        f"from pathlib import Path; import tests.systemd.host as h; h.SystemdHost(Path({str(tmp_path)!r})).boot({{}})"
    )
    unprivileged = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run(
        [*unprivileged, sys.executable, "-c", program, tmp_path, tmp_path.name],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "unshare failed: Operation not permitted" in done.stderr
    assert NEEDS in done.stderr
    assert list(own_cgroup().glob(f"*{tmp_path.name}*")) == []


def test_a_notify_service_runs_and_a_poweroff_leaves_nothing(host: SystemdHost) -> None:
    host.boot({"hello.service": UNIT})
    host.start("hello.service")
    assert host.property("hello.service", "ActiveState") == "active"
    assert host.property("hello.service", "StatusText") == "hello"
    until_sync(lambda: "at your service" in host.journal("hello.service"))
    assert host.run("cat", REPOSITORY / "pyproject.toml").stdout == (REPOSITORY / "pyproject.toml").read_text()
    init = host.init
    host.poweroff()
    assert not Path(f"/proc/{init}").exists()
    assert not host.cgroup.exists()


def test_a_power_cut_ends_all_and_the_disks_survive_it(tmp_path: Path) -> None:
    disk, scratch = tmp_path / "disk", tmp_path / "host"
    disk.mkdir()
    scratch.mkdir()
    with SystemdHost(scratch, disks=[disk]) as machine:
        machine.boot({"hello.service": UNIT})
        machine.start("hello.service")
        machine.run("sh", "-c", f"echo kept >{disk}/note; echo lost >/var/lib/note")
        machine.power_cut()
        assert not machine.cgroup.exists()
        machine.boot({})
        assert machine.run("cat", disk / "note").stdout == "kept\n"
        assert machine.run("test", "-e", "/var/lib/note", check=False).returncode == 1
    assert not machine.cgroup.exists()
    assert not Path("/var/lib/note").exists()
