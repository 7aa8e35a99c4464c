"""Definitions and supervision together, over fakes: what is committed, what is started, what is never done twice."""

import asyncio
import json

import pytest
from msgspec.structs import replace

from branchd.branch.records import InstanceRecord, Put, RunRecord
from branchd.core.diagnosis import Level
from branchd.core.errors import Conflict, Invalid, NotFound, SpawnFailed, Stale, StorageFailed
from branchd.core.lifecycle import State
from branchd.core.values import Exit, Key, Stream, Truth
from branchd.wire.resources import ConditionType
from tests.api.conftest import House
from tests.branch.conftest import ADMIN
from tests.waiting import until


def state(service, name, app="web"):
    return service.instances.get(app, name).status.state


async def running(service, name, app="web"):
    await until(lambda: state(service, name, app) is State.RUNNING, what=f"{app}:{name} to run")
    return service.instances.get(app, name).status.pid


async def create(service, name, **spec):
    await service.instances.create(ADMIN, "web", {"name": name, **spec})


async def test_an_instance_is_committed_before_it_is_started(service, house):
    seen = []
    spawn = house.processes.spawn

    async def spying(key, nonce, *rest):
        await rest[-1]
        records = [change.record for write in house.store.writes for change in write if isinstance(change, Put)]
        seen.append(any(isinstance(record, InstanceRecord) and record.key == key for record in records))
        seen.append(any(isinstance(record, RunRecord) and record.nonce == nonce for record in records))
        return await spawn(key, nonce, *rest)

    house.processes.spawn = spying
    await create(service, "a")
    await running(service, "a")
    assert seen == [True, True]


async def test_what_happens_by_itself_does_not_wait_for_the_disk_and_what_is_asked_for_does(service, house):
    def durable(kind):
        kept = zip(house.store.writes, house.store.durable, strict=True)
        return {how for write, how in kept if any(isinstance(it, Put) and isinstance(it.record, kind) for it in write)}

    await create(service, "a")
    house.processes.end(await running(service, "a"), Exit(signal=9))
    await until(lambda: len(house.processes.spawned) == 2)
    await running(service, "a")
    assert (durable(InstanceRecord), durable(RunRecord)) == ({True}, {False})


async def test_an_end_and_the_start_that_it_leads_to_are_one_commit(service, house):
    await create(service, "a")
    pid, before = await running(service, "a"), len(house.store.writes)
    house.processes.end(pid, Exit(signal=9))
    await until(lambda: len(house.processes.spawned) == 2)
    [run, *_] = [change.record for change in house.store.writes[before] if isinstance(change, Put)]
    assert (run.last_exit, run.nonce) == (Exit(signal=9), house.processes.spawned[1].nonce)


