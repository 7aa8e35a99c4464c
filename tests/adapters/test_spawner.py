"""The process that forks: what it does to a program, what it holds, and what happens when it ends."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from branchd.adapters import limits, proc, spawner, spawning
from branchd.adapters.cgroup import Cgroup
from branchd.adapters.process import LinuxProcess
from branchd.core.errors import SpawnFailed, StorageFailed
from branchd.core.spec import Limits
from branchd.core.values import Exit, Key, Launch
from tests.adapters.conformance_process import KEY, Exits
from tests.adapters.test_process import PATH, Machine, gone, machine
from tests.signal_masks import OF_LIBC
from tests.waiting import until

__all__ = ["machine"]  # a fixture


async def status(machine: Machine, launch: Launch) -> dict[str, str]:
    """/proc/self/status of a program, by the name of the line."""
    text = await machine.output(launch)
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


async def test_signals_are_as_the_kernel_makes_them(machine: Machine) -> None:
    found = await status(machine, Launch(("cat", "/proc/self/status"), "/", {"PATH": PATH}))
    masks = [int(found[name], 16) & ~OF_LIBC for name in ("SigIgn", "SigBlk", "SigCgt")]
    assert masks == [0, 0, 0]


async def test_resource_limits_niceness_and_oom_score_are_set_before_it_runs(machine: Machine) -> None:
    script = "ulimit -n; ulimit -Hn; ulimit -v; ulimit -c; nice; cat /proc/self/oom_score_adj"
    asked = Limits(open_files=300, address_space="512MiB", core=0, nice=5, oom_score_adj=100)
    launch = Launch(("sh", "-c", script), "/", {"PATH": PATH}, user="nobody", limits=asked)
    assert (await machine.output(launch)).split() == ["300", "300", str(512 << 10), "0", "5", "100"]


async def test_without_limits_open_files_are_as_the_daemon_was_given_them(machine: Machine) -> None:
    text = await machine.output(Launch(("sh", "-c", "ulimit -n; ulimit -Hn"), "/", {"PATH": PATH}))
    assert text.split() == [str(number) for number in machine.processes._descriptors]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give up a capability here")
def test_what_one_may_not_raise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_capable", lambda capability: False)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    asked = Limits(
        open_files=hard + 1, nice=os.getpriority(os.PRIO_PROCESS, 0) - 1, oom_score_adj=-1000, memory=1 << 30
    )
    found = limits.unenforceable(asked, frozenset({"cpu"}), (1024, hard))
    assert set(found) == {"open_files", "nice", "oom_score_adj", "memory"}
    assert "memory" not in limits.unenforceable(asked, frozenset({"memory"}), (1024, hard))
    assert limits.unenforceable(Limits(open_files=hard, nice=19), None, (1024, hard)) == {}
    assert limits.unenforceable(Limits(tasks=5), None, (1024, hard)) == {"tasks": "there are no control groups"}


async def test_it_holds_nothing_of_the_daemons(machine: Machine) -> None:
    assert machine.processes.spawner is not None
    await machine.output(machine.shell("true"))
    with (machine.folder / "held").open("w") as held:
        os.set_inheritable(held.fileno(), True)  # such as are passed on at a re-exec
        os.kill(machine.processes.spawner, signal.SIGKILL)
        await until(lambda: machine.processes.spawner is None)
        await machine.output(machine.shell("true"))
        folder = Path(f"/proc/{machine.processes.spawner}/fd")
        links = {each: os.readlink(folder / each) for each in os.listdir(folder)}
    assert len(links) == 4
    assert (links["0"], links["1"]) == ("/dev/null", "/dev/null")
    assert links[max(links, key=int)].startswith("socket:")


async def test_when_it_is_killed_in_the_middle_what_is_not_known_does_not_run(machine: Machine) -> None:
    for turn in range(5):
        keys = [Key("shop", f"w-{turn}-{number}") for number in range(12)]
        nonces = [uuid.uuid4().hex for _ in keys]
        launch = Launch(("sleep", "1000"), "/", {"PATH": PATH})
        starts = [
            asyncio.ensure_future(machine.spawn(launch, Exits(), nonce=nonce, key=key))
            for key, nonce in zip(keys, nonces, strict=True)
        ]
        await asyncio.wait([starts[turn]])
        helper = machine.processes.spawner
        assert helper is not None
        os.kill(helper, signal.SIGKILL)
        ended = await asyncio.gather(*starts, return_exceptions=True)
        # Where all had begun by then, nobody has asked it since: the next one to do so would be told that it is lost.
        await until(lambda helper=helper: machine.processes.spawner != helper, what="its end to be noticed")
        for nonce, result in zip(nonces, ended, strict=True):
            if isinstance(result, LinuxProcess):
                assert not gone(result.identity)
                continue
            assert isinstance(result, SpawnFailed)
            assert result.ours
            await until(lambda nonce=nonce: not marked(nonce), what="no trace of a start that failed")
        known = {result.identity.pid for result in ended if isinstance(result, LinuxProcess)}
        assert known
        machine_wide = {pid for nonce in nonces for pid in marked(nonce)}
        assert machine_wide == known
    assert await machine.output(machine.shell("echo again")) == "again\n"


def forkers(daemon: int) -> list[proc.Stat]:
    """Its process that forks, and the clones that are still copies of it: they wait to execute their programs."""
    children = [stat for pid in proc.children(daemon) if (stat := proc.stat(pid)) is not None]
    return [stat for stat in children if spawning.program().encode() in proc.command_line(stat.pid)]


def gated(machine: Machine) -> bool:
    return len(forkers(os.getpid())) > 1


async def test_nothing_is_executed_before_it_is_sure(machine: Machine) -> None:
    exits, sure = Exits(), asyncio.get_running_loop().create_future()
    start = asyncio.ensure_future(machine.spawn(machine.shell("echo begun"), exits, sure=sure))
    await until(lambda: gated(machine), what="a clone at its gate")
    others = Exits()  # meanwhile others pass
    await machine.spawn(machine.shell("echo other"), others, key=Key("shop", "other"))
    assert (await others.one()).code == 0
    assert not start.done()
    assert (machine.folder / "output").read_text() == "other\n"
    sure.set_result(None)
    await start
    assert (await exits.one()).code == 0
    assert (machine.folder / "output").read_text() == "other\nbegun\n"


async def test_what_takes_longer_to_be_sure_than_a_clone_waits_begins_all_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawning, "PATIENCE", 4.0)
    exits, sure = Exits(), asyncio.get_running_loop().create_future()
    start = asyncio.ensure_future(machine.spawn(machine.shell("echo begun"), exits, sure=sure))
    await until(lambda: gated(machine), what="a clone at its gate")
    await until(lambda: not gated(machine), what="a clone that was sent away")
    monkeypatch.undo()
    assert not start.done()
    sure.set_result(None)
    await start
    assert (await exits.one()).code == 0
    assert (machine.folder / "output").read_text() == "begun\n"


async def test_one_that_is_lost_while_orders_wait_for_room_keeps_nothing_waiting(machine: Machine) -> None:
    helper = machine.processes.spawner
    assert helper is not None
    os.kill(helper, signal.SIGSTOP)
    launch = Launch(("true", *["x" * 100_000] * 2), "/", {"PATH": PATH})  # ten of them fill any socket
    keys = (Key("shop", f"w-{number}") for number in range(10))
    starts = [asyncio.ensure_future(machine.spawn(launch, Exits(), key=key)) for key in keys]
    await until(machine.processes._spawning._sending.locked, what="an order that waits for room")
    os.kill(helper, signal.SIGKILL)
    async with asyncio.timeout(30):
        ended = await asyncio.gather(*starts, return_exceptions=True)
        assert all(isinstance(each, LinuxProcess | SpawnFailed) for each in ended)
        assert await machine.output(machine.shell("echo again")) == "again\n"


@pytest.mark.parametrize("early", [True, False])
async def test_where_it_turns_out_not_to_be_sure_nothing_is_executed(machine: Machine, early: bool) -> None:
    sure = asyncio.get_running_loop().create_future()
    if early:
        sure.set_exception(StorageFailed("full"))
    start = asyncio.ensure_future(machine.spawn(machine.shell("echo begun"), Exits(), sure=sure))
    if not early:
        await until(lambda: gated(machine), what="a clone at its gate")
        sure.set_exception(StorageFailed("full"))
    with pytest.raises(StorageFailed):
        await start
    assert machine.childless()
    assert await machine.output(machine.shell("echo again")) == "again\n"


def marked(nonce: str) -> set[int]:
    found = {pid for pid in proc.pids() if proc.mark(pid) == nonce}
    return {pid for pid in found if (stat := proc.stat(pid)) is not None and not stat.ended}


async def test_one_that_hangs_is_given_up_and_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawning, "PATIENCE", 0.1)
    pid = machine.processes.spawner
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SpawnFailed) as caught:
        await machine.spawn(machine.launch, Exits())
    assert caught.value.ours
    monkeypatch.undo()
    assert await machine.output(machine.shell("echo again")) == "again\n"
    assert machine.processes.spawner != pid


@pytest.mark.parametrize("machine", ["cgroups"], indirect=True)
async def test_one_that_the_limit_of_memory_has_killed_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.processes._cgroups.controllers = frozenset({"memory"})  # it may be in no cgroup v2 here
    kills = iter([1, 2, 2, 2])
    monkeypatch.setattr(Cgroup, "oom_kills", lambda cgroup: next(kills))
    for why in ("killed by SIGKILL: its limit of memory is reached", "killed by SIGKILL"):
        exits = Exits()
        (await machine.spawn(machine.launch, exits)).signal(signal.SIGKILL)
        assert str(await exits.one()) == why


@pytest.mark.parametrize("machine", ["cgroups"], indirect=True)
async def test_the_kernel_counts_the_time_of_the_whole_tree(machine: Machine) -> None:
    process = await machine.spawn(machine.shell("sh -c 'while :; do :; done'"), Exits())
    await until(lambda: process.tree_usage()["cpu_seconds"] > 0.05)


@pytest.mark.parametrize("machine", ["cgroups"], indirect=True)
async def test_where_clone3_is_refused_programs_join_their_cgroup(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = machine.folder / "refused.py"
    folder = str(Path(spawner.__file__).parent)
    program.write_text(
        f"import sys; sys.path.insert(0, {folder!r}); import spawner; spawner._SYS_CLONE3 = 100000\n"
        "spawner.main(int(sys.argv[1]), int(sys.argv[2]))\n"
    )
    monkeypatch.setattr(spawning, "PROGRAM", str(program))
    machine.restart_daemon()
    exits = Exits()
    process = await machine.spawn(machine.shell("cat /proc/$$/cgroup; kill -9 $$"), exits)
    assert await exits.one() == Exit(signal=signal.SIGKILL)
    assert process.cgroup is not None
    assert f"/branchd-{machine.branch_id}/{KEY}\n" in (machine.folder / "output").read_text()
    assert machine.processes.facts().joins_late


@pytest.mark.parametrize("machine", ["cgroups"], indirect=True)
async def test_what_begins_where_all_was_killed_before_lives(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cgroup, "remove", lambda cgroup: None)  # as if what was killed took its time to go
    for _ in range(3):
        exits = Exits()
        process = await machine.spawn(machine.shell("(sleep 1000 &); exit 3"), exits)
        assert await exits.one() == Exit(code=3)
        assert process.cgroup is not None
        assert not process.cgroup.known_empty
        machine.processes.sweep(process.key, process.nonce)
        await until(lambda process=process: process.cgroup.known_empty)
    monkeypatch.undo()


async def test_orders_of_any_length_arrive_in_any_number(machine: Machine) -> None:
    words = ["x" * 100_000] * 10
    launch = Launch(("sh", "-c", "test $# -eq 10 && test ${#1} -eq 100000", "sh", *words), "/", {"PATH": PATH})
    exits = [Exits() for _ in range(30)]
    keys = [Key("shop", f"w-{number}") for number in range(30)]
    await asyncio.gather(*(machine.spawn(launch, each, key=key) for each, key in zip(exits, keys, strict=True)))
    assert [await each.one() for each in exits] == [Exit(code=0)] * 30


async def test_it_ends_with_a_daemon_that_is_killed(machine: Machine) -> None:
    command = [sys.executable, "-m", "tests.adapters.process_daemon", machine.branch_id, machine.mode]
    with subprocess.Popen(  # noqa: ASYNC220  begins at once
        [*command, uuid.uuid4().hex, "sleep", "1000"], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as daemon:
        assert daemon.stdout is not None
        await asyncio.to_thread(daemon.stdout.readline)
        children = [stat for pid in proc.children(daemon.pid) if (stat := proc.stat(pid)) is not None]
        [helper] = [stat for stat in children if spawning.program().encode() in proc.command_line(stat.pid)]
        [child] = [stat for stat in children if stat != helper]
        os.kill(helper.pid, signal.SIGSTOP)
        daemon.kill()
    await until(lambda: gone(helper))
    assert not gone(child)


async def test_a_clone_at_its_gate_ends_with_a_daemon_that_is_killed(machine: Machine) -> None:
    begun = machine.folder / "begun"
    command = [sys.executable, "-m", "tests.adapters.process_daemon", "unsure", machine.branch_id, machine.mode]
    with subprocess.Popen(  # noqa: ASYNC220  begins at once
        [*command, uuid.uuid4().hex, "touch", str(begun)], cwd=Path(__file__).parents[2]
    ) as daemon:
        await until(lambda: len(forkers(daemon.pid)) > 1, what="a clone at its gate")
        both = forkers(daemon.pid)
        daemon.kill()
    await until(lambda: all(map(gone, both)))
    assert not begun.exists()


async def test_programs_are_children_of_a_daemon_that_is_pid_1(machine: Machine) -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m"]
    script = "echo $PPID >parent.new; mv parent.new parent; exec sleep 1000"
    daemon = subprocess.Popen(  # noqa: ASYNC220  begins at once
        [*command, "tests.adapters.process_daemon", machine.branch_id, machine.mode, uuid.uuid4().hex,
         "sh", "-c", f"cd {machine.folder}; {script}"],
        stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        parent = machine.folder / "parent"
        await until(parent.exists)
        assert parent.read_text() == "1\n"
    finally:
        daemon.kill()
        with contextlib.suppress(ProcessLookupError):
            daemon.wait()
