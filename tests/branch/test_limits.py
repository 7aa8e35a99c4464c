"""max_memory, limits that the machine does not keep, and what the doctor says of both; with fakes."""

from typing import Any

import pytest

from branchd.branch import memory
from branchd.core.diagnosis import Diagnosis
from branchd.core.lifecycle import State
from branchd.core.spec import Wanted
from tests.branch.conftest import ADMIN
from tests.waiting import until

KILL = [{"signal": "KILL", "patience": 1}]


async def create(service: Any, **spec: Any) -> None:
    await service.instances.create(ADMIN, "web", {"name": "a", "stop": KILL, **spec})
    await until(lambda: status(service).state is State.RUNNING)


def status(service: Any) -> Any:
    return service.instances.get("web", "a").status


def condition(service: Any) -> tuple[str, str] | None:
    found = [one for one in status(service).conditions if one.type == "LimitsApplied"]
    return (found[0].status.value, found[0].reason) if found else None


def told(service: Any, check: str) -> list[Diagnosis]:
    return [one for one in service.diagnoses() if one.check == check]


async def reasons(service: Any) -> list[str]:
    items = service.events.subscribe(0, follow=False)
    return [item.data["reason"] async for item in items if item.type == "instance.state"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PERIOD", 0.01)


async def test_what_uses_more_than_max_memory_is_restarted_and_says_why(service: Any, house: Any, quick: None) -> None:
    await create(service, max_memory="512MiB")
    house.host.resident = 512 << 20
    first = status(service).pid
    await until(lambda: not house.processes.signals and len(house.processes.spawned) == 1)
    house.host.resident = 612 << 20
    await until(lambda: status(service).pid not in (first, None))
    assert "uses 612 MiB, max_memory is 512 MiB" in await reasons(service)
    assert status(service).wanted is Wanted.UP
    assert status(service).restarts == 1
    house.host.resident = 1 << 20


async def test_on_a_full_disk_what_is_too_big_runs_on_until_it_can_be_started_again(
    service: Any, house: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    monkeypatch.setattr(house.host, "memory", lambda identity: looks.append(identity) or house.host.resident)
    house.host.resident = 1 << 30
    await create(service, max_memory="2GiB")
    first = status(service).pid
    house.store.full = True
    house.host.resident = 3 << 30
    seen = len(looks)
    await until(lambda: len(looks) > seen + 3)
    assert (status(service).state, status(service).pid) == (State.RUNNING, first)
    house.store.full = False
    await until(lambda: status(service).pid not in (first, None))
    assert status(service).restarts == 1
    house.host.resident = 1 << 20


async def test_what_is_too_big_again_and_again_is_fatal(service: Any, house: Any, quick: None) -> None:
    house.host.resident = 1 << 30
    await create(service, max_memory="512MiB", restart={"max_restarts": 1, "ceiling": 0.1})
    await until(lambda: status(service).state is State.FATAL)
    assert status(service).reason.startswith("uses 1024 MiB, max_memory is 512 MiB; 2 times within")
    assert len(house.processes.spawned) == 2


async def test_max_memory_is_taken_up_at_once_and_nobody_is_looked_at_without_it(
    service: Any, house: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.host.resident = 1 << 30
    looks = []
    monkeypatch.setattr(house.host, "memory", lambda identity: looks.append(identity) or house.host.resident)
    await create(service)
    assert service._fleet.memory._round is None
    house.host.resident = 1 << 20
    await service.instances.patch("web", "a", {"max_memory": "2MiB"})
    await until(lambda: looks)
    await service.instances.patch("web", "a", {"max_memory": None})
    await until(lambda: service._fleet.memory._round is None)
    assert len(house.processes.spawned) == 1


async def test_limits_that_are_kept_are_said_to_be(service: Any) -> None:
    await create(service, limits={"open_files": 1000})
    assert condition(service) == ("True", "")
    assert not told(service, "limits")


async def test_one_without_limits_says_nothing_of_them(service: Any) -> None:
    await create(service)
    assert condition(service) is None


async def test_limits_that_are_not_kept_stop_nothing_and_are_told(service: Any, house: Any) -> None:
    house.processes.refused_limits = {"memory": "there are no control groups", "nice": "it may not"}
    await create(service, limits={"memory": "1GiB", "tasks": 10})
    assert status(service).state is State.RUNNING
    assert condition(service) == ("False", "memory: there are no control groups")
    [found] = told(service, "limits")
    assert "1 instances (web:a): memory: there are no control groups" in found.detail


async def test_the_doctor_misses_accounts(service: Any, house: Any) -> None:
    await create(service, user="worker")
    assert not any("worker" in one.detail for one in service.diagnoses())
    house.host.missing = {"worker"}
    assert any("user 'worker' does not exist; 1 instances" in one.detail for one in told(service, "accounts"))
