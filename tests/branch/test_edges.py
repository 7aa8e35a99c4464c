"""Instances in trouble: given up by us, being deleted, restarted while down, or defined by what is valid no more."""

import asyncio

import pytest
from msgspec.structs import replace

from branchd.branch.records import InstanceRecord, Put
from branchd.branch.watch import Watch
from branchd.core.errors import Invalid, NotFound
from branchd.core.health import Phase
from branchd.core.lifecycle import State
from branchd.core.values import Exit, Key
from branchd.wire.agent import Heartbeat
from tests.branch.conftest import ADMIN
from tests.branch.test_service import create, running, state
from tests.waiting import until

UNUSABLE = {"umask": "999", "nonsense": 3, "env": {"KEY": {"secret": 12345}}}


def condition(view, kind):
    return next(each.status for each in view.status.conditions if each.type == kind)


@pytest.fixture
async def given_up(service, house, monkeypatch):
    """An instance that a bug of ours made FATAL while its process runs."""

    def bug(*_):
        raise RuntimeError("a bug")

    await create(service, "a")
    pid = await running(service, "a")
    with monkeypatch.context() as patch:
        patch.setattr("branchd.branch.supervisor.step", bug)
        house.processes.end(pid, Exit(1))
        await until(lambda: state(service, "a") is State.FATAL)
    house.processes.running[pid] = house.processes.spawned[0]  # the notice was false, it may have been any other
    return pid


async def test_what_was_given_up_can_be_stopped(service, house, given_up):
    view = await service.instances.stop("web", "a")
    assert (view.status.state, view.status.pid) == (State.STOPPED, None)
    assert house.processes.killed_trees == [given_up]
    assert next(run for run in house.store.load().runs).machine.state is State.STOPPED


async def test_what_was_given_up_can_be_deleted(service, house, given_up):
    await service.instances.delete("web", "a")
    assert await service.instances.wait("web", "a", "gone", 10)
    assert house.processes.killed_trees == [given_up]


async def test_what_was_given_up_keeps_no_daemon_from_ending(service, house, given_up):
    async with asyncio.timeout(30):
        await service.end()
    assert house.processes.killed_trees == [given_up]


async def test_a_restart_of_one_that_is_down_starts_it_once(service, house):
    await create(service, "a", wanted="down")
    await service.instances.restart("web", "a")
    await running(service, "a")
    assert (len(house.processes.spawned), house.processes.signals) == (1, [])


async def test_a_patch_with_restart_of_a_fatal_one_starts_it_once(service, house):
    house.processes.missing.add("serve")
    await create(service, "a", restart={"max_restarts": 0})
    await until(lambda: state(service, "a") is State.FATAL)
    house.processes.missing.clear()
    await service.instances.patch("web", "a", {"env": {"X": "1"}}, restart=True)
    await running(service, "a")
    assert (len(house.processes.spawned), house.processes.signals) == (1, [])


@pytest.mark.parametrize("change", [{"env": {"A": "1"}}, {"wanted": "up"}])
async def test_no_change_of_its_app_brings_back_what_is_being_deleted(service, house, change):
    await create(service, "a")
    pid = await running(service, "a")
    await service.apps.patch("web", {"wanted": "down"})
    await service.instances.delete("web", "a")
    await service.apps.patch("web", change, restart=True)
    house.processes.end(pid, Exit(0))
    assert await service.instances.wait("web", "a", "gone", 10)
    assert len(house.processes.spawned) == 1


async def test_what_is_created_while_the_daemon_ends_is_left_to_the_next_one(service, house, monkeypatch):
    write, begun, may_go_on = house.store.write, asyncio.Event(), asyncio.Event()

    async def slow(*changes, durable=True):
        if any(isinstance(change, Put) and isinstance(change.record, InstanceRecord) for change in changes):
            begun.set()
            await may_go_on.wait()
        await write(*changes, durable=durable)

    monkeypatch.setattr(house.store, "write", slow)
    creating = asyncio.ensure_future(create(service, "a"))
    await begun.wait()
    await service.end()
    may_go_on.set()
    await creating
    assert house.processes.spawned == []
    later = house.service()
    await later.begin()
    await running(later, "a")
    later.close()


@pytest.fixture
async def worker(service, house):
    """The supervisor of a Celery worker that is up."""
    await service.apps.put("jobs", {"kind": "celery", "application": "proj", "queues": ["one"]})
    await service.instances.create(ADMIN, "jobs", {"name": "w"})
    supervisor = service._fleet.get("jobs", "w")
    supervisor.attendance.heard(Heartbeat(phase=Phase.UP, queues=("one",)))
    await running(service, "w", "jobs")
    return supervisor


