"""Between two daemons: how long the next one takes to be ready, and what the one before leaves to it; with fakes."""

import asyncio

from branchd.branch import adoption
from branchd.branch import service as branchd_service
from branchd.core.lifecycle import State
from branchd.core.values import Exit
from tests.branch.test_service import create, running, state
from tests.waiting import until


async def test_programs_that_do_not_come_to_be_there_keep_a_daemon_from_being_ready_for_a_moment(
    service, house, monkeypatch
):
    for number in range(5):
        await create(service, f"hung-{number}", priority=number, command=["hangs"])
        await running(service, f"hung-{number}")
    await create(service, "last", priority=9)
    await create(service, "adopted", priority=9)
    pid = await running(service, "adopted")
    for process in [one for one in house.processes.running.values() if one.identity.pid != pid]:
        house.processes.running.pop(process.identity.pid)
    house.processes.crash()
    spawn, never = house.processes.spawn, asyncio.Event()

    async def hanging(key, nonce, launch, output, on_exit, sure):
        if launch.argv[0] == "hangs":
            await never.wait()
        return await spawn(key, nonce, launch, output, on_exit, sure)

    house.processes.spawn = hanging
    monkeypatch.setattr(adoption, "MOMENT", 0.05)
    monkeypatch.setattr(adoption, "MOMENTS", 0.1)
    later = house.service()
    async with asyncio.timeout(30):
        await later.begin()
    assert later.ready
    assert later.instances.get("web", "adopted").status.pid == pid
    await running(later, "last")
    assert {state(later, f"hung-{number}") for number in range(5)} == {State.STARTING}
    never.set()
    for number in range(5):
        await running(later, f"hung-{number}")
    later.close()


async def test_nothing_is_started_while_a_daemon_lets_go_and_the_next_one_does_it(service, house):
    await create(service, "a")
    pid = await running(service, "a")
    await create(service, "new", wanted="down")
    ending = service._hooks.end

    async def ends_late():
        house.processes.end(pid, Exit(signal=9))
        service._fleet.get("web", "new").start()
        await ending()
        await until(lambda: service.instances.get("web", "a").status.pid is None)

    service._hooks.end = ends_late
    await service.let_go()
    service.close()
    assert len(house.processes.spawned) == 1
    assert state(service, "a") is State.STARTING
    assert service.instances.get("web", "a").status.reason == "waits for the next daemon"
    house.processes.crash()
    later = house.service()
    await later.begin()
    assert await running(later, "a") != pid
    assert later.instances.get("web", "a").status.restarts == 1
    later.close()


async def test_a_start_that_hangs_keeps_no_daemon_from_letting_go_and_the_next_one_makes_it(
    service, house, monkeypatch
):
    await create(service, "hung", wanted="down")
    spawn, asked = house.processes.spawn, asyncio.Event()

    async def hanging(*_):
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(house.processes, "spawn", hanging)
    starting = asyncio.ensure_future(service.instances.start("web", "hung"))
    await asked.wait()
    monkeypatch.setattr(branchd_service, "LET_GO_WITHIN", 0.05)
    async with asyncio.timeout(10):
        await service.let_go()
    service.close()
    monkeypatch.setattr(house.processes, "spawn", spawn)
    house.processes.crash()
    later = house.service()
    await later.begin()
    await running(later, "hung")
    assert len(house.processes.spawned) == 1
    later.close()
    starting.cancel()
