"""Replacements here of instances that move from elsewhere: they get the name, or they go.

Until its elder hands the name over a replacement is not asked for, and it stays only as long as its elder still says
that it moves: the daemon of either may have crashed meanwhile, the move may have been cancelled, or the elder deleted.
The elder's side is drain.py.
"""

import asyncio

import structlog

from branchd.branch.fleet import Fleet
from branchd.branch.mesh.hosting import Hosting
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.names import ANSWER_WITHIN, Names, placed_key
from branchd.branch.supervisor import Supervisor
from branchd.core.errors import NoAnswer, NoRoute, Unavailable
from branchd.core.peers import Address
from branchd.core.values import Key
from branchd.wire.mesh import Cancel, Handover, Here, WhereIs

log = structlog.get_logger(__name__)

#: seconds between two questions after one elder
LOOK_EVERY = 10.0

#: seconds without a word of the elder until its replacement goes: as long as a daemon may need to be there again, and
#: to go on with the move; the name's quiet time after a connection is shorter
PATIENCE = 45.0


class Replacing:
    def __init__(self, link: Link, fleet: Fleet, names: Names, hosting: Hosting) -> None:
        self._link = link
        self._fleet = fleet
        self._names = names
        self._hosting = hosting
        self._orphaned: dict[Key, float] = {}  #: since when nothing was heard of the elder
        self._task: asyncio.Task[None] | None = None
        link.serve(Handover, self._handover)

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

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

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            waiting = [one for one in self._fleet.all() if one.waiting and not one.record.deleting]
            self._orphaned = {one.key: self._orphaned[one.key] for one in waiting if one.key in self._orphaned}
            await asyncio.gather(*map(self._look, waiting))

    async def _look(self, supervisor: Supervisor) -> None:
        key, now = supervisor.key, self._fleet.world.clock()
        if not self._link.connected or await self._moves(key):
            self._orphaned.pop(key, None)
        elif now - self._orphaned.setdefault(key, now) >= PATIENCE and supervisor.waiting:
            await self._give_back(supervisor)

    async def _moves(self, key: Key) -> bool:
        """Whether somebody says that it still moves."""
        try:
            _, here = await self._link.ask_key(placed_key(key), WhereIs(key.app, key.name), ANSWER_WITHIN)
        except (NoRoute, NoAnswer, Unavailable):
            return False
        return isinstance(here, Here) and here.moving

    async def _give_back(self, supervisor: Supervisor) -> None:
        placed = supervisor.record.placed
        assert placed is not None
        log.warning("a replacement that nobody hands the name to goes", instance=str(supervisor.key))
        try:
            await self._hosting.cancel(Cancel(placed.request))
        except Unavailable as failure:
            log.warning("replacement not stopped yet", instance=str(supervisor.key), reason=failure.detail)
