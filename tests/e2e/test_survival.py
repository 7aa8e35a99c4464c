"""What runs outlives the daemon: after kill -9 at any moment the next one has the same processes, and no others."""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import time
from datetime import datetime
from typing import Any

import pytest

from branchd.client import ApiProblem, Unreachable
from tests.e2e.branch import RunningBranch, alive
from tests.e2e.conftest import Maker
from tests.e2e.programs import WAIT, Programs, catches, ignores, stop_plan
from tests.waiting import until

#: set it to what a failed run printed, to have the same moments and orders again
SEED = int(os.environ.get("BRANCHD_TEST_SEED") or secrets.randbits(32))

#: creates and deletes at once, half of each
BURST = 20


async def started(make_branch: Maker) -> RunningBranch:
    branch = await make_branch().start()
    await branch.client.put_app("shop", {"kind": "command"})
    return branch


async def create(branch: RunningBranch, name: str, command: list[str], **spec: Any) -> None:
    body = {"name": name, "command": command, **spec}
    created = await branch.client.create_instance("shop", body, wait=30)
    assert created["status"]["state"] == "RUNNING", created["status"]


async def as_supervised(branch: RunningBranch, programs: Programs) -> bool:
    """Each process is that of an instance, each instance has one, and the API tells the same pids as /proc."""
    told = {key.partition(":")[2]: [pid] for key, pid in (await branch.pids()).items()}
    return told == programs.running()


async def test_fifty_instances_outlive_a_killed_daemon_and_are_supervised_again(
    programs: Programs, make_branch: Maker
) -> None:
    branch = await started(make_branch)
    names = [f"w-{number}" for number in range(50)]
    await asyncio.gather(*(create(branch, name, programs.waiting(name)) for name in names))
    before = {name: programs.only(name) for name in names}
    branch.kill()
    assert {name: programs.only(name) for name in names} == before
    await branch.start()
    assert {name: programs.only(name) for name in names} == before
    assert await branch.pids() == {f"shop:{name}": pid for name, pid in before.items()}

    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    async def respawned() -> bool:
        now = programs.running()
        every = now.keys() == before.keys() and all(now[name] != [before[name]] for name in names)
        return every and await as_supervised(branch, programs)

    await until(respawned, 60, "all 50 to run again")
    assert [(await branch.status("shop", name))["restarts"] for name in names] == [1] * 50


class Burst:
    """Creates and deletes at once; what was confirmed, by name."""

    def __init__(self, branch: RunningBranch, programs: Programs) -> None:
        self._branch = branch
        self._programs = programs
        self.created: set[str] = set()
        self.deleted: set[str] = set()
        self._doomed: set[str] = set()  # to be deleted; whether that was confirmed or not

    async def run(self, new: list[str], old: list[str], chance: random.Random) -> None:
        """Returns when each is answered or has lost its daemon."""
        calls = [self._create(name) for name in new] + [self._delete(name) for name in old]
        chance.shuffle(calls)
        await asyncio.gather(*calls)

    async def _create(self, name: str) -> None:
        with contextlib.suppress(Unreachable):
            await self._branch.client.create_instance("shop", {"name": name, "command": self._programs.waiting(name)})
            self.created.add(name)

    async def _delete(self, name: str) -> None:
        self._doomed.add(name)
        with contextlib.suppress(Unreachable):
            await self._branch.client.delete_instance("shop", name)
            self.deleted.add(name)

    async def settled(self) -> bool:
        """All that was confirmed holds, nothing is under way, and processes and instances are the same."""
        instances = {item["name"]: item["status"] for item in (await self._branch.client.instances())["items"]}
        assert not (lost := self.created - self._doomed - instances.keys()), f"lost: {lost}"
        running = all(status["state"] == "RUNNING" and not status["deleting"] for status in instances.values())
        return running and not self.deleted & instances.keys() and await as_supervised(self._branch, self._programs)


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=[pytest.mark.faults, pytest.mark.timeout(3600)])])
async def test_a_daemon_killed_at_a_random_moment_of_a_burst_of_creates_and_deletes_loses_and_doubles_nothing(
    rounds: int, programs: Programs, make_branch: Maker
) -> None:
    branch = await started(make_branch)
    burst = Burst(branch, programs)
    half = BURST // 2
    old = [f"first-{number}" for number in range(half)]
    await burst.run(old, [], random.Random(SEED))
    began = time.monotonic()
    await burst.run(new := [f"calm-{number}" for number in range(half)], old, random.Random(SEED))
    span = time.monotonic() - began  # what a burst takes that nobody disturbs
    await until(burst.settled, 60, "the first burst to settle")
    for number in range(rounds):
        chance = random.Random(SEED + number)
        old, new = new, [f"round-{number}-{index}" for index in range(half)]
        requests = asyncio.create_task(burst.run(new, old, chance))
        await asyncio.sleep(chance.uniform(0, span * 1.2))  # the random moment
        branch.kill()
        await requests
        await branch.start()
        try:
            await until(burst.settled, 60, "the burst to settle")
        except (AssertionError, ApiProblem) as failure:
            running = programs.running()
            told = {item["name"]: item["status"] for item in (await branch.client.instances())["items"]}
            pytest.fail(
                f"{failure}\nround {number}, again with BRANCHD_TEST_SEED={SEED}\ncreated {burst.created}\n"
                f"deleted {burst.deleted}\nrunning {running}\ntold {told}\n{branch.log[-3000:]}"
            )
        new = [item["name"] for item in (await branch.client.instances())["items"]]


