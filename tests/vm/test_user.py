"""The unit of a user's own service manager, with what systemd delegates to users."""

import pytest

from tests.vm.machine import Machine
from tests.waiting import until_sync

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

CONFIGURATION = '[http]\nlisten = ["127.0.0.1:8711", "unix:/run/user/1000/branchd/api.sock"]\n'


def as_alice(command: str) -> str:
    return f"sudo -u alice -i XDG_RUNTIME_DIR=/run/user/$(id -u alice) {command}"


def kept(machine: Machine) -> str:
    return machine.run(
        "cd /sys/fs/cgroup$(cut -d: -f3- /proc/$(pgrep -u alice -f '^/usr/bin/sleep 123456')/cgroup) &&"
        "cat memory.max pids.max"
    )


def test_a_users_daemon_has_limits_and_is_back_after_a_boot(machine: Machine) -> None:
    machine.run("adduser --uid 1000 --disabled-password --gecos '' alice && loginctl enable-linger alice")
    until_sync(lambda: machine.tried("test -S /run/user/$(id -u alice)/bus")[0] == 0, 60)
    machine.run(
        f"cd ~alice && mkdir -p .config/systemd/user .config/branchd && "
        f"echo '{CONFIGURATION}' >.config/branchd/branchd.toml"
    )
    machine.run("branchd systemd-unit --profile user >~alice/.config/systemd/user/branchd.service")
    machine.run("branchd systemd-unit --profile user --socket >~alice/.config/systemd/user/branchd.socket")
    machine.run("chown -R alice: ~alice/.config")
    machine.run(as_alice("systemctl --user enable --now branchd.socket branchd.service"))
    assert "memory, pids controllers" in machine.run(as_alice("branchctl doctor"))
    spec = '{"kind": "command", "limits": {"memory": "64MiB", "tasks": 20}}'
    machine.run(as_alice(f"branchctl app set mine --json '{spec}'"))
    machine.run(as_alice("branchctl create mine one -- sleep 123456"))
    assert kept(machine) == "67108864\n20\n"
    machine.run(as_alice("systemctl --user restart branchd"))
    assert kept(machine) == "67108864\n20\n"
    machine.power_off()
    machine.boot()
    until_sync(lambda: machine.tried("pgrep -u alice -f '^/usr/bin/sleep 123456'")[0] == 0, 120)
    assert kept(machine) == "67108864\n20\n"


def test_the_single_user_unit_has_limits_too(machine: Machine) -> None:
    for unit in ("branchd.service", "branchd.socket"):
        socket = "--socket" if unit.endswith("socket") else ""
        machine.run(f"branchd systemd-unit --profile single-user {socket} >/etc/systemd/system/{unit}")
    machine.run("chgrp branchd /etc/branchd/branchd.toml; systemctl stop branchd.service branchd.socket")
    machine.run("systemctl daemon-reload; systemctl start branchd.socket branchd.service")
    spec = '{"kind": "command", "limits": {"memory": "64MiB", "tasks": 20}}'
    machine.run(f"branchctl app set mine --json '{spec}'")
    machine.run("branchctl create mine one -- sleep 123457")
    folder = machine.run(
        "echo /sys/fs/cgroup$(cut -d: -f3- /proc/$(pgrep -u branchd -f '^/usr/bin/sleep 123457')/cgroup)"
    ).strip()
    assert machine.run(f"cat {folder}/memory.max {folder}/pids.max") == "67108864\n20\n"
