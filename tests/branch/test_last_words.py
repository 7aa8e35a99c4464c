"""What a process said last goes with the event of its end, unless that would delay the next start; with fakes."""

import asyncio

from branchd.branch import transitions
from branchd.core.lifecycle import State
from branchd.core.values import Exit
from tests.branch.test_service import create, running, state
from tests.waiting import until


async def test_logs_that_cannot_be_read_delay_no_next_start(service, house, monkeypatch):
    async def never(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(transitions, "READING", 0.05)
    monkeypatch.setattr(house.logs, "tail", never)
    await create(service, "a", restart={"policy": "never"})
    house.processes.end(await running(service, "a"), Exit(code=1))
    await until(lambda: state(service, "a") is State.EXITED)
    await service._fleet.get("web", "a").idle()
    [words] = [event.data["last_words"] async for event in service.events.subscribe(0, follow=False)
               if event.data.get("to") == "EXITED"]  # fmt: skip
    assert words == ["[branchd: they could not be read within 0.05 s; its log may have them]"]