async def test_a_stop_plan_goes_on_under_the_next_daemon(programs: Programs, make_branch: Maker) -> None:
    branch = await started(make_branch)
    go = programs.folder / "go"
    # TERM interrupts what it waits for; it ends in its own time
    script = f"trap 'while [ ! -e {go} ]; do sleep 0.05; done; exit 0' TERM; {WAIT}"
    await create(branch, "slow", programs.shell("slow", script), stop=stop_plan(600))
    pid = programs.only("slow")
    await until(lambda: catches(pid, signal.SIGTERM))
    await branch.client.stop("shop", "slow")
    await branch.state("shop", "slow", "STOPPING")
    branch.kill()
    assert alive(pid)
    await branch.start()
    status = await branch.state("shop", "slow", "STOPPING")
    assert (status["pid"], status["wanted"]) == (pid, "down")
    go.touch()
    status = await branch.state("shop", "slow", "STOPPED")
    assert (status["pid"], status["restarts"]) == (None, 0)
    assert programs.running() == {}


async def test_a_restart_and_a_delete_that_were_under_way_are_finished_by_the_next_daemon(
    programs: Programs, make_branch: Maker
) -> None:
    branch = await started(make_branch)
    for name in ("again", "doomed"):
        await create(branch, name, programs.stubborn(name), stop=stop_plan(2))
    again, doomed = programs.only("again"), programs.only("doomed")
    await until(lambda: ignores(again, signal.SIGTERM) and ignores(doomed, signal.SIGTERM))
    await branch.client.restart("shop", "again")
    assert not await branch.client.delete_instance("shop", "doomed")
    branch.kill()
    assert alive(again)
    assert alive(doomed)
    await branch.start()

    async def finished() -> bool:
        running = programs.running()
        names = [item["name"] for item in (await branch.client.instances())["items"]]
        return names == ["again"] and running.keys() == {"again"} and running["again"] != [again]

    await until(finished, 30)
    status = await branch.state("shop", "again", "RUNNING")
    assert (status["pid"], status["restarts"]) == (programs.only("again"), 0), "asked for, and no crash"


async def test_an_instance_in_backoff_waits_on_under_the_next_daemon(programs: Programs, make_branch: Maker) -> None:
    branch = await started(make_branch)
    go = programs.folder / "go"
    crashing = f"[ -e {go} ] || exit 3; {WAIT}"
    for name, floor in (("patient", 600), ("eager", 2)):
        body = {
            "name": name,
            "command": programs.shell(name, crashing),
            "restart": {"floor": floor, "ceiling": floor, "max_restarts": 1000},
        }
        await branch.client.create_instance("shop", body)
        await branch.state("shop", name, "BACKOFF")
    before = await branch.status("shop", "patient")
    branch.kill()
    await branch.start()
    after = await branch.status("shop", "patient")
    assert (after["state"], after["last_exit"]["code"]) == ("BACKOFF", 3)
    # the same moment; what is shown is reckoned from the boot, and the two clocks of that are read apart
    tries = [datetime.fromisoformat(status["next_try_at"]).timestamp() for status in (before, after)]
    assert tries[0] == pytest.approx(tries[1], abs=1)
    go.touch()
    assert (await branch.state("shop", "eager", "RUNNING"))["pid"] == programs.only("eager")
    assert "patient" not in programs.running()
    await branch.client.start("shop", "patient", wait=20)
    assert (await branch.status("shop", "patient"))["pid"] == programs.only("patient")


