"""What every Teller must do; run for the real one and for the fake by test_hooks.py."""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from branchd.branch.ports import Teller
from branchd.core.spec import Hook
from branchd.core.values import Launch

EVENT = b'{"id":1}\n'


@dataclass
class Told:
    teller: Teller
    takes: Hook
    refuses: Hook
    silent: Hook  #: gives no answer
    heard: Callable[[], list[bytes]]  #: the events that were taken
    launch: Launch | None = None  #: how these are run, where they are commands


class TellerConformance:
    """Subclasses give a fixture `told`."""

    async def test_an_event_is_told_as_it_is_and_once(self, told: Told) -> None:
        assert await told.teller.tell(told.takes, self.run(told, told.takes), EVENT, 10) is None
        assert told.heard() == [EVENT]

    async def test_who_refuses_it_gives_a_reason(self, told: Told) -> None:
        assert await told.teller.tell(told.refuses, self.run(told, told.refuses), EVENT, 10)

    async def test_it_takes_its_time_at_most(self, told: Told) -> None:
        reason = await told.teller.tell(told.silent, self.run(told, told.silent), EVENT, 0.2)
        assert reason is not None
        assert "within 0.2 s" in reason

    def run(self, told: Told, hook: Hook) -> Launch | None:
        return replace(told.launch, argv=hook.command) if told.launch is not None else None
