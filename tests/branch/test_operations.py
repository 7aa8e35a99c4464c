"""Long work that can be watched and cancelled."""

import asyncio

import pytest

from branchd.branch.operations import KEPT, Operations, Progress
from branchd.core.access import Principal, Scope
from branchd.core.errors import Conflict, NotFound, Unavailable
from branchd.wire.resources import OperationState, StepState
from tests.waiting import until

ADMIN = Principal("uid:0", Scope.ADMIN)


@pytest.fixture
def operations() -> Operations:
    return Operations("web1", lambda: 1000.0)


async def _ended(operations: Operations, identifier: str) -> OperationState:
    await until(lambda: operations.get(identifier).state is not OperationState.RUNNING)
    return operations.get(identifier).state


async def test_the_steps_are_seen_as_they_go(operations: Operations) -> None:
    go_on = asyncio.Event()

    async def work(progress: Progress) -> None:
        progress.plan(["a", "b"])
        progress.step("a", StepState.RUNNING)
        await go_on.wait()
        progress.step("a", StepState.DONE)
        progress.step("b", StepState.DONE)

    begun = operations.begin("drain", ADMIN, work)
    assert (begun.kind, begun.by, begun.branch, begun.ended_at) == ("drain", "uid:0", "web1", None)
    await until(lambda: len(operations.get(begun.id).steps) == 2)
    assert [step.state for step in operations.get(begun.id).steps] == [StepState.RUNNING, StepState.WAITING]
    assert operations.running("drain") is not None
    go_on.set()
    assert await _ended(operations, begun.id) is OperationState.DONE
    assert operations.running("drain") is None


async def test_cancelling_keeps_what_is_done_and_leaves_the_rest_as_it_was(operations: Operations) -> None:
    async def work(progress: Progress) -> None:
        progress.plan(["a", "b"])
        progress.step("a", StepState.DONE)
        await asyncio.Event().wait()

    begun = operations.begin("drain", ADMIN, work)
    await until(lambda: bool(operations.get(begun.id).steps))
    cancelled = await operations.cancel(begun.id)
    assert cancelled.state is OperationState.CANCELLED
    assert [step.state for step in cancelled.steps] == [StepState.DONE, StepState.KEPT]
    with pytest.raises(Conflict, match="has ended"):
        await operations.cancel(begun.id)


async def test_a_failed_step_fails_it_and_so_does_an_error(operations: Operations) -> None:
    async def half(progress: Progress) -> None:
        progress.step("a", StepState.FAILED, "no room")

    async def not_at_all(_progress: Progress) -> None:
        raise Unavailable("there is no connection")

    first, second = operations.begin("drain", ADMIN, half), operations.begin("drain", ADMIN, not_at_all)
    assert await _ended(operations, first.id) is OperationState.FAILED
    assert await _ended(operations, second.id) is OperationState.FAILED
    assert operations.get(second.id).detail == "there is no connection"


async def test_a_bug_fails_the_operation_and_nothing_else(operations: Operations) -> None:
    async def bug(_progress: Progress) -> None:
        raise ZeroDivisionError

    begun = operations.begin("drain", ADMIN, bug)
    assert await _ended(operations, begun.id) is OperationState.FAILED
    assert "ZeroDivisionError" in operations.get(begun.id).detail


async def test_unknown_ones_are_not_found_and_old_ones_are_forgotten(operations: Operations) -> None:
    with pytest.raises(NotFound):
        operations.get("nope")

    async def nothing(_progress: Progress) -> None:
        return

    for _ in range(KEPT + 5):
        last = operations.begin("drain", ADMIN, nothing)
        await _ended(operations, last.id)
    assert len(operations.list()) <= KEPT + 1
    assert operations.list()[0].started_at == last.started_at
    await operations.close()
