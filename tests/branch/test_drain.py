"""What becomes of instances of a branch that is drained, where not all goes well: complete branches in virtual time."""

from branchd.branch.operations import Operations
from branchd.core.errors import Conflict
from branchd.core.values import Key
from branchd.wire.resources import Operation, OperationState, StepState
from tests.simulation.entrance import OPERATOR
from tests.simulation.loop import simulate
from tests.simulation.machine import Machine
from tests.simulation.neighbourhood import Neighbourhood, neighbourhood

A, B = Key("web", "a"), Key("web", "b")


async def drain(machine: Machine, *, pinned: bool = False) -> str:
    """The operation's id."""
    mesh = machine.entrance.mesh
    assert mesh is not None
    operation = await machine.call(lambda _: mesh.draining.begin(OPERATOR, pinned=pinned))
    return operation.id


def operations(machine: Machine) -> Operations:
    return machine.entrance.service.operations


def steps(operation: Operation) -> dict[str, StepState]:
    return {step.name: step.state for step in operation.steps}


async def two(both: Neighbourhood) -> tuple[Machine, Machine]:
    """a and b, placed on the first, which has its fill of them; the second has room again."""
    first, second = both.machines
    await both.advance(10)
    await both.put_app(0, "web")
    assert await both.create(0, "web", "filler", weight=8) == "filler"
    full = both.where("web", "filler")[0]
    for name in ("a", "b"):
        assert await both.create(0, "web", name, command=["serve", name] if name == "a" else ["other"]) == name
    assert await both.delete(0, "web", "filler") is None
    await both.advance(5)
    return (second, first) if full == 0 else (first, second)


@simulate
async def test_a_replacement_that_gets_not_ready_is_taken_back_and_the_old_one_stays() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, new = await two(both)
        new.processes.missing.add("other")
        before = {process.key: process.identity for process in old.processes.running.values()}
        identifier = await drain(old)
        await both.advance(150)
        ended = operations(old).get(identifier)
        assert ended.state is OperationState.FAILED
        assert steps(ended) == {"web:a": StepState.DONE, "web:b": StepState.FAILED}
        assert "it stays here" in next(step.detail for step in ended.steps if step.name == "web:b")
        assert {process.key: process.identity for process in old.processes.running.values()} == {B: before[B]}
        assert [record.key for record in new.store.load().instances] == [A]
        assert isinstance(await both.create(0, "web", "b"), Conflict)
        await both.quiet()


@simulate
async def test_cancelling_keeps_what_has_not_moved() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, new = await two(both)
        new.processes.missing.add("other")
        identifier = await drain(old)
        await both.advance(5)
        assert steps(operations(old).get(identifier)) == {"web:a": StepState.DONE, "web:b": StepState.RUNNING}
        assert [record.key for record in new.store.load().instances] == [A, B]
        cancelled = await old.call(lambda _: operations(old).cancel(identifier))
        assert cancelled.state is OperationState.CANCELLED
        assert steps(cancelled) == {"web:a": StepState.DONE, "web:b": StepState.KEPT}
        await both.advance(5)
        assert (old.running(), new.running()) == ([B], [A])
        assert [record.key for record in new.store.load().instances] == [A]
        await both.quiet()


@simulate
async def test_cancelling_at_any_moment_leaves_one_of_each() -> None:
    for delay in (0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024):
        async with neighbourhood(2, slots=[8, 8]) as both:
            old, new = await two(both)
            identifier = await drain(old)
            await both.advance(delay)
            if operations(old).get(identifier).state is OperationState.RUNNING:
                await old.call(lambda _, old=old, identifier=identifier: operations(old).cancel(identifier))
            await both.advance(5)
            assert sorted([*old.running(), *new.running()]) == [A, B], delay


@simulate
async def test_a_drain_outlives_the_daemon_and_is_gone_on_with() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, new = await two(both)
        new.processes.missing.add("other")
        await drain(old)
        await both.advance(5)
        await both.crash(old.number)
        new.processes.missing.clear()
        await both.restart(old.number)
        await both.advance(200)
        assert (old.running(), sorted(new.running())) == ([], [A, B])
        [resumed] = operations(old).list()
        assert (resumed.kind, resumed.by) == ("drain", "branchd")
        assert await both.create(old.number, "web", "later") == "later"
        assert both.where("web", "later") == [new.number]
        await both.quiet()


@simulate
async def test_what_is_deleted_while_it_moves_is_nowhere_after_it() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, new = await two(both)
        new.processes.missing.add("other")
        identifier = await drain(old)
        await both.advance(5)
        assert await both.delete(old.number, "web", "b") is None
        new.processes.missing.clear()
        await both.advance(150)
        assert steps(operations(old).get(identifier)) == {"web:a": StepState.DONE, "web:b": StepState.FAILED}
        assert (old.running(), new.running()) == ([], [A])
        await both.quiet()


@simulate
async def test_pinned_instances_are_stopped_only_when_that_is_asked_and_undraining_starts_them() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, _ = await two(both)
        assert await both.create_pinned(old.number, "web", "here") == "here"
        await old.call(lambda entrance: entrance.create_pinned("web", {"name": "down", "wanted": "down"}))
        here = Key("web", "here")
        await drain(old)
        await both.advance(30)
        assert old.running() == [here]

        both.witness.unpin(old)
        identifier = await drain(old, pinned=True)
        await both.advance(30)
        assert old.running() == []
        assert steps(operations(old).get(identifier)) == {"web:here": StepState.DONE}
        assert old.entrance.service.instances.get("web", "here").status.wanted == "up"

        # Neither the daemon's crash nor its end starts it, nor what it was told before.
        for end in (old.crash, old.stop):
            await end()
            await old.start()
            await both.advance(30)
            assert old.running() == []

        await old.call(lambda entrance: entrance.undrain())
        await both.advance(5)
        assert old.running() == [here]


@simulate
async def test_asking_for_the_pinned_ones_too_is_heard_while_a_drain_is_under_way() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, new = await two(both)
        assert await both.create_pinned(old.number, "web", "here") == "here"
        new.processes.missing.add("other")
        first = await drain(old)
        await both.advance(5)
        both.witness.unpin(old)
        assert await drain(old, pinned=True) == first
        new.processes.missing.clear()
        await both.advance(200)
        assert operations(old).get(first).state is OperationState.DONE
        assert old.running() == []


@simulate
async def test_undraining_ends_the_drain_and_lets_new_ones_come() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, new = await two(both)
        new.processes.missing.add("other")
        identifier = await drain(old)
        await both.advance(5)
        await old.call(lambda entrance: entrance.undrain())
        assert operations(old).get(identifier).state is OperationState.CANCELLED
        await both.advance(5)
        assert old.running() == [B]
        await both.create_pinned(new.number, "web", "small")  # so that there is room on the old one alone
        assert await both.create(new.number, "web", "big", weight=7) == "big"
        assert both.where("web", "big") == [old.number]
        await both.crash(old.number)
        await both.restart(old.number)
        await both.advance(30)
        assert sorted(old.running()) == [B, Key("web", "big")]
        await both.quiet()