async def test_a_worker_that_claims_to_have_lost_its_queues_stays_stopped(service, house, worker):
    pid = worker.process.identity.pid
    await service.instances.stop("jobs", "w")
    for _ in range(20):  # it agrees to each correction, and never consumes
        worker.attendance._monitor.told({"op": "add_consumer", "queue": {"name": "one"}}, None)
        worker.attendance.heard(Heartbeat(phase=Phase.UP, queues=()))
    await worker.idle()
    house.processes.end(pid, Exit(0))
    assert await service.instances.wait("jobs", "w", "stopped", 10)
    assert len(house.processes.spawned) == 1


async def test_a_worker_that_claims_to_have_thousands_of_queues_makes_no_thousands_of_tasks(worker):
    before = len(asyncio.all_tasks())
    for _ in range(3):
        worker.attendance.heard(Heartbeat(phase=Phase.UP, queues=tuple(f"queue{number}" for number in range(1000))))
    assert len(asyncio.all_tasks()) - before <= 32


async def restarted(service, house, spec):
    """The next daemon, which finds this spec of web:a in its store."""
    [record] = [each for each in house.store.load().instances if each.key.name == "a"]
    await house.store.write(Put(replace(record, spec=spec)))
    house.processes.crash()
    later = house.service()
    await later.begin()
    return later


async def test_a_spec_that_is_valid_no_more_is_fatal_in_words_and_keeps_nobody_from_starting(service, house):
    await create(service, "a")
    await create(service, "b")
    house.processes.end(await running(service, "a"), Exit(0))
    pid = await running(service, "b")
    await until(lambda: len(house.processes.spawned) == 3)
    house.processes.running.pop(1002)
    later = await restarted(service, house, UNUSABLE)
    assert await running(later, "b") == pid
    await until(lambda: state(later, "a") is State.FATAL)
    view = later.instances.get("web", "a")
    for words in ("/umask: '999' is not an octal mask", "/nonsense: unknown field", "/env/KEY/secret: is not valid"):
        assert words in view.status.reason
    assert "12345" not in view.status.reason
    with pytest.raises(Invalid):
        await later.instances.patch("web", "a", {"umask": "027"})
    await later.instances.patch("web", "a", {"umask": None, "nonsense": None, "env": None})
    await running(later, "a")
    assert later.instances.get("web", "a").status.reason == ""
    later.close()


async def test_what_runs_by_a_spec_that_is_valid_no_more_goes_on_and_can_be_stopped(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    later = await restarted(service, house, UNUSABLE)
    assert await running(later, "a") == pid
    assert condition(later.instances.get("web", "a"), "ConfigCurrent") == "False"
    await later.apps.patch("web", {"labels": {"team": "pay"}})  # and it stands in nobody's way
    await later.instances.stop("web", "a")
    await until(lambda: (pid, 15) in house.processes.signals)
    house.processes.end(pid, Exit(signal=15))
    assert await later.instances.wait("web", "a", "stopped", 10)
    await later.instances.delete("web", "a")
    assert await later.instances.wait("web", "a", "gone", 10)
    later.close()


async def test_an_instance_whose_app_is_missing_is_there_and_the_app_can_be_put(service, house):
    await house.store.write(Put(InstanceRecord(Key("gone", "x"), {"kind": "command"})))
    later = house.service()
    await later.begin()
    await until(lambda: state(later, "x", "gone") is State.FATAL)
    await later.apps.put("gone", {"command": ["serve"]})
    await running(later, "x", "gone")
    later.close()


async def test_an_adopted_process_is_shown_with_what_it_was_started_with(service, house):
    await create(service, "a")
    await running(service, "a")
    await service.instances.patch("web", "a", {"labels": {"a": "b"}})
    house.processes.crash()
    later = house.service()
    await later.begin()
    view = later.instances.get("web", "a")
    assert (condition(view, "ConfigCurrent"), view.status.observed_generation) == ("True", 2)
    await later.instances.patch("web", "a", {"env": {"A": "1"}})
    house.processes.crash()
    last = house.service()
    last.instances.get("web", "a")  # somebody looks before it is adopted
    await last.begin()
    assert condition(last.instances.get("web", "a"), "ConfigCurrent") == "False"
    later.close()
    last.close()


async def test_asking_for_apps_that_do_not_exist_leaves_nothing_behind(service):
    for number in range(100):
        with pytest.raises(NotFound):
            await service.instances.start(f"app{number}", "a")
    assert len(service._fleet._locks) < 10


async def test_a_bug_in_looking_after_one_process_stops_no_look_at_the_others(monkeypatch):
    class Watched:
        ticks = 0

        def tick(self, now):
            self.ticks += 1
            raise RuntimeError("a bug")

        forget = tick

    monkeypatch.setattr("branchd.branch.watch.PERIOD", 0.01)
    watch = Watch(asyncio.get_running_loop().time)
    watched = [Watched(), Watched()]
    for each in watched:
        watch.add(each)
    await until(lambda: all(each.ticks >= 2 for each in watched))
    for each in watched:
        watch.discard(each)
