"""Rolling restarts, over fakes: one after the other, and no further than the first that does not become ready."""

import pytest

from branchd.core.errors import Conflict, NotFound, StorageFailed
from branchd.core.lifecycle import State
from branchd.core.values import Exit
from branchd.wire.resources import OperationState, StepState
from tests.branch.conftest import ADMIN
from tests.waiting import until

NAMES = ("a", "b", "c")

#: a program that a KILL ends at once: the fakes know no other end
AT_ONCE = {"stop": [{"signal": "KILL", "patience": 5}]}


@pytest.fixture
async def three(service):
    for name in NAMES:
        await service.instances.create(ADMIN, "web", {"name": name, **AT_ONCE})
    await until(lambda: all(state(service, name) is State.RUNNING for name in NAMES))
    return service


def state(service, name):
    return service.instances.get("web", name).status.state


def pids(service):
    return {name: service.instances.get("web", name).status.pid for name in NAMES}


async def ended(service, operation):
    await until(lambda: service.operations.get(operation.id).state is not OperationState.RUNNING)
    return service.operations.get(operation.id)


def steps(operation):
    return {step.name.removeprefix("web:"): step.state for step in operation.steps}


async def test_each_is_restarted_when_the_one_before_is_ready(three, house):
    before = pids(three)
    most = []
    spawn = house.processes.spawn

    def watching(key, *rest):
        most.append(len(house.processes.running))
        return spawn(key, *rest)

    house.processes.spawn = watching
    operation = await ended(three, three.rolling.begin(ADMIN, "web"))
    assert (operation.kind, operation.state) == ("restart", OperationState.DONE)
    assert steps(operation) == dict.fromkeys(NAMES, StepState.DONE)
    assert not set(before.values()) & set(pids(three).values())
    assert most == [2, 2, 2]


async def test_only_those_that_are_named_or_run_with_something_else_than_their_spec(three):
    before = pids(three)
    await ended(three, three.rolling.begin(ADMIN, "web", ["b"]))
    assert {name for name in NAMES if pids(three)[name] != before[name]} == {"b"}
    await three.instances.patch("web", "c", {"env": {"STAGE": "live"}})
    operation = await ended(three, three.rolling.begin(ADMIN, "web", outdated=True))
    assert steps(operation) == {"c": StepState.DONE}
    with pytest.raises(NotFound):
        three.rolling.begin(ADMIN, "web", ["nobody"])


async def test_it_stops_at_the_first_that_does_not_become_ready_and_leaves_the_rest(three, house):
    await three.instances.patch("web", "b", {"command": ["missing"]})
    house.processes.missing.add("missing")
    before = pids(three)
    operation = await ended(three, three.rolling.begin(ADMIN, "web"))
    assert operation.state is OperationState.FAILED
    assert steps(operation) == {"a": StepState.DONE, "b": StepState.FAILED, "c": StepState.KEPT}
    details = {step.name: step.detail for step in operation.steps}
    assert "program missing does not exist" in details["web:b"]
    assert details["web:c"] == "web:b is not ready"
    assert pids(three)["c"] == before["c"]


async def test_on_a_full_disk_nobody_is_taken_down(three, house):
    before = pids(three)
    house.store.full = True
    operation = await ended(three, three.rolling.begin(ADMIN, "web"))
    assert steps(operation) == {"a": StepState.FAILED, "b": StepState.KEPT, "c": StepState.KEPT}
    assert operation.steps[0].detail.startswith("web:a runs on, because it could not be started again: ")
    with pytest.raises(StorageFailed):
        await three.instances.patch("web", "b", {}, restart=True)  # what it says already is not written
    assert pids(three) == before


async def test_a_process_that_ends_before_it_is_ready_is_not_waited_for(three, house):
    await three.instances.patch("web", "a", {"ready": {"after": 600}, "restart": {"policy": "never"}})
    operation = three.rolling.begin(ADMIN, "web", ["a"])
    await until(lambda: len(house.processes.spawned) == 4 and state(three, "a") is State.STARTING)
    house.processes.end(pids(three)["a"], Exit(3))
    operation = await ended(three, operation)
    assert operation.steps[0].detail == "its new process ended: exit code 3"


async def test_those_that_are_not_wanted_up_stay_down(three):
    await three.instances.stop("web", "b")
    assert await three.instances.wait("web", "b", "stopped", 5)
    operation = await ended(three, three.rolling.begin(ADMIN, "web"))
    assert operation.state is OperationState.DONE
    assert steps(operation) == {"a": StepState.DONE, "b": StepState.KEPT, "c": StepState.DONE}
    assert state(three, "b") is State.STOPPED


@pytest.mark.parametrize("meanwhile", ["stop", "delete"])
async def test_one_that_somebody_stops_or_deletes_meanwhile_ends_it(three, house, meanwhile):
    await three.instances.patch("web", "a", {"ready": {"after": 600}})
    operation = three.rolling.begin(ADMIN, "web")
    await until(lambda: len(house.processes.spawned) == 4 and state(three, "a") is State.STARTING)
    await getattr(three.instances, meanwhile)("web", "a")
    operation = await ended(three, operation)
    assert steps(operation) == {"a": StepState.FAILED, "b": StepState.KEPT, "c": StepState.KEPT}
    assert "meanwhile" in operation.steps[0].detail


async def test_it_can_be_cancelled_and_one_at_a_time_is_enough_for_an_app(three, house):
    await three.instances.patch("web", "a", {"ready": {"after": 600}})
    operation = three.rolling.begin(ADMIN, "web")
    await until(lambda: len(house.processes.spawned) == 4)
    with pytest.raises(Conflict, match="are being restarted"):
        three.rolling.begin(ADMIN, "web", ["c"])
    before = pids(three)
    operation = await three.operations.cancel(operation.id)
    assert steps(operation) == {"a": StepState.DONE, "b": StepState.KEPT, "c": StepState.KEPT}
    assert "goes on" in operation.steps[0].detail
    assert pids(three) == before
    again = await ended(three, three.rolling.begin(ADMIN, "web", ["c"]))
    assert again.state is OperationState.DONE
