"""What random lives (test_random.py) and a look at moves and replicas found wrong once, each as small as it gets."""

from branchd.core.values import Key
from tests.simulation.loop import simulate
from tests.simulation.neighbourhood import APP, Neighbourhood, neighbourhood

A = Key("web", "a")


async def moving(hood: Neighbourhood) -> None:
    """web:a moves from 0, and its replacement does not start before can_start()."""
    await hood.advance(10)
    await hood.put_app(0, "web")
    await hood.advance(1)
    for machine in hood.machines[1:]:
        await hood.create_pinned(machine.number, "web", f"pinned-{machine.number}")
        machine.processes.missing.add("serve")
    assert await hood.create(0, "web", "a") == "a"
    assert hood.where("web", "a") == [0]
    await hood.drain(0)
    await hood.advance(1)
    assert sum(A in [record.key for record in machine.kept().instances] for machine in hood.machines) == 2


def can_start(hood: Neighbourhood) -> None:
    for machine in hood.machines:
        machine.processes.missing.clear()


@simulate
async def test_what_is_deleted_while_the_branch_of_its_replacement_is_away_does_not_come_back() -> None:
    async with neighbourhood(2) as two:
        await moving(two)
        await two.crash(1)
        await two.delete(0, "web", "a")
        await two.advance(20)
        can_start(two)
        await two.restart(1)
        await two.quiet(two.quiet_time())
        assert two.where("web", "a") == []


@simulate
async def test_what_is_deleted_through_the_branch_of_its_replacement_is_deleted() -> None:
    async with neighbourhood(2) as two:
        await moving(two)
        assert await two.delete(1, "web", "a") is None
        can_start(two)
        await two.quiet(two.quiet_time())
        assert two.where("web", "a") == []


@simulate
async def test_a_move_survives_a_crash_of_the_daemon_that_is_drained() -> None:
    async with neighbourhood(3) as three:
        await moving(three)
        await three.crash(0)
        await three.advance(3)
        can_start(three)
        await three.restart(0)
        await three.quiet(three.quiet_time())
        assert len(three.where("web", "a")) == 1
        assert three.where("web", "a") != [0]


@simulate
async def test_a_move_survives_the_restart_of_the_machine_that_it_goes_to() -> None:
    async with neighbourhood(2) as two:
        await moving(two)
        await two.crash(1, power=True)
        can_start(two)
        await two.restart(1)
        await two.quiet(two.quiet_time())
        assert two.where("web", "a") == [1]


@simulate
async def test_a_replacement_goes_when_the_drain_was_cancelled_while_its_branch_was_away() -> None:
    async with neighbourhood(2) as two:
        await moving(two)
        await two.crash(1)
        await two.undrain(0)
        can_start(two)
        await two.restart(1)
        await two.quiet(two.quiet_time())
        assert two.where("web", "a") == [0]


@simulate
async def test_where_two_are_drained_at_once_everything_stays() -> None:
    async with neighbourhood(2) as two:
        await two.advance(10)
        await two.put_app(0, "web")
        for name in "abcd":
            await two.create(0, "web", name)
        before = [sorted(machine.running()) for machine in two.machines]
        await two.drain(0)
        await two.drain(1)
        await two.crash(0, 1)
        await two.restart(0, 1)
        await two.quiet(two.quiet_time())
        assert sum(map(len, before)) == sum(len(machine.running()) for machine in two.machines) == 4


@simulate
async def test_a_replica_that_moved_is_one_still() -> None:
    async with neighbourhood(2, [8, 8]) as two:
        await two.advance(10)
        await two.put_app(0, "web", {**APP, "replicas": 4})
        await two.advance(5)
        await two.drain(0)
        await two.advance(5)
        assert sorted(two.machines[1].running()) == [Key("web", f"web-{index}") for index in range(4)]
        await two.put_app(0, "web", {**APP, "replicas": 1})
        await two.advance(60)
        assert two.machines[1].running() == [Key("web", "web-0")]


@simulate
async def test_where_no_replicas_are_wanted_any_more_they_go_everywhere() -> None:
    async with neighbourhood(2, [8, 8]) as two:
        await two.advance(10)
        await two.put_app(0, "web", {**APP, "replicas": 4})
        await two.create(0, "web", "mine")
        await two.advance(5)
        await two.machines[0].call(lambda entrance: entrance.service.apps.patch("web", {"replicas": None}))
        await two.advance(60)
        assert [key.name for machine in two.machines for key in machine.running()] == ["mine"]


@simulate
async def test_replicas_are_fewer_when_a_host_that_was_away_returns() -> None:
    async with neighbourhood(3, [8, 8, 8]) as three:
        await three.advance(10)
        await three.put_app(0, "web", {**APP, "replicas": 6})
        await three.advance(5)
        await three.crash(1, power=True)
        await three.put_app(0, "web", {**APP, "replicas": 2})
        await three.advance(200)
        await three.restart(1)
        await three.quiet(120)
        running = sorted(key.name for machine in three.machines for key in machine.running())
        assert running == ["web-0", "web-1"]


@simulate
async def test_a_branch_is_found_again_after_a_clone_of_it_had_its_place() -> None:
    async with neighbourhood(2) as two:
        await two.advance(10)
        original = two.machines[0]
        while original.connected:
            await two.remove_clones()
            two.stop_broker()
            await two.clone(0)
            two.start_broker()
            await two.advance(5)
        assert two.machines[2].connected
        await two.advance(20)
        await two.remove_clones()
        await two.quiet(two.quiet_time())
