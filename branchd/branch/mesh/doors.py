"""How a branch that knows nobody finds somebody, and learns from it, without disturbing all.

Which keys those are: core/presence.py.
"""

from collections.abc import Awaitable, Callable

import structlog

from branchd.branch.mesh.link import Link
from branchd.core.digests import point
from branchd.core.errors import NoAnswer, NoRoute, Unavailable
from branchd.core.peers import Address
from branchd.core.presence import doors
from branchd.wire.mesh import Ping

log = structlog.get_logger(__name__)

#: peers that are tried before it goes on without what they know; the periodic exchange makes up for that
TRIES = 3

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

    async def learn(
        self, exchange: Callable[[Address, bool], Awaitable[None]], report: Callable[[Exception], None]
    ) -> None:
        """All that anybody knows; nothing where there is nobody, or none that answers. Unavailable."""
        for _ in range(TRIES):
            peer = await self.knock()
            if peer is None:
                return
            try:
                await exchange(peer, False)
                return
            except (NoRoute, NoAnswer) as error:
                log.info("a peer did not tell what it knows", peer=peer.id, error=error.detail)
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001 - what this one tells is not to be had: another one will do
                report(error)
