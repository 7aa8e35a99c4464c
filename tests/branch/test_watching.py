"""What one watcher makes of an accused branch that is heard of meanwhile; all else is in test_presence.py."""

import asyncio
from typing import Any

from branchd.branch.mesh.watching import Watching
from branchd.core.errors import NoRoute
from branchd.core.peers import Address, Down
from branchd.core.ring import PERIOD
from branchd.wire.mesh import Pong
from tests.core.test_roster import announcement, roster
from tests.simulation.loop import simulate


class LostInbox:
    """A link at which nobody holds the other's inbox, and this branch's own pongs come when they are let."""

    definite = True
    me = Address("me", "boot")

    def __init__(self) -> None:
        self.pings: list[asyncio.Event] = []  #: to this branch itself

    async def ask(self, to: Address, _: Any, __: float) -> Pong:
        if to != self.me:
            raise NoRoute("nobody holds its inbox")
        self.pings.append(asyncio.Event())
        await self.pings[-1].wait()
        return Pong()


@simulate
async def test_a_second_accusation_does_not_bring_back_one_that_was_refuted() -> None:
    link, found = LostInbox(), list[Down]()
    known = roster(announcement("me"), announcement("a"))
    clock = asyncio.get_running_loop().time
    watching = Watching(link, clock, lambda: 0.0, lambda: known, lambda: "", found.append)  # type: ignore[arg-type]
    watching.turn(clock())
    await asyncio.sleep(PERIOD)
    watching.heard("a")
    watching.turn(clock())
    await asyncio.sleep(1)
    first, second = link.pings
    first.set()
    await asyncio.sleep(1)
    assert found == []
    second.set()
    await asyncio.sleep(1)
    assert [down.id for down in found] == ["a"]
    await watching.tasks.end()
