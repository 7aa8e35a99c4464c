"""Who waits for whom, over fakes: starts that wait for what they depend on, priorities, and the end of all in order."""

import asyncio

import pytest
from msgspec.structs import replace

from branchd.branch.records import InstanceRecord, Put
from branchd.core.errors import Invalid
from branchd.core.lifecycle import State
from branchd.core.spec import Wanted
from branchd.core.values import Exit, Key
from tests.branch.conftest import ADMIN
from tests.waiting import until


async def create(service, name, app="web", **spec):
    await service.instances.create(ADMIN, app, {"name": name, **spec})


def status(service, name, app="web"):
    return service.instances.get(app, name).status


async def runs(service, *names):
    await until(lambda: all(status(service, name).state is State.RUNNING for name in names), what=f"{names} to run")


def spawned(house):
    return [process.key.name for process in house.processes.spawned]


def pid(house, name):
    return next(process.identity.pid for process in house.processes.running.values() if process.key.name == name)


def terminated(house):
    """Names of those that were sent TERM, in order."""
    names = {process.identity.pid: process.key.name for process in house.processes.spawned}
    return [names[pid] for pid, number in house.processes.signals if number == 15]


async def test_it_waits_without_a_process_for_one_that_does_not_exist_and_starts_when_that_is_ready(service, house):
    await create(service, "a", depends_on=["b"])
    view = status(service, "a")
    assert (view.state, view.wanted, view.pid) == (State.STARTING, Wanted.UP, None)
    assert view.reason == "waits for web:b, which does not exist"
    await create(service, "b")
    await runs(service, "a", "b")
    assert spawned(house) == ["b", "a"]
    assert status(service, "a").reason == ""


async def test_the_reason_says_what_becomes_of_what_it_waits_for(service, house):
    await create(service, "b", wanted="down")
    await create(service, "a", depends_on=["b"])
    assert status(service, "a").reason == "waits for web:b, which is not wanted up"
    house.processes.missing.add("serve")
    await service.instances.patch("web", "b", {"restart": {"max_restarts": 0}})
    await service.instances.start("web", "b")
    await until(lambda: status(service, "a").reason == "waits for web:b, which is FATAL")
    assert status(service, "a").state is State.STARTING
    await service.instances.delete("web", "b")
    await until(lambda: status(service, "a").reason == "waits for web:b, which does not exist")
    house.processes.missing.clear()
    await create(service, "b")
    await runs(service, "a", "b")


async def test_a_stop_while_it_waits_ends_that_at_once_and_what_comes_later_starts_nothing(service, house):
    await create(service, "a", depends_on=["b"])
    view = await service.instances.stop("web", "a")
    assert (view.status.state, view.status.wanted) == (State.STOPPED, Wanted.DOWN)
    await create(service, "b")
    await runs(service, "b")
    assert spawned(house) == ["b"]


async def test_one_that_waits_can_be_deleted_and_restarted_and_made_to_wait_no_more(service, house):
    await create(service, "a", depends_on=["x"])
    await create(service, "b", depends_on=["y"])
    await service.instances.restart("web", "a")
    assert status(service, "a").state is State.STARTING
    await service.instances.delete("web", "a")
    assert await service.instances.wait("web", "a", "gone", 5)
    await service.instances.patch("web", "b", {"depends_on": None})
    await runs(service, "b")


async def test_a_dependency_that_goes_down_stops_nothing_but_the_next_start_waits_for_it(service, house):
    await create(service, "b")
    await create(service, "a", depends_on=["b"])
    await runs(service, "a", "b")
    await service.instances.stop("web", "b")
    house.processes.end(pid(house, "b"), Exit(signal=15))
    assert await service.instances.wait("web", "b", "stopped", 5)
    assert status(service, "a").state is State.RUNNING
    house.processes.end(pid(house, "a"), Exit(1))
    await until(lambda: status(service, "a").reason == "waits for web:b, which is not wanted up")
    assert (status(service, "a").state, status(service, "a").restarts) == (State.STARTING, 1)
    await service.instances.start("web", "b")
    await runs(service, "a", "b")


async def test_every_instance_of_an_app_is_waited_for_those_too_that_come_meanwhile(service, house):
    await service.apps.put("db", {"kind": "command", "command": ["serve"]})
    await create(service, "a", depends_on=["db:*"])
    assert status(service, "a").reason == "waits for db:*, which does not exist"
    await create(service, "one", "db", wanted="down")
    await until(lambda: status(service, "a").reason == "waits for db:one, which is not wanted up")
    await create(service, "two", "db", wanted="down")
    await service.instances.start("db", "one")
    await until(lambda: status(service, "a").reason == "waits for db:two, which is not wanted up")
    await service.instances.start("db", "two")
    await runs(service, "a")


async def test_ready_is_waited_for_and_not_only_started(service, house):
    await create(service, "b", ready={"after": 0.2})
    await create(service, "a", depends_on=["b"])
    assert status(service, "b").pid is not None
    assert status(service, "a").reason == "waits for web:b to be ready"
    await runs(service, "a", "b")


