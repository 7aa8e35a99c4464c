"""Replicas where not all is simple: how long one is missed, who made what there is, and what is not known for sure."""

from typing import Any

import pytest

from branchd.core.replicas import LOOK_EVERY
from branchd.core.values import Key
from tests.simulation.loop import simulate
from tests.simulation.neighbourhood import APP, Neighbourhood, neighbourhood


async def put(all_of_them: Neighbourhood, branch: int = 0, **spec: Any) -> None:
    assert await all_of_them.put_app(branch, "web", {**APP, **spec}) is None


def running(all_of_them: Neighbourhood) -> list[str]:
    return sorted(key.name for machine in all_of_them.machines for key in machine.running())


async def host_of(all_of_them: Neighbourhood, name: str, seconds: float = 5) -> int:
    await all_of_them.advance(seconds)
    [branch] = all_of_them.where("web", name)
    return branch


async def still_made(all_of_them: Neighbourhood, lost: int, seconds: float) -> bool:
    """Whether the only replica runs elsewhere so long after the machine lost its power."""
    await all_of_them.crash(lost, power=True)
    await all_of_them.advance(seconds)
    return bool(all_of_them.where("web", "web-0"))


@simulate
async def test_the_app_says_for_how_long_a_replica_may_be_missing() -> None:
    #: seconds until it is seen that it is missing: the branch is found silent, and the controller looks
    seen = 11 + 2 * LOOK_EVERY
    for absence, within, seconds in ((5, False, 10), (5, True, seen + 30), (200, False, 200), (200, True, seen + 230)):
        async with neighbourhood(3, slots=[8, 8, 8]) as three:
            await three.advance(10)
            await put(three, replicas=1, absence=absence)
            assert await still_made(three, await host_of(three, "web-0"), seconds) is within, (absence, seconds)


@simulate
async def test_one_that_is_never_made_again_waits_for_its_own_branch() -> None:
    async with neighbourhood(3, slots=[8, 8, 8]) as three:
        await three.advance(10)
        await put(three, replicas=1, absence="never")
        lost = await host_of(three, "web-0")
        assert not await still_made(three, lost, 900)
        await three.restart(lost)
        assert await host_of(three, "web-0", 90) == lost


@simulate
async def test_nothing_is_made_again_while_many_are_missing_at_once() -> None:
    async with neighbourhood(5, slots=[8] * 5) as five:
        await five.advance(10)
        await put(five, replicas=5, absence=5)
        await five.advance(5)
        assert len(running(five)) == 5
        five.partition(0, 1, 2, 3)
        await five.advance(200)
        assert len(running(five)) == 5
        await five.quiet(120)
        assert len(running(five)) == 5


@simulate
async def test_an_instance_that_a_person_named_so_counts_as_the_replica_and_is_never_retired() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        await both.advance(10)
        await put(both)
        assert await both.create(0, "web", "web-1") == "web-1"
        await put(both, replicas=3)
        await both.advance(5)
        assert running(both) == ["web-0", "web-1", "web-2"]
        await put(both, 1, replicas=0)
        await both.advance(2 * LOOK_EVERY)
        assert running(both) == ["web-1"]


@simulate
async def test_many_for_which_there_is_no_room_are_told_of_once() -> None:
    async with neighbourhood(2, slots=[1, 1]) as both:
        await both.advance(10)
        await put(both, replicas=52, absence=5)
        await both.advance(20 * LOOK_EVERY)
        assert running(both) == ["web-0", "web-1"]
        stores = [machine.store for machine in both.machines]
        told = [event for store in stores for event in await store.events(0, 1000) if event.type == "replica.failed"]
        assert {event.instance for event in told} == {"web-2"}
        assert len(told) <= 2  # by the branch where it was written, and by the one that looks after it


@simulate
async def test_one_that_cannot_be_made_is_told_and_tried_again() -> None:
    async with neighbourhood(2, slots=[1, 1]) as both:
        await both.advance(10)
        await put(both, replicas=3, absence=5)
        await both.advance(5)
        assert len(running(both)) == 2
        told = [event for event in await both.machines[0].store.events(0, 100) if event.type == "replica.failed"]
        assert [event.instance for event in told] == ["web-2"]
        await both.start(1, [1])
        await both.advance(3 * LOOK_EVERY)
        assert running(both) == ["web-0", "web-1", "web-2"]


@simulate
async def test_an_error_with_one_app_keeps_no_other_from_being_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async with neighbourhood(1, slots=[8]) as one:
        await one.advance(10)
        for app in ("aa", "web"):
            assert await one.put_app(0, app, {**APP, "replicas": 1, "absence": 5}) is None
        await one.advance(5)
        mesh = one.machines[0].entrance.mesh
        assert mesh is not None
        replicas = mesh.replicas
        held = replicas._held

        async def broken(app: str, name: str) -> bool:
            if app == "aa":
                raise KeyError(app)
            return await held(app, name)

        monkeypatch.setattr(replicas, "_held", broken)
        for turn in (1, 2):
            assert await one.delete(0, "web", "web-0") is None
            await one.advance(1)
            assert Key("web", "web-0") not in one.machines[0].running()
            await one.advance(3 * LOOK_EVERY)
            assert Key("web", "web-0") in one.machines[0].running(), turn
        assert replicas.tasks.failures.last == "KeyError: 'aa'"
