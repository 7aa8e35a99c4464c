"""Replicas of this branch's own apps: `replicas: 3` keeps NAME-0, NAME-1 and NAME-2 here, as pinned instances.

Those of apps that a neighbourhood shares are placed: mesh/replicas.py. Here as there only what was made so is taken
away when the number falls, and an instance of such a name that a person made counts as it is. Whoever wants fewer
lowers the number: one of them cannot be deleted by itself.
"""

import asyncio
from collections.abc import Callable

from branchd.branch.fleet import Fleet
from branchd.branch.records import InstanceRecord
from branchd.core.errors import BranchdError, Conflict, Unavailable
from branchd.core.replicas import LOOK_EVERY, replica
from branchd.core.values import Key

#: who asked, where nobody did
PRINCIPAL = "replicas"


async def retire(fleet: Fleet, app: str, count: int, made: Callable[[InstanceRecord], bool]) -> None:
    """Deletes those that were made as replicas and are too many. The caller holds the app's lock."""
    names = {replica(app, index) for index in range(count)}
    for supervisor in fleet.of(app):
        record = supervisor.record
        if made(record) and not record.deleting and record.key.name not in names:
            await fleet.begin_delete(supervisor, by={"principal": PRINCIPAL})


def check_deletable(fleet: Fleet, record: InstanceRecord) -> None:
    """Conflict where it is one of those that its app asks for."""
    app, count = record.key.app, fleet.definitions.own_replicas(record.key.app)
    if record.replica and count and record.key.name in {replica(app, index) for index in range(count)}:
        raise Conflict(
            f"{record.key} is one of the {count} replicas of app {app}",
            f"lower `replicas` of the app: branchctl app set {app} --json '{{\"replicas\": {count - 1}}}'",
        )


class OwnReplicas:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._failing: dict[Key, type[BranchdError]] = {}  #: as it was told

    def begin(self) -> None:
        """Once, when all instances are resumed."""
        self._fleet.defined.append(self.look)
        self._fleet.watchers.append(self._watch)
        for app in self._fleet.definitions.names():
            self.look(app)

    def look(self, app: str) -> None:
        """Makes what is missing, and deletes what is too many; soon."""
        if self._fleet.definitions.own_replicas(app) is not None:
            self._fleet.later(self._look(app))

    def _watch(self, key: Key) -> None:
        if self._fleet.find(key) is None:  # it is gone: perhaps somebody had made it under a replica's name
            self.look(key.app)

    async def _look(self, app: str) -> None:
        fleet = self._fleet
        async with fleet.lock(app):
            count = fleet.definitions.own_replicas(app)
            if count is None or app in fleet.leaving or fleet.stopping:
                return
            again = False
            try:
                await retire(fleet, app, count, lambda record: record.replica and not record.source)
            except Unavailable:
                again = True
            for index in range(count):
                key = Key(app, replica(app, index))
                if fleet.find(key) is None:
                    again |= not await self._make(key)
        if again and not fleet.stopping:
            asyncio.get_running_loop().call_later(LOOK_EVERY, self.look, app)

    async def _make(self, key: Key) -> bool:
        """Makes it; False: it is to be tried again. What fails is told once, however often it is tried."""
        fleet = self._fleet
        try:
            spec = fleet.definitions.effective(fleet.definitions.app(key.app), {})
            fleet.order.check({key: spec})
            fleet.check_room(key)
            record = InstanceRecord(key, {}, 1, fleet.world.wall(), replica=True)
            await fleet.add(record, by={"principal": PRINCIPAL})
        except BranchdError as error:
            if self._failing.get(key) is not type(error):
                self._failing[key] = type(error)
                told = ("replica.failed", key.app, key.name, {"reason": error.detail})
                fleet.later(fleet.journal.commit(events=[told]))
            return not isinstance(error, Unavailable)
        self._failing.pop(key, None)
        return True
