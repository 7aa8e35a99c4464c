"""Programs beside an instance: in whose bounds they run, that slow ones keep no place, that none outlives a daemon."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from branchd.adapters import errands, proc
from branchd.adapters.errands import Errands
from branchd.core.spec import Limits
from branchd.core.values import Exit, Launch
from tests.adapters.conformance_process import KEY, Exits
from tests.adapters.test_process import PATH, Machine, gone, machine
from tests.waiting import until

__all__ = ["machine"]  # a fixture


@pytest.fixture
async def errand(machine: Machine) -> AsyncIterator[Errands]:
    errand = Errands(machine.processes)
    yield errand
    errand.close()


def beside(machine: Machine, script: str, **more: object) -> Launch:
    return Launch(("sh", "-c", script), str(machine.folder), {"PATH": PATH}, within=KEY, **more)  # type: ignore[arg-type]


async def test_those_that_hang_give_their_places_back(errand: Errands, machine: Machine) -> None:
    hanging = beside(machine, "sleep 1000")
    asked = [asyncio.create_task(errand.run(hanging, 0.2)) for _ in range(2 * errands.AT_ONCE)]
    assert await errand.run(beside(machine, "exit 0"), 10) is None
    assert set(await asyncio.gather(*asked)) == {"not done within 0.2 s"}
    await until(machine.childless)


async def test_what_is_given_up_before_it_has_begun_is_ended_when_it_has(errand: Errands, machine: Machine) -> None:
    asking = asyncio.create_task(errand.run(beside(machine, "sleep 1000"), 10))
    await until(lambda: errand._running)
    asking.cancel()
    await asyncio.wait([asking])
    await asyncio.gather(*(task for task in asyncio.all_tasks() if "_Errand._start" in repr(task.get_coro())))
    await until(machine.childless)


async def test_it_has_the_limits_of_the_instance_and_reads_what_it_is_given(errand: Errands, machine: Machine) -> None:
    asked = Limits(open_files=300, core=0, nice=5)
    script = "(ulimit -n; ulimit -c; nice; cat) | tr '\\n' ' '; exit 1"
    assert await errand.run(beside(machine, script, limits=asked), 10, b"told") == "exit code 1: 300 0 5 told"


async def test_it_is_in_the_instances_cgroup_and_ends_with_its_tree(errand: Errands, machine: Machine) -> None:
    exits = Exits()
    process = await machine.spawn(machine.shell("sleep 1000"), exits)
    asking = asyncio.create_task(errand.run(beside(machine, "cat /proc/self/cgroup >where; sleep 1000"), 1000))
    where = machine.folder / "where"
    await until(lambda: where.exists() and where.read_text())
    inside = f"/branchd-{machine.branch_id}/{KEY}\n" in where.read_text()
    assert inside == (machine.mode == "cgroups")
    process.kill_tree()
    assert await exits.one() == Exit(signal=9)
    machine.processes.sweep(KEY, process.nonce)
    if inside:
        assert await asking == "killed by SIGKILL"
    else:
        asking.cancel()
        await asyncio.wait([asking])


async def test_without_the_instance_it_runs_all_the_same(errand: Errands, machine: Machine) -> None:
    exits = Exits()
    process = await machine.spawn(machine.shell("exit 0"), exits)
    await exits.one()
    script = f"! grep '/branchd-{machine.branch_id}/' /proc/self/cgroup"
    assert await errand.run(beside(machine, script), 10) is None
    machine.processes.sweep(KEY, process.nonce)


async def test_what_a_killed_daemon_has_left_of_them_is_ended(machine: Machine, errand: Errands) -> None:
    command = [sys.executable, "-m", "tests.adapters.errand_daemon", machine.branch_id, "sleep 1000 & sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as daemon:  # noqa: ASYNC220
        assert daemon.stdout is not None
        mark = json.loads(await asyncio.to_thread(daemon.stdout.readline))
        await until(lambda: len(marked(mark)) == 3)
        left = marked(mark)
        daemon.kill()
    other = asyncio.create_task(errand.run(beside(machine, "sleep 1000"), 1000))
    await until(lambda: errand._running)
    machine.processes.begin()
    await until(lambda: all(gone(stat) for stat in left))
    assert not other.done()
    other.cancel()
    await asyncio.wait([other])


def marked(mark: str) -> list[proc.Stat]:
    found = [proc.stat(pid) for pid in proc.pids() if proc.mark(pid) == mark]
    return [stat for stat in found if stat is not None]
