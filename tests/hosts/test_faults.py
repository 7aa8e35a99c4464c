"""What fails one at a time on real hosts: a link, a daemon, the broker. No worker minds, and all agree afterwards."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from branchd.client import ApiProblem
from tests.hosts.conftest import Maker
from tests.hosts.neighbourhood import APP, HostBranch, Measured, Neighbourhood, timed
from tests.waiting import until

SLOTS = {"left": 8, "middle": 8, "right": 8}

#: seconds within which the others see it, by the design, when one branch closed, and when one does not answer
CLOSED, SILENT = 5, 11

#: seconds of quiet after which all agree, by the design
AGREED = 60


async def with_workers(neighbourhood: Maker) -> Neighbourhood:
    """Three of them on each host, a name given or not."""
    hosts = await neighbourhood(SLOTS).start()
    await hosts.put_app(hosts["left"])
    for number in range(9):
        await hosts.create(hosts["left"], f"w-{number}" if number else None)
    assert [len(hosts.on(branch)) for branch in hosts.branches.values()] == [3, 3, 3]
    await hosts.check()
    return hosts


async def all_see(hosts: Neighbourhood, other: str, state: str | None, goal: float, measured: Measured) -> None:
    """Each of the others sees that branch so; None: it is in their rosters no more."""

    async def sees(branch: HostBranch) -> None:
        async def seen() -> bool:
            return (await branch.roster()).get(other) == state

        await timed(f"{branch.name} sees {other} {state or 'gone'}", goal, seen, measured)

    await asyncio.gather(*(sees(branch) for branch in hosts.branches.values() if branch.name != other and branch.runs))


@contextlib.asynccontextmanager
async def told_to_be_there(hosts: Neighbourhood) -> AsyncIterator[None]:
    """Meanwhile each branch is asked for one of each: it may be unable to tell, and never says there is none."""

    async def watch(branch: HostBranch, name: str) -> None:
        while True:
            try:
                await branch.client.instance(APP, name)
            except ApiProblem as problem:
                if problem.status not in {503, 504}:
                    raise AssertionError(f"{branch.name} of {name}: {problem}") from problem
            await asyncio.sleep(0.02)

    every = hosts.branches.values()
    watching = [asyncio.create_task(watch(branch, hosts.on(owner)[0])) for branch in every for owner in every]
    try:
        yield
    finally:
        for task in watching:
            task.cancel()
    for ended in await asyncio.gather(*watching, return_exceptions=True):
        assert isinstance(ended, asyncio.CancelledError), ended


async def test_workers_of_a_host_that_is_cut_off_go_on_and_all_agree_when_it_is_back(
    neighbourhood: Maker, measured: Measured
) -> None:
    hosts = await with_workers(neighbourhood)
    left, right = hosts["left"], hosts["right"]
    hosts.network.cut(right.host)
    await all_see(hosts, "right", "silent", SILENT, measured)
    for name in ("left", "middle"):
        listed = await hosts[name].client.instances()
        assert (listed["partial"], listed["unreachable"]) == (True, ["right"])
        assert {item["name"] for item in listed["items"]} == {*hosts.on(left), *hosts.on(hosts["middle"])}
    with pytest.raises(ApiProblem) as unsure:
        await left.client.instance(APP, hosts.on(right)[0])
    assert unsure.value.status in {503, 504}, "it is there still"
    assert "does not answer" in unsure.value.detail

    # The one that is cut off answers for what it has.
    listed = await right.client.instances()
    assert (listed["partial"], sorted(listed["unreachable"])) == (True, ["left", "middle"])
    assert {item["name"] for item in listed["items"]} == set(hosts.on(right))
    assert (await right.client.instance(APP, hosts.on(right)[0]))["status"]["state"] == "RUNNING"

    # Both sides are written to; the later one of the two is the one that stays.
    await hosts.define(right, "both", labels={"side": "right"})
    await hosts.define(right, "right")
    await hosts.define(left, "left")
    await hosts.define(left, "both", labels={"side": "left"})
    made = await hosts.create(left)
    assert made["branch"] != "right"
    assert not (wrong := hosts.processes()), wrong
    hosts.network.heal(right.host)
    await timed("all agree after a host was cut off", AGREED, hosts.agree, measured)
    await hosts.delete(right, made["name"])
    await hosts.check()


async def test_a_host_whose_connections_break_is_back_with_all_that_it_had(neighbourhood: Maker) -> None:
    hosts = await with_workers(neighbourhood)
    for _ in range(3):
        hosts.network.reset(hosts["middle"].host)
        await hosts.check()
    assert (await hosts.create(hosts["middle"]))["name"]
    await hosts.check()


async def test_a_lossy_link_loses_nothing(neighbourhood: Maker) -> None:
    hosts = await with_workers(neighbourhood)
    async with hosts.network.lossy(hosts["middle"].host):
        for number in range(6):
            try:
                made = await hosts.create(hosts["middle"], None if number % 2 else f"more-{number}")
                await hosts.delete(hosts["left"], made["name"])
            except ApiProblem as problem:  # what nobody was sure of comes out the same at all branches
                if problem.status not in {503, 504}:
                    raise
    await hosts.check()


async def test_a_daemon_that_is_killed_is_gone_and_finds_its_workers_and_their_names_again(
    neighbourhood: Maker, measured: Measured
) -> None:
    hosts = await with_workers(neighbourhood)
    left, right = hosts["left"], hosts["right"]
    theirs = hosts.on(right)
    right.kill()
    await all_see(hosts, "right", None, CLOSED, measured)
    assert not (wrong := hosts.processes()), wrong
    listed = await left.client.instances()
    assert {item["name"] for item in listed["items"]}.isdisjoint(theirs)
    assert (listed["partial"], listed["unreachable"]) == (True, ["right"])

    await right.start()
    await timed("all agree after a killed daemon was started again", AGREED, hosts.agree, measured)
    named = next(name for name in theirs if name.startswith("w-"))
    with pytest.raises(ApiProblem) as taken:
        await hosts.create(left, named)
    assert taken.value.status in {409, 503}
    assert (await left.client.stats(APP, named))["pid"] == hosts.live[named].pid
    await hosts.delete(hosts["middle"], named)
    await hosts.check()


async def test_a_daemon_that_is_stopped_is_gone_and_its_workers_come_back_with_it(
    neighbourhood: Maker, measured: Measured
) -> None:
    hosts = await with_workers(neighbourhood)
    middle = hosts["middle"]
    stopped = {name: hosts.live.pop(name) for name in hosts.on(middle)}
    assert await asyncio.to_thread(middle.stop) == 0
    await all_see(hosts, "middle", None, CLOSED, measured)
    await hosts.check()

    await middle.start()
    for name, live in stopped.items():
        await middle.ready(APP, name)
        hosts.runs_again(name, live)
    await hosts.check()


async def test_the_broker_is_killed_and_no_worker_and_no_local_call_minds(
    neighbourhood: Maker, measured: Measured
) -> None:
    hosts = await with_workers(neighbourhood)
    left = hosts["left"]
    hosts.broker.kill()
    for branch in hosts.branches.values():
        own = hosts.on(branch)[0]
        assert (await branch.client.instance(APP, own))["status"]["state"] == "RUNNING"
        assert (await branch.client.stats(APP, own))["pid"] == hosts.live[own].pid
        listed = await branch.client.instances()
        assert set(hosts.on(branch)) <= {item["name"] for item in listed["items"]}
        assert listed["partial"]
        with pytest.raises(ApiProblem) as refused:
            await hosts.create(branch)
        assert refused.value.status == 503
        assert "broker" in refused.value.detail
    await hosts.define(left, "meanwhile")
    assert not (wrong := hosts.processes()), wrong

    async with told_to_be_there(hosts):
        await asyncio.to_thread(hosts.broker.start)
        await timed("all agree after the broker's restart", AGREED, hosts.agree, measured)
    made = await hosts.create(hosts["right"])
    await hosts.delete(left, made["name"])
    await hosts.check()


@pytest.mark.faults
async def test_names_can_be_taken_again_when_owners_had_time_to_return_to_the_broker(neighbourhood: Maker) -> None:
    hosts = await with_workers(neighbourhood)
    hosts.broker.kill()
    hosts.broker.start()

    async def named() -> bool:
        try:
            await hosts.create(hosts["left"], "named")
        except ApiProblem as problem:
            if problem.status != 503:
                raise
            return False
        return True

    await until(named, 120, "a named create")
    await hosts.check()


@pytest.mark.faults
async def test_a_name_that_was_taken_again_while_its_owner_was_cut_off_has_one_owner_when_that_is_back(
    neighbourhood: Maker,
) -> None:
    hosts = await with_workers(neighbourhood)
    left, right = hosts["left"], hosts["right"]
    name = next(name for name in hosts.on(right) if name.startswith("w-"))
    first = hosts.live.pop(name)
    hosts.network.cut(right.host)

    async def taken() -> bool:
        """Once the broker has given up the dead connection; till then the name is known to be somebody's."""
        try:
            await hosts.create(left, name)
        except ApiProblem as problem:
            if problem.status != 503:
                raise
            return False
        return True

    await until(taken, 120, "the name to be free")
    second = hosts.live[name]
    assert hosts.programs.only(first.mark) == first.pid, "it runs on where nobody can ask for it"
    hosts.network.heal(right.host)
    # The one that was accepted first stays.
    hosts.live[name] = first
    await hosts.check()
    assert second.mark not in hosts.programs.running()
    async with contextlib.aclosing(hosts[second.branch].client.events(tail=1000, follow=False)) as events:
        told = [event async for event in events if event["type"] == "instance.conflict"]
    assert [(event["instance"], event["data"]["stays_at"]) for event in told] == [(name, "right")]
