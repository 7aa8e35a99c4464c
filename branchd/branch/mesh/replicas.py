"""Replicas: an app that says `replicas: 3` has NAME-0, NAME-1 and NAME-2 somewhere in the neighbourhood.

One branch looks after each app, chosen by all alike without a word (core/replicas.py). What has been missing for the
app's `absence` is created again, at least once: where the lost one comes back, one of the two stops (names.py). What is
too many each branch stops by itself, and only what was made here: an instance that a person named so stays.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from branchd.branch.fleet import Fleet
from branchd.branch.records import InstanceRecord
from branchd.branch.replicas import retire
from branchd.branch.tasks import Tasks
from branchd.core.errors import BranchdError, NoCapacity
from branchd.core.replicas import LOOK_EVERY, Controllers, missing, replica

#: what the ids of requests begin with that were made here
MARK = "replica-"


def request() -> str:
    return MARK + secrets.token_hex(16)


class Replicas:
    def __init__(
        self,
        fleet: Fleet,
        me: str,
        branches: Callable[[], Sequence[str]],
        doubt: Callable[[], str],
        held: Callable[[str, str], Awaitable[bool]],
        create: Callable[[str, str], Awaitable[object]],
        happened: Callable[[str, str | None, str | None, Mapping[str, Any]], None],
    ) -> None:
        """`branches`: ids of those that are up, this one too. `doubt`: why absence says nothing now; or empty.

        `held`: whether any branch has that instance; Unavailable. `create`: places it.
        """
        self.tasks = Tasks("replicas")
        self._fleet = fleet
        self._me = me
        self._branches = branches
        self._doubt = doubt
        self._held = held
        self._create = create
        self._happened = happened
        self._controllers = Controllers()
        self._since: dict[str, Mapping[str, float]] = {}  #: by app, since when which replica is missing
        self._counts: dict[str, int] = {}  #: as they were when this branch last looked
        self._failing: dict[tuple[str, str], type[BranchdError]] = {}  #: by app and replica, as it was told

    def begin(self) -> None:
        self._counts = {app: count for app, (count, _) in self._apps().items()}
        self.tasks.repeat(self._step, lambda: 0.0)

    async def changed(self, app: str) -> None:
        """The app's definition was written at this branch: replicas that are newly wanted are not waited for."""
        count, _ = self._apps().get(app, (0, None))
        before, self._counts[app] = self._counts.get(app, 0), count
        await self._make(app, [replica(app, index) for index in range(before, count)])
        await self._retire(app, count)

    async def look(self) -> None:
        """Once at every app."""
        apps = self._apps()
        self._since = {app: since for app, since in self._since.items() if app in apps}
        self._failing = {one: why for one, why in self._failing.items() if one[1] in self._since.get(one[0], ())}
        self._counts = {app: count for app, (count, _) in apps.items()}
        for app in list(self._fleet.definitions.entries.apps):
            await asyncio.sleep(0)  # of many apps and branches this is much at one time
            try:
                await self._look_at(app, *apps.get(app, (0, None)))
            except Exception as error:  # noqa: BLE001 - the others are looked at all the same
                self.tasks.report(error)

    async def _step(self) -> None:
        await asyncio.sleep(LOOK_EVERY)
        await self.look()

    async def _look_at(self, app: str, count: int, absence: float | None) -> None:
        await self._retire(app, count)
        if absence is None or self._controllers.of(app, self._branches()) != self._me or self._doubt():
            self._since.pop(app, None)
        else:
            await self._bring_back(app, count, absence)

    def _apps(self) -> dict[str, tuple[int, float | None]]:
        """How many of each app, and after how long a missing one is made again; None: never."""
        return self._fleet.definitions.replicated()

    async def _bring_back(self, app: str, count: int, absence: float) -> None:
        wanted = [replica(app, index) for index in range(count)]
        present = [name for name in wanted if await self._held(app, name)]
        now = self._fleet.world.clock()
        self._since[app] = missing(self._since.get(app, {}), wanted, present, now)
        await self._make(app, [name for name, since in self._since[app].items() if now - since >= absence])

    async def _make(self, app: str, names: Iterable[str]) -> None:
        """Each of them, until there is no room for one; what fails is told once, however often it is tried."""
        for name in names:
            if self._doubt():
                return
            try:
                await self._create(app, name)
            except BranchdError as error:
                if self._failing.get((app, name)) is not type(error):
                    self._failing[app, name] = type(error)
                    self._happened("replica.failed", app, name, {"reason": error.detail})
                if isinstance(error, NoCapacity):
                    return
            else:
                self._failing.pop((app, name), None)

    async def _retire(self, app: str, count: int) -> None:
        async with self._fleet.lock(app):
            await retire(self._fleet, app, count, _made_here)


def _made_here(record: InstanceRecord) -> bool:
    return record.placed is not None and record.placed.request.startswith(MARK)
