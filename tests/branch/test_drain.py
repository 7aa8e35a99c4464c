"""What becomes of instances of a branch that is drained, where not all goes well: complete branches in virtual time."""

import asyncio

import pytest

from branchd.branch.mesh.link import GATHER, Question
from branchd.branch.operations import Operations
from branchd.core.errors import Conflict, NoAnswer
from branchd.core.peers import Address
from branchd.core.values import Key
from branchd.wire.mesh import Cancel, Handover, Message
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
    """a and b, placed on the first, which has its fill of them; the second has room again.

    Where b's program is missing its replacement is given up with its third restart: in 9 seconds at the least.
    """
    first, second = both.machines
    await both.advance(10)
    await both.put_app(0, "web")
    assert await both.create(0, "web", "filler", weight=8) == "filler"
    full = both.where("web", "filler")[0]
    assert await both.create(0, "web", "a", command=["serve"]) == "a"
    assert await both.create(0, "web", "b", command=["other"], restart={"floor": 3}) == "b"
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


class Lossy:
    """The drain's link: the answers to its questions of these kinds are lost, as often as that is wanted."""

    def __init__(self, old: Machine, *kinds: type, times: int = 1000) -> None:
        mesh = old.entrance.mesh
        assert mesh is not None
        self._link = mesh.draining._link
        self._kinds = kinds
        self.left = times
        mesh.draining._link = self  # type: ignore[assignment]

    async def ask(self, to: Address, question: Message, timeout: float) -> Message:
        answer = await self._link.ask(to, question, timeout)
        if isinstance(question, self._kinds) and self.left:
            self.left -= 1
            raise NoAnswer("it was lost")
        return answer


class Deaf:
    """A replacement's branch whose inbox loses what it is asked of these kinds."""

    def __init__(self, machine: Machine, *kinds: type) -> None:
        mesh = machine.entrance.mesh
        assert mesh is not None
        self.lost = True
        for kind in kinds:
            mesh.link.serve(kind, self._unless_lost(mesh.link._questions[kind]))

    def _unless_lost(self, answer: Question) -> Question:
        async def answered(sender: Address, question: Message) -> Message | None:
            return None if self.lost else await answer(sender, question)

        return answered


@simulate
@pytest.mark.parametrize("name", ["a", None])
async def test_where_the_answer_of_a_hand_over_is_lost_one_of_the_two_stays(name: str | None) -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        await both.advance(10)
        await both.put_app(0, "web")
        made = await both.create(0, "web", name)
        assert isinstance(made, str)
        at = both.where("web", made)[0]
        old, new = both.machines[at], both.machines[1 - at]
        Lossy(old, Handover, Cancel)
        mesh = old.entrance.mesh
        assert mesh is not None
        first = mesh.link.gather
        lost = 0

        async def losing(key: str, question: Message, seconds: float = GATHER) -> list[tuple[Address, Message]]:
            nonlocal lost
            lost += 1
            return await first(key, question, seconds) if lost > 2 else []

        mesh.link.gather = losing  # type: ignore[method-assign]
        deaf = Deaf(new, Cancel)
        identifier = await drain(old)
        await both.advance(60)
        assert operations(old).get(identifier).state is OperationState.FAILED
        assert deaf.lost
        assert both.where("web", made) == [old.number]
        assert await both.delete(0, "web", made) is None
        await both.advance(60)
        assert both.where("web", made) == []


@simulate
async def test_a_replacement_of_what_was_deleted_goes_though_nobody_hears_that_at_first() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, new = await two(both)
        new.processes.missing.add("other")
        deaf = Deaf(new, Cancel)
        await drain(old)
        await both.advance(5)
        assert await both.delete(old.number, "web", "b") is None
        new.processes.missing.clear()
        await both.advance(200)
        deaf.lost = False
        await both.advance(400)
        assert (old.running(), new.running()) == ([], [A])


@simulate
async def test_an_app_can_be_changed_while_a_hand_over_waits_for_its_answer() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, new = await two(both)
        deaf = Deaf(new, Handover)
        identifier = await drain(old)
        await both.advance(1)  # ready, and the name is being handed over
        began = asyncio.get_running_loop().time()
        async with old.entrance.service.instances._fleet.lock("web"):
            assert asyncio.get_running_loop().time() - began < 0.1
        await both.advance(10)
        assert operations(old).get(identifier).state is OperationState.FAILED
        deaf.lost = False
        await both.quiet()


@simulate
async def test_what_is_deleted_while_its_name_is_handed_over_is_nowhere_after_it() -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        old, new = await two(both)
        deaf = Deaf(new, Handover)
        await drain(old)
        await both.advance(1)
        assert await both.delete(old.number, "web", "b") is None
        deaf.lost = False
        await both.advance(60)
        assert B not in [*old.running(), *new.running()]
        await both.quiet()


@simulate
@pytest.mark.parametrize("name", ["a", None])
@pytest.mark.parametrize("last", ["the old one", "its replacement"])
async def test_two_that_a_lost_hand_over_left_are_settled_whoever_connects_last(last: str, name: str | None) -> None:
    async with neighbourhood(2, slots=[8, 8]) as both:
        await both.advance(10)
        await both.put_app(0, "web")
        made = await both.create(0, "web", name)
        assert isinstance(made, str)
        at = both.where("web", made)[0]
        old, new = both.machines[at], both.machines[1 - at]
        Lossy(old, Handover, Cancel)
        Deaf(new, Cancel)
        mesh = old.entrance.mesh
        assert mesh is not None
        mesh.draining._stays = lambda _: None  # and the daemon dies before it has asked who else has the name
        await drain(old)
        await both.advance(10)
        await old.call(lambda entrance: entrance.undrain())
        await both.crash(old.number)
        both.stop_broker()
        await both.restart(old.number)
        late = old if last == "the old one" else new
        both.partition(late.number)
        both.start_broker()
        await both.advance(10)
        assert [machine.connected for machine in both.machines] == [machine is not late for machine in both.machines]
        assert both.where("web", made) == [0, 1]
        both.heal(late.number)
        await both.advance(10)
        assert both.where("web", made) == [old.number]


@simulate
async def test_the_request_that_made_it_still_finds_it_after_it_has_moved() -> None:
    async with neighbourhood(3, slots=[8, 8, 8]) as three:
        await three.advance(10)
        await three.put_app(0, "web")
        made = await three.create(0, "web", None, key="deploy")
        assert isinstance(made, str)
        [owner] = three.where("web", made)
        for asked in range(3):
            old = three.machines[owner]
            await drain(old)
            await three.advance(30)
            [owner] = three.where("web", made)
            assert three.machines[owner] is not old
            assert old.kept().outcomes == ()  # its next daemon knows nothing better either
            assert await three.create(asked, "web", None, key="deploy") == made
            assert three.where("web", made) == [owner]
            await old.call(lambda entrance: entrance.mesh.draining.end())
            assert await three.create(asked, "web", None, key="deploy") == made
            assert three.where("web", made) == [owner]
