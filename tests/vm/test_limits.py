"""Limits on a real systemd with cgroup v2 alone, as the kernel keeps them: reached, told of, and never lost."""

import json
from typing import Any

import pytest

from tests.vm.machine import Machine
from tests.waiting import until_sync

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

#: of systemd's unit
DROP_IN = "/run/systemd/system/branchd.service.d/test.conf"

FILES = {
    "hog": "data = b''\nwhile True: data += b'x' * 1048576\n",
    "busy": "import os\nos.fork()\nwhile True: pass\n",
    "bomb": """
import os, time
forked, refused = 0, 0
for _ in range(200):
    try:
        if os.fork() == 0:
            time.sleep(1e6)
        forked += 1
    except BlockingIOError:
        refused += 1
print('forked', forked, 'refused', refused, flush=True)
time.sleep(1e6)
""",
}

APPS = """
[apps.t]
kind = "command"
command = ["sleep", "1000000"]
[apps.t.instances.free]
[apps.t.instances.limited]
limits = { memory = "64MiB", cpu = 0.5, tasks = 20 }
[apps.t.instances.hog]
command = ["python3", "/srv/hog.py"]
limits = { memory = "64MiB" }
restart = { max_restarts = 1 }
wanted = "down"
[apps.t.instances.busy]
command = ["python3", "/srv/busy.py"]
limits = { cpu = 0.25 }
wanted = "down"
[apps.t.instances.bomb]
command = ["python3", "/srv/bomb.py"]
limits = { tasks = 20 }
wanted = "down"
[apps.t.instances.runaways]
command = ["bash", "-c", "setsid bash -c 'setsid env -i sleep 77771 & exec env -i sleep 77772' & sleep 77773"]
wanted = "down"
"""


@pytest.fixture(scope="module")
def vm(machine: Machine) -> Machine:
    for name, text in FILES.items():
        machine.run(f'echo "{text}" >/srv/{name}.py')
    machine.run(f"cat >/srv/apps.toml <<'END'\n{APPS}\nEND\nbranchctl apply --yes /srv/apps.toml")
    return machine


def instances(vm: Machine) -> dict[str, Any]:
    return {item["name"]: item for item in json.loads(vm.run("branchctl ps -o json"))["items"]}


def pids(vm: Machine) -> dict[str, int]:
    """Of the two that always run."""
    return {name: item["status"]["pid"] for name, item in instances(vm).items() if name in ("free", "limited")}


def cgroup(vm: Machine, name: str) -> str:
    return vm.run(f"echo /sys/fs/cgroup$(cut -d: -f3- /proc/{instances(vm)[name]['status']['pid']}/cgroup)").strip()


def kept(vm: Machine) -> list[str]:
    """The limits of the limited one, as the kernel has them."""
    folder = cgroup(vm, "limited")
    return vm.run(f"cd {folder} && cat memory.max cpu.max pids.max").splitlines()


LIMITS = ["67108864", "50000 100000", "20"]


def test_the_doctor_finds_all_controllers(vm: Machine) -> None:
    assert "each instance has its own; cpu, memory, pids controllers for limits" in vm.run("branchctl doctor")
    assert kept(vm) == LIMITS


def test_beyond_its_memory_the_kernel_kills_and_the_daemon_says_so(vm: Machine) -> None:
    before = pids(vm)
    vm.run("fallocate --length 256M /swap && chmod 600 /swap && mkswap --quiet /swap && swapon /swap")
    vm.tried("branchctl start --no-wait t:hog")
    why = "killed by SIGKILL: its limit of memory is reached"
    until_sync(lambda: instances(vm)["hog"]["status"]["state"] == "FATAL", 120, "given up")
    shown = vm.tried("branchctl show t:hog")[1]
    assert f"{why}; 2 times within 300 s" in shown
    assert f"{why} at " in shown  # its last exit
    assert vm.run("branchctl events").count(f"exit={why}") == 2
    assert pids(vm) == before
    vm.run("branchctl stop t:hog")


def test_two_busy_processes_share_what_their_instance_may_take(vm: Machine) -> None:
    vm.run("branchctl start t:busy")
    used, passed = vm.run(
        f"cd {cgroup(vm, 'busy')} && now() {{ echo $(date +%s%6N) $(sed -n 's/^usage_usec //p' cpu.stat); }} &&"
        "set -- $(now) && sleep 10 && set -- $* $(now) && echo $(($4 - $2)) $(($3 - $1))"
    ).split()
    assert int(used) / int(passed) == pytest.approx(0.25, rel=0.2)
    vm.run("branchctl stop t:busy")