async def test_a_crash_is_answered_with_another_process_and_what_was_left_of_the_first_is_swept(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    house.processes.end(pid, Exit(signal=9))
    await until(lambda: service.instances.get("web", "a").status.pid not in (None, pid))
    view = service.instances.get("web", "a")
    assert (view.status.restarts, view.status.last_exit.signal) == (1, "SIGKILL")
    assert house.processes.swept[0] == (house.processes.spawned[0].key, house.processes.spawned[0].nonce)
    assert len(house.processes.running) == 1


async def test_stop_and_start_are_remembered_by_the_next_daemon(service, house):
    await create(service, "a")
    await running(service, "a")
    await service.instances.stop("web", "a")
    house.processes.end(house.processes.spawned[0].identity.pid, Exit(signal=15))
    assert await service.instances.wait("web", "a", "stopped", 5)
    house.processes.crash()
    later = house.service()
    await later.begin()
    assert state(later, "a") is State.STOPPED
    await later.instances.start("web", "a")
    await running(later, "a")
    later.close()


async def test_a_daemon_that_was_killed_finds_its_processes_again_and_doubles_none(service, house):
    for name in "abcde":
        await create(service, name)
    pids = {name: await running(service, name) for name in "abcde"}
    house.processes.crash()
    later = house.service()
    await later.begin()
    await until(lambda: all(state(later, name) is State.RUNNING for name in "abcde"))
    assert {name: later.instances.get("web", name).status.pid for name in "abcde"} == pids
    assert len(house.processes.spawned) == 5
    house.processes.end(pids["c"], Exit(1))
    await until(lambda: later.instances.get("web", "c").status.pid not in (None, pids["c"]))
    later.close()


async def test_a_process_whose_pid_was_never_written_down_is_found_by_its_mark(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    runs = [change.record for write in house.store.writes for change in write
            if isinstance(change, Put) and isinstance(change.record, RunRecord)]  # fmt: skip
    intent = next(run for run in runs if run.nonce and run.identity is None)
    await house.store.write(Put(intent))  # as if the daemon had been killed right after the spawn
    house.processes.crash()
    later = house.service()
    await later.begin()
    assert await running(later, "a") == pid
    assert len(house.processes.spawned) == 1
    view = later.instances.get("web", "a")
    assert view.status.started_at is not None
    assert {condition.type: condition.status for condition in view.status.conditions}["ConfigCurrent"] == "True"
    later.close()


async def test_an_intent_that_never_became_a_process_is_started_again(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    runs = [change.record for write in house.store.writes for change in write
            if isinstance(change, Put) and isinstance(change.record, RunRecord)]  # fmt: skip
    await house.store.write(Put(next(run for run in runs if run.nonce and run.identity is None)))
    house.processes.crash()
    del house.processes.running[pid]
    later = house.service()
    await later.begin()
    assert await running(later, "a") != pid
    later.close()


async def test_an_ambiguous_mark_is_fatal_in_words_and_starts_nothing(service, house):
    await create(service, "a")
    await running(service, "a")
    runs = [change.record for write in house.store.writes for change in write
            if isinstance(change, Put) and isinstance(change.record, RunRecord)]  # fmt: skip
    intent = next(run for run in runs if run.nonce and run.identity is None)
    await house.store.write(Put(intent))
    house.processes.crash()
    house.processes.ambiguous.add(intent.nonce)
    later = house.service()
    await later.begin()
    view = later.instances.get("web", "a")
    assert view.status.state is State.FATAL
    assert "several processes carry the mark" in view.status.reason
    assert len(house.processes.spawned) == 1
    later.close()


async def test_after_a_boot_what_was_wanted_up_comes_up(service, house):
    await create(service, "a")
    await create(service, "b", wanted="down")
    await running(service, "a")
    run = next(run for run in house.store.load().runs if run.key.name == "a")
    await house.store.write(Put(replace(run, boot="another")))
    house.processes.crash()
    house.processes.running.clear()
    later = house.service()
    await later.begin()
    await running(later, "a")
    assert state(later, "b") is State.STOPPED
    later.close()


async def test_a_process_that_ended_while_no_daemon_was_there_is_started_again(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    house.processes.crash()
    del house.processes.running[pid]
    later = house.service()
    await later.begin()
    assert await running(later, "a") != pid
    assert later.instances.get("web", "a").status.last_exit.code is None
    later.close()


async def test_delete_stops_first_and_frees_the_name_last(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    await service.instances.delete("web", "a")
    assert service.instances.get("web", "a").status.deleting
    with pytest.raises(Conflict, match="exists already"):
        await create(service, "a")
    with pytest.raises(Conflict, match="being deleted"):
        await service.instances.start("web", "a")
    house.processes.end(pid, Exit(0))
    assert await service.instances.wait("web", "a", "gone", 5)
    with pytest.raises(NotFound):
        service.instances.get("web", "a")
    assert house.store.load().instances == ()
    await create(service, "a")


async def test_a_delete_that_was_begun_goes_on_after_a_crash_of_the_daemon(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    await service.instances.delete("web", "a")
    house.processes.crash()
    later = house.service()
    await later.begin()
    await until(lambda: (pid, 15) in house.processes.signals)
    house.processes.end(pid, Exit(signal=15))
    assert await later.instances.wait("web", "a", "gone", 5)
    assert len(house.processes.spawned) == 1
    later.close()


async def test_what_is_missing_is_said_and_it_is_tried_again(service, house):
    house.processes.missing.add("serve")
    await create(service, "a", restart={"max_restarts": 0})
    await until(lambda: state(service, "a") is State.FATAL)
    assert "program serve does not exist" in service.instances.get("web", "a").status.reason
    house.processes.missing.clear()
    await service.instances.patch("web", "a", {"env": {"X": "1"}})  # a change of the spec is worth another try
    await running(service, "a")


async def test_the_machines_own_trouble_is_never_held_against_an_instance(service, house):
    house.processes.failure = SpawnFailed("no memory", ours=True)
    await create(service, "a", restart={"max_restarts": 0})
    await until(lambda: state(service, "a") is State.BACKOFF)
    house.processes.failure = None
    await running(service, "a")
    assert service.instances.get("web", "a").status.restarts == 1


async def test_a_full_disk_refuses_what_is_new_and_leaves_what_runs(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    house.store.full = True
    with pytest.raises(StorageFailed):
        await create(service, "b")
    with pytest.raises(StorageFailed):
        await service.apps.put("other", {})
    assert service.instances.get("web", "a").status.pid == pid
    assert [view.name for view in service.instances.list()] == ["a"]
    house.processes.end(pid, Exit(1))  # cannot be committed, so it cannot be started: it waits for space
    await until(lambda: state(service, "a") is State.BACKOFF)
    assert "disk may be full" in service.instances.get("web", "a").status.reason
    house.store.full = False
    await running(service, "a")


async def test_on_a_full_disk_a_restart_is_refused_and_what_runs_goes_on(service, house):
    await create(service, "a", stop=[{"signal": "KILL", "patience": 5}])
    pid = await running(service, "a")
    told = service.events.last
    house.store.full = True
    for _ in range(2):
        with pytest.raises(StorageFailed, match="web:a runs on, because it could not be started again") as refused:
            await service.instances.restart("web", "a")
        assert refused.value.hint == "free space on the disk; running instances go on"
    view = await service.instances.start("web", "a")  # nothing is to be done for that, so it is not refused
    assert (view.status.state, view.status.pid, view.status.reason) == (State.RUNNING, pid, "")
    assert service.events.last == told, "of what did not happen nothing is told"
    house.store.full = False
    await service.instances.restart("web", "a")
    await until(lambda: service.instances.get("web", "a").status.pid not in (None, pid))
    house.store.full = True
    await until(lambda: state(service, "a") is State.RUNNING)
    with pytest.raises(StorageFailed, match="is being stopped"):
        await service.instances.stop("web", "a")
    await until(lambda: state(service, "a") is State.STOPPED)


async def test_a_restart_is_told_once_whatever_is_changed_while_it_is_committed(service, house, monkeypatch):
    await create(service, "a", stop=[{"signal": "KILL", "patience": 5}])
    pid = await running(service, "a")
    told, write, changing = service.events.last, house.store.write, []

    async def slow(*changes, durable=True):
        if not durable and not changing:
            changing.append(asyncio.create_task(service.instances.patch("web", "a", {"weight": 2})))
            await until(lambda: service.instances.get("web", "a").effective["weight"] == 2)
        await write(*changes, durable=durable)

    monkeypatch.setattr(house.store, "write", slow)
    await service.instances.restart("web", "a")
    await asyncio.gather(*changing)
    await until(lambda: service.instances.get("web", "a").status.pid not in (None, pid))
    events = await house.store.events(told, 100)
    assert [event.data["to"] for event in events if event.type == "instance.state"][:2] == ["STOPPING", "STARTING"]


async def test_a_daemon_that_starts_on_a_full_disk_adopts_what_runs(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    service.close()
    house.store.full = True
    later = house.service()
    await later.begin()
    assert later.ready
    assert later.instances.get("web", "a").status.pid == pid
    later.close()


async def test_live_fields_take_effect_at_once_and_others_wait_for_a_restart(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    view = await service.instances.patch("web", "a", {"labels": {"team": "pay"}, "weight": 3})
    assert (view.generation, view.status.observed_generation, view.status.pid) == (2, 2, pid)
    view = await service.instances.patch("web", "a", {"env": {"A": "1"}})
    conditions = {condition.type.value: condition.status.value for condition in view.status.conditions}
    assert (view.generation, view.status.observed_generation, view.status.pid) == (3, 2, pid)
    assert conditions["ConfigCurrent"] == "False"
    await service.instances.patch("web", "a", {"env": {"B": "2"}}, restart=True)
    house.processes.end(pid, Exit(signal=15))
    await until(lambda: service.instances.get("web", "a").status.pid not in (None, pid))
    assert house.processes.spawned[-1].launch.env["A"] == "1"
    assert service.instances.get("web", "a").status.observed_generation == 4


async def test_changing_an_app_bounces_nobody_and_reaches_every_instance(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    await service.apps.patch("web", {"env": {"A": "1"}})
    view = service.instances.get("web", "a")
    assert (view.status.pid, view.effective["env"]) == (pid, {"A": "1"})
    with pytest.raises(Invalid, match="instance web:a would be invalid"):
        await service.apps.patch("web", {"kind": "celery"})
    assert service.apps.get("web").spec["kind"] == "command"


async def test_a_stale_writer_is_refused_and_two_writers_both_count(service):
    await create(service, "a")
    with pytest.raises(Stale, match="generation 1 now"):
        await service.instances.patch("web", "a", {"weight": 2}, match=7)
    changes = ({"env": {"A": "1"}}, {"env": {"B": "2"}}, {"weight": 5})
    await asyncio.gather(*(service.instances.patch("web", "a", change) for change in changes))
    view = service.instances.get("web", "a")
    assert (view.generation, view.spec["env"], view.spec["weight"]) == (4, {"A": "1", "B": "2"}, 5)


async def test_an_idempotency_key_makes_one_instance_however_often_it_comes(service, house):
    body = {"env": {"A": "1"}}
    answers = await asyncio.gather(*(service.instances.create(ADMIN, "web", body, "key") for _ in range(5)))
    assert [made for _, made in answers] == [True, False, False, False, False]
    assert len({view.name for view, _ in answers}) == 1
    later = house.service()  # the next daemon remembers
    await later.begin()
    assert (await later.instances.create(ADMIN, "web", body, "key"))[1] is False
    with pytest.raises(Conflict, match="another request"):
        await service.instances.create(ADMIN, "web", {"env": {"A": "2"}}, "key")
    later.close()


async def test_apps_with_instances_are_not_deleted_by_mistake(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    with pytest.raises(Conflict, match="1 instances"):
        await service.apps.delete("web")
    deleting = asyncio.ensure_future(service.apps.delete("web", cascade=True))
    await until(lambda: (pid, 15) in house.processes.signals)
    house.processes.end(pid, Exit(0))
    await deleting
    assert service.apps.list() == []


async def test_all_faults_of_name_and_spec_come_at_once(service):
    with pytest.raises(Invalid) as raised:
        await create(service, "../x", umask="9", weight=-1, comand=["a"])
    assert {fault.pointer for fault in raised.value.faults} == {"/name", "/umask", "/weight", "/comand"}


async def test_end_stops_everything_and_wants_it_again_next_time(service, house):
    await create(service, "a")
    await create(service, "b")
    pids = [await running(service, name) for name in "ab"]
    ending = asyncio.ensure_future(service.end())
    await until(lambda: {pid for pid, _ in house.processes.signals} == set(pids))
    for pid in pids:
        house.processes.end(pid, Exit(signal=15))
    await ending
    later = house.service()
    await later.begin()
    assert set(pids).isdisjoint([await running(later, name) for name in "ab"])
    later.close()


async def test_kill_ends_what_a_stop_plan_waits_for(service, house):
    await create(service, "a", stop=[{"signal": "TERM", "patience": 3600}])
    pid = await running(service, "a")
    ending = asyncio.ensure_future(service.end())
    await until(lambda: (pid, 15) in house.processes.signals)
    service.kill()
    await ending
    assert house.processes.killed_trees == [pid]


async def test_events_tell_the_story_in_order_and_survive_the_daemon(service, house):
    await create(service, "a")
    await running(service, "a")
    later = house.service()
    told = []
    async for event in later.events.subscribe(0):
        told.append((event.type, event.data.get("to")))
        if event.data.get("to") == "RUNNING":
            break
    assert told == [
        ("branch.started", None), ("app.created", None), ("instance.created", None),
        ("instance.state", "STARTING"), ("instance.state", "RUNNING"),
    ]  # fmt: skip


async def test_a_bug_of_ours_makes_one_instance_fatal_and_leaves_the_others(service, house, monkeypatch):
    await create(service, "a")
    await create(service, "b")
    pids = {name: await running(service, name) for name in "ab"}
    sweep = house.processes.sweep

    def broken(key, nonce):
        if key.name == "a":
            raise RuntimeError("a bug")
        sweep(key, nonce)

    monkeypatch.setattr(house.processes, "sweep", broken)
    for pid in pids.values():
        house.processes.end(pid, Exit(1))
    await until(lambda: state(service, "a") is State.FATAL)
    assert "internal error (RuntimeError)" in service.instances.get("web", "a").status.reason
    await until(lambda: service.instances.get("web", "b").status.pid not in (None, pids["b"]))
    monkeypatch.undo()
    await service.instances.start("web", "a")
    await running(service, "a")
    assert len(house.processes.running) == 2


async def test_the_same_object_is_shown_while_nothing_changes(service):
    await create(service, "a")
    await running(service, "a")
    await until(lambda: service.instances.get("web", "a") is service.instances.get("web", "a"))
    assert json.dumps(service.instances.get("web", "a").effective)


async def test_who_waits_for_a_stop_is_told_of_it_and_not_at_the_deadline(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    waiting = asyncio.ensure_future(service.instances.wait("web", "a", "stopped", 3600))
    await service.instances.stop("web", "a")
    house.processes.end(pid, Exit(0))
    async with asyncio.timeout(30):
        assert await waiting
        assert await service.instances.wait("web", "a", "stopped", 3600)


async def test_who_waits_for_ready_is_told_when_it_cannot_come_any_more(service, house):
    house.processes.missing.add("serve")
    async with asyncio.timeout(30):
        await create(service, "a", restart={"max_restarts": 0})
        assert not await service.instances.wait("web", "a", "ready", 3600)


async def test_only_allowed_users_and_none_of_others_groups():
    house = House()
    service = house.service(default_user="nobody", allow_users=("nobody", "www-data"))
    await service.begin()
    await service.apps.put("web", {"kind": "command", "command": ["serve"]})
    assert (await service.instances.create(ADMIN, "web", {"name": "a"}))[0].effective["user"] == "nobody"
    with pytest.raises(Invalid) as raised:
        await service.instances.create(ADMIN, "web", {"name": "b", "user": "root", "group": "shadow"})
    assert [fault.pointer for fault in raised.value.faults] == ["/user", "/group"]
    service.close()


async def test_what_fills_the_disk_can_be_stopped_though_that_is_not_remembered(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    house.store.full = True
    with pytest.raises(StorageFailed, match="not remembered"):
        await service.instances.stop("web", "a")
    house.processes.end(pid, Exit(signal=15))
    await until(lambda: state(service, "a") is State.STOPPED)
    house.store.full = False
    await service.instances.stop("web", "a")
    assert service.instances.get("web", "a").spec["wanted"] == "down"


async def test_a_log_that_was_taken_away_is_told_until_the_next_process_has_a_new_one(service, house):
    await create(service, "a", stop=[{"signal": "KILL", "patience": 5}])
    pid = await running(service, "a")
    assert not kept(service)
    house.logs.lose(Key("web", "a"), Stream.STDOUT, "/old/stdout.log (deleted)")
    assert [(one.status, one.reason) for one in kept(service)] == [(
        Truth.FALSE,
        "stdout.log of web:a was removed, moved or replaced while it ran: it writes to /old/stdout.log (deleted); "
        "branchctl restart web:a: it opens a new one",
    )]  # fmt: skip
    assert [one.level for one in service.diagnoses() if one.check == "logs"] == [Level.WARNING]
    await service.instances.restart("web", "a")
    await until(lambda: service.instances.get("web", "a").status.pid not in (None, pid))
    assert not kept(service)
    assert not [one for one in service.diagnoses() if one.check == "logs"]


def kept(service):
    conditions = service.instances.get("web", "a").status.conditions
    return [one for one in conditions if one.type is ConditionType.LOGS_KEPT]
