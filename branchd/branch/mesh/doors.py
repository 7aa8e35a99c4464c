"""How a branch that knows nobody finds somebody, without disturbing all. Which keys those are: core/presence.py."""

from collections.abc import Callable

from branchd.branch.mesh.link import Link
from branchd.core.digests import point
from branchd.core.errors import NoAnswer, NoRoute
from branchd.core.peers import Address
from branchd.core.presence import doors
from branchd.wire.mesh import Ping

#: seconds within which one of those who hold a door answers a knock
KNOCK_WITHIN = 1.0


class Doors:
    def __init__(self, link: Link, chance: Callable[[], float]) -> None:
        self._link = link
        self._chance = chance

    async def hold(self) -> None:
        """To be done after each connection. Unavailable."""
        await self._link.bind(*doors(point(self._link.me.id)))

    async def knock(self) -> Address | None:
        """Any branch that answers, this one too where it holds its doors; None: there is none. Unavailable."""
        for key in doors(int(self._chance() * 2**64)):
            try:
                return (await self._link.ask_key(key, Ping(), KNOCK_WITHIN))[0]
            except (NoRoute, NoAnswer):
                continue
        return None
