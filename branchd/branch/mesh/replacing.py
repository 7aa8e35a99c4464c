"""Replacements here of instances that move from elsewhere: they get the name, or they go.

Until its elder hands the name over a replacement is not asked for, and it goes where the elder stays: the move may have
been cancelled, or the elder's daemon have crashed and gone on without it. Where the elder is gone for good the
replacement is all that is left, and takes the name as any other instance would. The elder's side is drain.py.
"""

import asyncio

import structlog

from branchd.branch.fleet import Fleet
from branchd.branch.mesh.hosting import Hosting
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.names import ANSWER_WITHIN, Names, Taken
from branchd.branch.supervisor import Supervisor
from branchd.branch.tasks import Tasks
from branchd.core.errors import NoRoute, Unavailable
from branchd.core.peers import Address, placed_key
from branchd.core.values import Key
from branchd.wire.mesh import Cancel, Handover, Here, WhereIs

log = structlog.get_logger(__name__)

#: seconds between two questions after one elder
LOOK_EVERY = 10.0

#: seconds in which no elder says that it moves, until what became of it is taken for settled: as long as a daemon may
#: need to be there again, and to go on with the move; the name's quiet time after a connection is shorter
PATIENCE = 45.0


class Replacing:
    def __init__(self, link: Link, fleet: Fleet, names: Names, hosting: Hosting) -> None:
        self.tasks = Tasks("replacements")
        self._link = link
        self._fleet = fleet
        self._names = names
        self._hosting = hosting
        self._orphaned: dict[Key, float] = {}  #: since when no elder says that it moves
        link.serve(Handover, self._handover)

    def begin(self) -> None:
        self.tasks.repeat(self._turn, lambda: 0.0)

    async def _handover(self, _: Address, question: Handover) -> Here | None:
        key = Key(question.app, question.name)
        async with self._fleet.lock(key.app):
            found = self._fleet.find(key)
            if found is None or found.record.placed is None or found.record.deleting:
                return None
            await self._link.bind(placed_key(key))
            if found.waiting:
                await self._fleet.inherit(found)
        return self._names.here(key)

    async def _turn(self) -> None:
        await asyncio.sleep(LOOK_EVERY)
        waiting = [one for one in self._fleet.all() if one.waiting and not one.record.deleting]
        self._orphaned = {one.key: self._orphaned[one.key] for one in waiting if one.key in self._orphaned}
        for error in await asyncio.gather(*map(self._look, waiting), return_exceptions=True):
            if isinstance(error, Exception):  # and the others were looked at all the same
                self.tasks.report(error)

    async def _look(self, supervisor: Supervisor) -> None:
        """Unavailable where nothing can be told or done now."""
        key, now = supervisor.key, self._fleet.world.clock()
        if not self._link.connected:
            self._orphaned.pop(key, None)
            return
        elder = await self._elder(key)
        if elder is not None and elder.moving:
            self._orphaned.pop(key, None)
        elif now - self._orphaned.setdefault(key, now) < PATIENCE or not supervisor.waiting:
            return
        elif elder is None:
            await self._stand_in(supervisor)
        else:
            await self._give_back(supervisor)

    async def _elder(self, key: Key) -> Here | None:
        """What who has the name says; None: nobody has it. Unavailable."""
        try:
            _, here = await self._link.ask_key(placed_key(key), WhereIs(key.app, key.name), ANSWER_WITHIN)
        except NoRoute:
            return None
        if not isinstance(here, Here):
            raise Unavailable(f"who holds {key} answers something else")
        return here

    async def _stand_in(self, supervisor: Supervisor) -> None:
        key = supervisor.key
        try:
            async with self._names.take(key) as sure:
                await sure()
                async with self._fleet.lock(key.app):
                    if supervisor.waiting and not supervisor.record.deleting:
                        await self._fleet.inherit(supervisor)
        except Taken:
            return  # somebody was faster: what he says is heard at the next look
        log.warning("a replacement stands for the name of its lost elder", instance=str(key))

    async def _give_back(self, supervisor: Supervisor) -> None:
        placed = supervisor.record.placed
        assert placed is not None
        log.warning("a replacement goes, for its elder stays", instance=str(supervisor.key))
        await self._hosting.cancel(Cancel(placed.request))