async def test_a_write_that_would_close_a_circle_is_refused_and_names_it(service):
    async def refused(work):
        with pytest.raises(Invalid) as refusal:
            await work
        [fault] = refusal.value.faults
        assert fault.pointer == "/depends_on"
        return fault.detail

    await create(service, "a", depends_on=["b"])
    circle = "web:b depends on web:a, which depends on web:b"
    assert await refused(create(service, "b", depends_on=["a"])) == circle
    await create(service, "b")
    assert await refused(service.instances.patch("web", "b", {"depends_on": ["a"]})) == circle
    assert await refused(service.instances.patch("web", "b", {"depends_on": ["web:*"]})) in (
        circle,
        "web:b depends on itself",
    )
    assert await refused(service.apps.patch("web", {"depends_on": ["a"]})) == circle
    assert service.instances.get("web", "b").spec == service.apps.get("web").spec.get("depends_on", {})


async def test_a_circle_that_is_there_all_the_same_is_fatal_and_breaking_it_starts_them(service, house):
    await create(service, "a", depends_on=["b"], wanted="down")
    await service.instances.stop("web", "a")
    raw = {"depends_on": ["a"]}
    await house.store.write(Put(InstanceRecord(Key("web", "b"), raw)))  # as a file may say it
    house.processes.crash()
    later = house.service()
    await later.begin()
    assert status(later, "b").state is State.STARTING
    await later.instances.start("web", "a")
    await until(lambda: status(later, "a").state is status(later, "b").state is State.FATAL)
    assert status(later, "a").reason.startswith("web:a depends on web:b, which depends on web:a")
    assert status(later, "b").reason.startswith("web:b depends on web:a, which depends on web:b")
    await later.instances.patch("web", "a", {"depends_on": []})
    await runs(later, "a")
    await later.instances.start("web", "b")
    await runs(later, "b")
    later.close()


async def test_what_waits_goes_on_waiting_after_a_crash_of_the_daemon_and_adoption_waits_for_nothing(service, house):
    await create(service, "c")
    await create(service, "b", depends_on=["c"])
    await create(service, "a", depends_on=["gone"])
    await runs(service, "b", "c")
    await service.instances.stop("web", "c")
    house.processes.end(pid(house, "c"), Exit(signal=15))
    assert await service.instances.wait("web", "c", "stopped", 5)
    held, before = status(service, "a").reason, pid(house, "b")
    house.processes.crash()
    later = house.service()
    await later.begin()
    assert status(later, "a").reason == held
    assert (status(later, "b").state, status(later, "b").pid) == (State.RUNNING, before)
    await create(later, "gone")
    await runs(later, "a")
    assert spawned(house) == ["c", "b", "gone", "a"]
    later.close()


async def test_after_a_boot_lower_priorities_come_first_and_dependence_beats_them(service, house):
    await create(service, "late", priority=1000)
    await create(service, "usual")
    await create(service, "first", priority=1, depends_on=["usual"])
    await create(service, "early", priority=5)
    await runs(service, "late", "usual", "first", "early")
    house.processes.crash()
    house.processes.running.clear()
    del house.processes.spawned[:]
    later = house.service()
    await later.begin()
    await runs(later, "late", "usual", "first", "early")
    order = spawned(house)
    assert order.index("early") < order.index("usual") < order.index("late")
    assert order.index("usual") < order.index("first")
    later.close()


async def test_at_the_end_dependents_stop_before_what_they_depend_on_and_higher_priorities_first(service, house):
    await create(service, "db", priority=1)
    await create(service, "worker", depends_on=["db"])
    await create(service, "other")
    await create(service, "waits", depends_on=["never"])
    await runs(service, "db", "worker", "other")
    ending = asyncio.ensure_future(service.end())
    await until(lambda: sorted(terminated(house)) == ["other", "worker"])
    house.processes.end(pid(house, "other"), Exit(signal=15))
    await until(lambda: status(service, "other").state is State.STOPPED)
    assert status(service, "waits").state is State.STOPPED
    assert "db" not in terminated(house)
    house.processes.end(pid(house, "worker"), Exit(signal=15))
    await until(lambda: terminated(house)[2:] == ["db"])
    house.processes.end(pid(house, "db"), Exit(signal=15))
    await ending


async def test_an_end_without_patience_waits_for_no_order(service, house):
    await create(service, "db")
    await create(service, "worker", depends_on=["db"])
    await runs(service, "db", "worker")
    ending = asyncio.ensure_future(service.end())
    await until(lambda: terminated(house) == ["worker"])
    service.kill()
    await ending
    assert not house.processes.running


async def test_stopping_one_waits_for_nobody_that_depends_on_it(service, house):
    await create(service, "db")
    await create(service, "worker", depends_on=["db"])
    await runs(service, "db", "worker")
    await service.instances.stop("web", "db")
    assert terminated(house) == ["db"]
    assert status(service, "worker").state is State.RUNNING
    house.processes.end(pid(house, "db"), Exit(signal=15))
    assert await service.instances.wait("web", "db", "stopped", 5)


async def test_an_instance_whose_spec_is_not_valid_any_more_waits_for_nothing(service, house):
    await create(service, "a", depends_on=["b"])
    supervisor = service._fleet.find(Key("web", "a"))
    record = replace(supervisor.record, spec={"depends_on": "nonsense"})
    await house.store.write(Put(record))
    house.processes.crash()
    later = house.service()
    await later.begin()
    await until(lambda: status(later, "a").state is not State.STARTING)
    assert "not valid any more" in status(later, "a").reason
    later.close()