def test_a_fork_bomb_stays_within_its_limit_and_ends_at_once(vm: Machine) -> None:
    vm.run("branchctl start t:bomb")
    until_sync(lambda: vm.run("branchctl logs t:bomb"), 60)
    assert "forked 19 refused 181" in vm.run("branchctl logs t:bomb")
    figures = json.loads(vm.run("branchctl stats t:bomb -o json"))
    counted, memory = map(int, vm.run(f"cd {cgroup(vm, 'bomb')} && cat pids.current memory.current").split())
    assert figures["processes"] == figures["tree"]["tasks"] == counted == 20
    assert figures["tree"]["memory"] == pytest.approx(memory, rel=0.2)
    vm.run("branchctl stop t:bomb")
    assert vm.tried("pgrep -f ^/usr/bin/python3./srv/bomb.py")[0] == 1


def test_what_has_left_its_session_and_its_environment_ends_on_a_stop(vm: Machine) -> None:
    vm.run("branchctl start t:runaways")
    until_sync(lambda: vm.run("pgrep -c -f '^sleep 7777' || true") == "3\n", 30)
    vm.run("branchctl stop t:runaways")
    until_sync(lambda: vm.tried("pgrep -f '^sleep 7777'")[0] == 1, 30)


@pytest.mark.parametrize(
    "how",
    [
        "systemctl kill --signal KILL --kill-whom main branchd",
        "systemctl restart branchd",
        "systemctl reload branchd",
        "dpkg -i /root/branchd.deb",
    ],
)
def test_what_runs_goes_on_and_keeps_its_limits(how: str, vm: Machine) -> None:
    before = pids(vm)
    vm.run(how)
    until_sync(lambda: vm.tried("branchctl ps")[0] == 0, 60)
    assert pids(vm) == before
    assert kept(vm) == LIMITS


def test_without_what_turns_controllers_off_systemd_starts_no_daemon_and_with_it_again(vm: Machine) -> None:
    version = int(vm.run("systemctl --version").split()[1])
    before = pids(vm)
    vm.run(
        f"mkdir -p $(dirname {DROP_IN}) && printf '[Service]\\nExecStopPost=\\n' >{DROP_IN} && systemctl daemon-reload"
    )
    failed = vm.tried("systemctl restart branchd")[0] != 0
    assert failed == (version < 254)
    assert ("status=219/CGROUP" in vm.run("journalctl --unit branchd")) == failed
    vm.run(
        f"rm {DROP_IN} && systemctl daemon-reload"
    )  # its next failure turns them off, and the start after it succeeds
    until_sync(lambda: vm.tried("branchctl ps")[0] == 0, 60)
    assert pids(vm) == before
    assert kept(vm) == LIMITS


def test_where_a_controller_is_not_delegated_the_doctor_says_so_and_how_to_have_it(vm: Machine) -> None:
    def delegate(text: str) -> None:
        """While it is down, for systemd takes no controller from those who use it."""
        vm.run("systemctl stop branchd.service")
        vm.run(f"mkdir -p $(dirname {DROP_IN}) && printf '[Service]\\nDelegate=\\nDelegate={text}\\n' >{DROP_IN}")
        vm.run("systemctl daemon-reload && systemctl start branchd.socket branchd.service")

    delegate("memory pids")
    said = vm.tried("branchctl doctor")[1]
    assert "not enforced for 2 instances (t:busy, t:limited): cpu: the controller 'cpu' is not to be had" in said
    assert "Delegate=yes" in said
    delegate("yes")
    assert "not enforced" not in vm.run("branchctl doctor")
    assert kept(vm) == LIMITS


def test_after_a_power_cut_what_was_wanted_runs_once(vm: Machine) -> None:
    vm.run("sync")
    vm.power_cut()
    vm.boot()
    until_sync(lambda: vm.tried("systemctl is-active branchd")[1] == "active\n", 120)
    until_sync(lambda: {"RUNNING"} == {instances(vm)[name]["status"]["state"] for name in ("free", "limited")}, 60)
    assert vm.run("pgrep -c -f '^/usr/bin/sleep 1000000'") == "2\n"
    assert kept(vm) == LIMITS


def test_a_stop_ends_all_and_a_start_brings_what_is_wanted(vm: Machine) -> None:
    vm.run("systemctl stop branchd.service")
    assert vm.tried("pgrep -f '^/usr/bin/sleep 1000000'")[0] == 1
    vm.run("systemctl start branchd.service")
    until_sync(lambda: vm.run("pgrep -c -f '^/usr/bin/sleep 1000000' || true") == "2\n", 60)
    assert kept(vm) == LIMITS


def test_a_machine_that_goes_down_waits_for_the_stop_plans(vm: Machine) -> None:
    late = "trap 'sleep 5; date >/srv/ended; exit 0' TERM; touch /srv/trapped; while :; do sleep 0.1; done"
    vm.run(f'echo "{late}" >/srv/late.sh && chmod 777 /srv && branchctl app set late --json \'{{"kind": "command"}}\'')
    vm.run("branchctl create late one -- bash /srv/late.sh")
    until_sync(lambda: vm.tried("test -e /srv/trapped")[0] == 0, 30)
    vm.power_off()
    vm.boot()
    assert vm.tried("test -e /srv/ended")[0] == 0
