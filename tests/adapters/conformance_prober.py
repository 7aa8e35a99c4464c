"""What every Prober must do; run for the real one and for the fake by test_probes.py."""

import asyncio
from dataclasses import dataclass

from msgspec.structs import replace

from branchd.branch.ports import Prober
from branchd.core.spec import Probe
from branchd.core.values import Launch


@dataclass
class Asked:
    """Programs that are asked, and who asks."""

    prober: Prober
    well: Probe
    failing: Probe
    why: str  #: stands in the reason that the failing one gives
    silent: Probe  #: gives no answer
    launch: Launch | None = None  #: how these are run, where they are programs


def unheard() -> None: ...


class ProberConformance:
    """Subclasses give a fixture `asked`."""

    async def test_a_success_has_no_reason_and_a_failure_has_one(self, asked: Asked) -> None:
        for _ in range(2):
            assert await asked.prober.ask(asked.well, self.run(asked, asked.well), unheard) is None
            reason = await asked.prober.ask(asked.failing, self.run(asked, asked.failing), unheard)
            assert reason is not None
            assert asked.why in reason

    async def test_it_is_told_when_its_turn_has_come(self, asked: Asked) -> None:
        turns: list[Probe] = []
        await asked.prober.ask(asked.well, self.run(asked, asked.well), lambda: turns.append(asked.well))
        assert turns == [asked.well]

    async def test_who_gives_no_answer_has_failed_in_time(self, asked: Asked) -> None:
        probe = replace(asked.silent, timeout=0.2)
        reason = await asked.prober.ask(probe, self.run(asked, probe), unheard)
        assert reason is not None
        assert "within 0.2 s" in reason

    async def test_many_can_be_asked_at_once_and_some_given_up(self, asked: Asked) -> None:
        given_up = [
            asyncio.create_task(asked.prober.ask(asked.silent, self.run(asked, asked.silent), unheard))
            for _ in range(5)
        ]
        asking = [
            asyncio.create_task(asked.prober.ask(asked.well, self.run(asked, asked.well), unheard)) for _ in range(20)
        ]
        await asyncio.sleep(0)
        for task in given_up:
            task.cancel()
        assert await asyncio.gather(*asking) == [None] * 20
        await asyncio.gather(*given_up, return_exceptions=True)
        assert all(task.cancelled() for task in given_up)

    def run(self, asked: Asked, probe: Probe) -> Launch | None:
        return replace(asked.launch, argv=probe.exec) if asked.launch is not None else None