async def test_those_that_were_killed_while_no_daemon_was_there_count_as_crashed(
    programs: Programs, make_branch: Maker
) -> None:
    branch = await started(make_branch)
    expected = {"always": ("RUNNING", 1), "on-failure": ("RUNNING", 1), "never": ("EXITED", 0)}
    for policy in expected:
        await create(branch, policy, programs.waiting(policy), restart={"policy": policy})
    before = {policy: programs.only(policy) for policy in expected}
    branch.kill()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not any(map(alive, before.values())))
    await branch.start()
    for policy, (state, restarts) in expected.items():
        status = await branch.state("shop", policy, state)
        assert status["restarts"] == restarts
        assert status["pid"] != before[policy]
    assert await as_supervised(branch, programs)


async def test_after_a_stop_what_was_wanted_up_comes_up_and_nothing_else(
    programs: Programs, make_branch: Maker
) -> None:
    branch = await started(make_branch)
    for name in ("up", "down"):
        await create(branch, name, programs.waiting(name))
    await branch.client.stop("shop", "down", wait=20)
    pid = programs.only("up")
    assert branch.stop() == 0
    assert programs.running() == {}
    await branch.start()
    status = await branch.state("shop", "up", "RUNNING")
    assert (status["pid"], status["restarts"]) == (programs.only("up"), 0)
    assert status["pid"] != pid
    assert (await branch.status("shop", "down"))["state"] == "STOPPED"
    assert programs.running().keys() == {"up"}


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_one_that_takes_minutes_to_stop_delays_no_other_and_an_int_after_the_first_signal_kills_it(
    first: signal.Signals, programs: Programs, make_branch: Maker
) -> None:
    branch = await started(make_branch)
    await create(branch, "slow", programs.stubborn("slow"), stop=stop_plan(600))
    for number in range(5):
        await create(branch, f"w-{number}", programs.waiting(f"w-{number}"))
    slow = programs.only("slow")
    await until(lambda: ignores(slow, signal.SIGTERM))
    os.kill(branch.pid, first)
    await until(lambda: programs.running() == {"slow": [slow]}, 30, "the others to end")
    assert alive(branch.pid)
    os.kill(branch.pid, signal.SIGINT)
    assert branch.stop(30) == 0
    assert programs.running() == {}


async def test_stopping_one_waits_for_no_other(programs: Programs, make_branch: Maker) -> None:
    branch = await started(make_branch)
    await create(branch, "slow", programs.stubborn("slow"), stop=stop_plan(60))
    await create(branch, "w", programs.waiting("w"))
    slow = programs.only("slow")
    await until(lambda: ignores(slow, signal.SIGTERM))
    await branch.client.stop("shop", "slow")
    stopped = await branch.client.stop("shop", "w", wait=30)
    assert stopped["status"]["state"] == "STOPPED"
    assert (await branch.status("shop", "slow"))["state"] == "STOPPING"
    assert programs.running() == {"slow": [slow]}
    os.kill(slow, signal.SIGKILL)


async def test_a_daemon_that_is_killed_while_it_starts_leaves_the_next_one_a_good_state(
    programs: Programs, make_branch: Maker
) -> None:
    branch = await started(make_branch)
    for number in range(5):
        await create(branch, f"w-{number}", programs.waiting(f"w-{number}"))
    before = programs.running()
    branch.kill()
    chance = random.Random(SEED)
    for _ in range(5):
        branch.launch()
        await asyncio.sleep(chance.uniform(0.2, 1))  # the random moment
        branch.kill()
        assert programs.running() == before, f"BRANCHD_TEST_SEED={SEED}"
    await branch.start()
    assert programs.running() == before, f"BRANCHD_TEST_SEED={SEED}"
    assert await as_supervised(branch, programs)
