"""LocalHost on this machine: what it says of real processes."""

import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from branchd.adapters import proc
from branchd.adapters.host import LocalHost
from branchd.adapters.precheck import Accounts, account_of
from branchd.branch.ports import Host
from branchd.core.errors import SpawnFailed
from branchd.core.values import Identity
from tests.waiting import until_sync

#: has a child that has 20 MB and a second thread, says so, and waits
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import sys, threading
kept = bytearray(b"x" * 20_000_000)
threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
'''], stdin=subprocess.PIPE)
sys.stdin.read()
child.communicate()
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return LocalHost(tmp_path, Accounts())


@pytest.fixture
def running() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        yield parent


def identity(host: Host, pid: int) -> Identity:
    stat = proc.stat(pid)
    assert stat is not None
    return Identity(host.boot, pid, stat.started)


def test_the_machines_figures(host: Host) -> None:
    assert host.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    load = host.load()
    assert set(load) == {"load_per_core", "memory_available", "memory_total", "disk_free"}
    assert load["load_per_core"] >= 0
    assert 0 < load["memory_available"] <= load["memory_total"]
    assert 0 <= load["disk_free"] <= 1


def test_only_the_processors_that_it_may_use_count(host: Host) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert host.cpus == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert host.cpus == len(allowed)


def test_accounts(host: Host) -> None:
    nobody = pwd.getpwnam("nobody")
    assert host.account("nobody") == (nobody.pw_dir, "nobody")
    assert host.account(None) == (pwd.getpwuid(os.geteuid()).pw_dir, pwd.getpwuid(os.geteuid()).pw_name)
    with pytest.raises(SpawnFailed, match="user 'nonesuch' does not exist on this machine"):
        host.account("nonesuch")


def test_the_user_ids_of_accounts(host: Host) -> None:
    assert (host.uid(None), host.uid("root")) == (os.geteuid(), 0)
    with pytest.raises(SpawnFailed):
        host.uid("nobody-of-that-name")


def test_many_questions_after_one_account_are_one_question_to_who_knows_them(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counting(user: str | None) -> pwd.struct_passwd:
        asked.append(user)
        return account_of(user)

    monkeypatch.setattr("branchd.adapters.precheck.account_of", counting)
    assert {host.uid("root") for _ in range(100)} == {0}
    assert {host.account("root")[0] for _ in range(100)} == {"/root"}
    assert asked == ["root"]
    monkeypatch.setattr("branchd.adapters.precheck.ACCOUNT_FOR", -1.0)
    fresh = LocalHost(Path("/"), Accounts())
    assert [fresh.uid("root"), fresh.uid("root")] == [0, 0]
    assert asked == ["root"] * 3


def test_a_daemon_whose_user_is_a_number_without_a_name_has_an_account(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert host.account(None) == ("/", "54321")


def test_usage_is_of_the_whole_tree(host: Host, running: subprocess.Popen[bytes]) -> None:
    usage = host.usage(identity(host, running.pid))
    assert usage is not None
    assert set(usage) == {"rss", "cpu_seconds", "processes", "threads", "open_files"}
    assert usage["processes"] == 2
    assert usage["threads"] == 3
    assert usage["rss"] > 25_000_000
    assert usage["cpu_seconds"] > 0
    assert usage["open_files"] >= 6


def test_what_is_gone_has_no_usage(host: Host, running: subprocess.Popen[bytes]) -> None:
    was = identity(host, running.pid)
    assert host.usage(replace(was, started=was.started + 1)) is None
    assert host.usage(replace(was, boot="another")) is None
    running.kill()
    until_sync(lambda: (stat := proc.stat(running.pid)) is not None and stat.ended)
    assert host.usage(was) is None  # a zombie
    running.wait()
    assert host.usage(was) is None


def test_hard_limits_are_those_that_have_an_end(tmp_path: Path) -> None:
    said = LocalHost(tmp_path, Accounts()).hard_limits()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert said.get("open_files", resource.RLIM_INFINITY) == hard
    assert resource.RLIM_INFINITY not in said.values()
