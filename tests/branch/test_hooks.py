"""Who is told that a process ended or an instance was given up, how often, and what becomes of a hook that fails."""

import json
from typing import Any

import pytest

from branchd.branch import hooks
from branchd.core.errors import StorageFailed
from branchd.core.lifecycle import State
from branchd.core.spec import Hook, Hooks
from branchd.core.values import Exit
from tests.branch.conftest import ADMIN
from tests.waiting import until

EXIT, FATAL = Hook(command=("told-of-exit", "x")), Hook(url="https://alerts.example/fatal")
HOOKS: dict[str, Any] = {"on_exit": {"command": ["told-of-exit", "x"]}, "on_fatal": {"url": FATAL.url}}


@pytest.fixture
async def running(service, house):
    await service.instances.create(ADMIN, "web", {"name": "a", "hooks": HOOKS, "env": {"X": "1"}, "user": "www"})
    await until(lambda: status(service).state is State.RUNNING)
    return status(service)


def status(service):
    return service.instances.get("web", "a").status


async def failures(service):
    items = service.events.subscribe(0, follow=False)
    return [item.data async for item in items if item.type == "hook.failed"]


async def test_a_crash_is_told_once_as_the_api_tells_it(service, house, running):
    house.processes.end(running.pid, Exit(3))
    await until(lambda: house.teller.told)
    [(hook, launch, body)] = house.teller.told
    assert hook == EXIT
    assert (launch.argv, launch.user, launch.env["X"]) == (EXIT.command, "www", "1")
    assert (launch.env["BRANCHD_EVENT"], launch.env["BRANCHD_INSTANCE"]) == ("on_exit", "web:a")
    event = json.loads(body)
    assert set(event) == {"id", "at", "type", "app", "instance", "data"}
    assert (event["type"], event["app"], event["instance"]) == ("instance.state", "web", "a")
    assert (event["data"]["exit"], event["data"]["to"]) == ("exit code 3", "STARTING")
    kept = [item async for item in service.events.subscribe(0, follow=False)]
    assert event["id"] in {item.id for item in kept}


async def test_what_was_to_end_is_told_to_nobody(service, house, running):
    await service.instances.restart("web", "a")
    house.processes.end(running.pid, Exit(15))
    await until(lambda: status(service).pid not in (None, running.pid))
    await service.instances.stop("web", "a")
    house.processes.end(status(service).pid, Exit(15))
    await until(lambda: status(service).state is State.STOPPED)
    await service.instances.start("web", "a")
    await until(lambda: status(service).state is State.RUNNING)
    house.processes.end(status(service).pid, Exit(1))
    await until(lambda: house.teller.told)
    assert [json.loads(body)["data"]["exit"] for _, _, body in house.teller.told] == ["exit code 1"]


async def test_both_are_told_where_it_is_given_up_with_its_last_words(service, house, running):
    await service.instances.patch("web", "a", {"restart": {"max_restarts": 0}})
    house.processes.end(running.pid, Exit(1))
    await until(lambda: len(house.teller.told) == 2)
    assert {hook for hook, _, _ in house.teller.told} == {EXIT, FATAL}
    [(launch, event)] = [(launch, json.loads(body)) for hook, launch, body in house.teller.told if hook == FATAL]
    assert launch is None
    assert event["data"]["to"] == "FATAL"
    assert event["data"]["last_words"] == []


async def test_one_that_was_late_is_told_of():
    late = {"from": "STOPPING", "to": "STARTING", "reason": "not ready within 3 s", "exit": "exit code 0"}
    asked = Hooks(EXIT, FATAL)
    assert list(hooks.due(asked, late)) == [("on_exit", EXIT)]
    assert list(hooks.due(asked, late | {"reason": ""})) == []
    assert list(hooks.due(Hooks(), late | {"to": "FATAL"})) == []
    not_there = {"from": "STARTING", "to": "FATAL", "reason": "no such program"}
    assert list(hooks.due(asked, not_there)) == [("on_fatal", FATAL)]


async def test_a_hook_that_fails_leaves_an_event_and_is_not_tried_again(service, house, running):
    house.teller.failing[EXIT] = "exit code 1: no mail"
    house.processes.end(running.pid, Exit(1))
    failed = await until(lambda: failures(service))
    assert [(one["hook"], one["reason"]) for one in failed] == [("on_exit", "exit code 1: no mail")]
    assert failed[0]["event"] == json.loads(house.teller.told[0][2])["id"]
    assert len(house.teller.told) == 1


async def test_a_slow_hook_delays_no_instance_and_takes_its_time_at_most(service, house, running, monkeypatch):
    monkeypatch.setattr(hooks, "TIMEOUT", 0.3)
    house.teller.silent.add(EXIT)
    for number in range(1, 4):
        house.processes.end(status(service).pid, Exit(1))
        await until(lambda number=number: len(house.processes.running) == 1 and len(house.teller.told) == number)
        await until(lambda: status(service).pid in house.processes.running)
    await until(lambda: house.teller.under_way == 0)
    assert {one["reason"] for one in await until(lambda: failures(service))} == {"no answer within 0.3 s"}


async def test_only_so_many_are_told_at_a_time_and_wait(service, house, running, monkeypatch):
    monkeypatch.setattr(hooks, "AT_ONCE", 1)
    monkeypatch.setattr(hooks, "MOST_WAITING", 1)
    monkeypatch.setattr(hooks, "END_PATIENCE", 0.0)
    house.teller.silent.add(EXIT)
    await service.instances.patch("web", "a", {"restart": {"ceiling": 0.001}})
    for number in range(3):
        await until(lambda: status(service).pid in house.processes.running)
        house.processes.end(status(service).pid, Exit(1))
        await until(lambda number=number: len(house.processes.spawned) == number + 2)
    [failed] = await until(lambda: failures(service))
    assert failed["reason"] == "1 others wait already"
    assert len(house.teller.told) == 1
    service.kill()
    await service.end()
    await until(lambda: house.teller.under_way == 0)


async def test_the_next_daemon_tells_nothing_again_and_what_it_finds(service, house, running):
    house.processes.end(running.pid, Exit(1))
    await until(lambda: house.teller.told)
    pid = await until(lambda: status(service).pid)
    service.close()
    house.processes.crash()
    house.processes.end(pid, Exit(1))
    house.teller.told.clear()
    later = house.service()
    await later.begin()
    await until(lambda: house.teller.told)
    assert [json.loads(body)["data"]["exit"] for _, _, body in house.teller.told] == ["exit status unknown"]
    later.close()


async def test_a_store_that_cannot_be_read_once_ends_no_hooks(house, monkeypatch):
    readings, first_event = [], house.store.first_event

    async def failing_once():
        readings.append(None)
        if len(readings) == 1:
            raise StorageFailed("disk I/O error")
        return await first_event()

    monkeypatch.setattr(house.store, "first_event", failing_once)
    monkeypatch.setattr(hooks, "AGAIN", 0.0)
    service = house.service()
    await service.begin()
    await service.apps.put("web", {"kind": "command", "command": ["serve"]})
    await service.instances.create(ADMIN, "web", {"name": "a", "hooks": HOOKS})
    await until(lambda: status(service).state is State.RUNNING)
    house.processes.end(status(service).pid, Exit(3))
    await until(lambda: house.teller.told)
    service.close()
