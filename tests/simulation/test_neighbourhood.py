"""Complete branches over a broker in memory: what they do together."""

from branchd.core.values import Key
from tests.simulation.loop import simulate
from tests.simulation.neighbourhood import neighbourhood


@simulate
async def test_creates_through_one_branch_are_spread_by_capacity() -> None:
    async with neighbourhood(3, slots=[2, 4, 6]) as three:
        await three.advance(10)
        await three.put_app(0, "web")
        for number in range(12):
            assert await three.create(0, "web", f"n{number}") == f"n{number}"
        three.witness.check()
        assert [len(machine.running()) for machine in three.machines] == [2, 4, 6]
        await three.quiet()


@simulate
async def test_a_drained_branch_gives_everything_to_the_others_and_takes_nothing() -> None:
    async with neighbourhood(3, slots=[8, 8, 8]) as three:
        await three.advance(10)
        await three.put_app(0, "web")
        for number in range(9):
            await three.create(0, "web", f"n{number}")
        await three.drain(1)
        await three.advance(60)
        assert three.machines[1].running() == []
        assert sorted(key.name for machine in three.machines for key in machine.running()) == [
            f"n{number}" for number in range(9)
        ]
        assert await three.create(1, "web", "later") == "later"
        assert three.where("web", "later") != [1]
        await three.quiet()


@simulate
async def test_replicas_of_a_lost_branch_come_back_elsewhere_and_one_of_each_stays() -> None:
    async with neighbourhood(3, slots=[8, 8, 8]) as three:
        await three.advance(10)
        await three.put_app(0, "web", {"kind": "command", "command": ["serve"], "replicas": 6})
        await three.advance(5)
        assert sorted(len(machine.running()) for machine in three.machines) == [2, 2, 2]
        await three.crash(1, power=True)
        await three.advance(150)
        running = [key for machine in three.machines for key in machine.running()]
        assert sorted(running) == [Key("web", f"web-{index}") for index in range(6)]
        await three.restart(1)
        await three.quiet(120)
        await three.put_app(2, "web", {"kind": "command", "command": ["serve"], "replicas": 2})
        await three.advance(60)
        running = [key for machine in three.machines for key in machine.running()]
        assert sorted(running) == [Key("web", "web-0"), Key("web", "web-1")]
