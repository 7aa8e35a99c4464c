"""The neighbourhood's definitions, as this branch writes them, tells of them, and hears of them.

How they converge is decided in core/definitions.py, and what differs in spite of all is found by gossip.py. A
definition that comes from elsewhere is never refused: where it is wrong for an instance here, that instance is Unusable
and says why. Who wrote it here, and so answers for it, is kept apart (Layers.authored), and nothing here changes that.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from branchd.branch.fleet import Fleet
from branchd.branch.journal import Told
from branchd.branch.layers import app_entry, queue_entry, readable, tombstone
from branchd.branch.mesh.link import Link
from branchd.branch.records import AppRecord, Change, Put, RemoveApp, RemoveAuthored, RemoveEntry
from branchd.branch.supervisor import Supervisor
from branchd.core.definitions import merge
from branchd.core.diagnosis import MOST_CLOCK_OFFSET
from branchd.core.errors import Conflict, Unavailable
from branchd.core.peers import Address
from branchd.core.stamps import Entry, EntryKind, Stamp, credible, observe, tick
from branchd.wire.mesh import Wrote
from branchd.wire.portions import portions

log = structlog.get_logger(__name__)

#: seconds within which one of the branches with instances of a deleted app writes it anew; a thousand may have some
AGAIN_WITHIN = 2.0


class Sharing:
    def __init__(self, link: Link, fleet: Fleet, offset: Callable[[], float]) -> None:
        """`offset`: seconds that this branch's clock is ahead of the median of all announced ones; 0 while unknown."""
        self.dropped: Counter[str] = Counter()  #: entries, by why
        self.on_written: list[Callable[[str], None]] = []  #: called with the app, after a write of this branch
        self._link = link
        self._fleet = fleet
        self._definitions = fleet.definitions
        self._entries = fleet.definitions.entries
        self._offset = offset
        self._last = self._entries.latest
        self._waiting: set[str] = set()  #: deleted apps that another branch may write anew before this one does
        link.hear(Wrote, self._heard)

    async def begin(self) -> None:
        """Once, when every instance is in its supervisor's hands: what an earlier daemon did not finish."""
        for app in self._definitions.names():
            async with self._fleet.lock(app):
                await self.settle(app)
        for app in {supervisor.key.app for supervisor in self._fleet.all()}:
            if (end := self._entries.get((EntryKind.APP, app, ""))) is not None and end.value is None:
                self._fleet.later(self._bury(end))

    # Writing; the caller holds the app's lock

    def stamp(self) -> Stamp:
        """For what an operator writes now. Unavailable where the clock is not to be trusted."""
        offset = self._offset()
        if abs(offset) > MOST_CLOCK_OFFSET:
            apart = f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the other branches'"
            raise Unavailable(f"clock-skew: this branch's clock is {apart}", "set it right, then try again")
        if not credible(self._last, self._now()):
            raise Unavailable(
                "clock-skew: there are definitions here that this branch's clock says were written days from now",
                "set it right, then try again",
            )
        return self._tick()

    async def write(self, entries: Sequence[Entry], *own: Change, events: Sequence[Told] = ()) -> None:
        """Commits entries with a stamp(), and what changes of this branch's own with them, and tells all others.

        What it means for instances here is the caller's to see to. StorageFailed.
        """
        changes = (*map(Put, entries), *own)
        await self._fleet.journal.commit(*changes, events=events)
        self._definitions.apply(*changes)
        self._tell(entries)
        self._trim()
        for app in dict.fromkeys(entry.app for entry in entries):
            for told in self.on_written:
                told(app)

    async def publish(self, app: str) -> None:
        """This branch's own definition becomes the shared one. Conflict where there is none; Unavailable."""
        if not self._definitions.own(app):
            raise Conflict(f"there is nothing to publish: this branch has no definition of its own of app {app}")
        stamp, queues = self.stamp(), self._definitions.queues_of(app)
        stale = [entry for name, entry in self._entries.queues(app).items() if name not in queues]
        entries = [
            app_entry(self._next(app), stamp),
            *(queue_entry(queue, stamp) for queue in queues.values()),
            *(tombstone(entry, stamp) for entry in stale),
        ]
        await self.write(entries, RemoveApp(app), events=[("app.published", app, None, {})])

    async def adopt(self, app: str) -> None:
        """The shared definition takes the place of this branch's own. Conflict where there are not both."""
        if not self._definitions.own(app):
            raise Conflict(f"there is nothing to drop: this branch has no definition of its own of app {app}")
        if self._definitions.shared(app) is None:
            raise Conflict(f"app {app} is not shared: only this branch has it", f"branchctl app publish {app}")
        await self._drop_own(app, [("app.adopted", app, None, {})])
        self._fleet.reapply(app)

    async def settle(self, app: str) -> None:
        """Where both layers say the same, the shared one is enough."""
        if self._definitions.twins(app):
            await self._drop_own(app, [])

    async def _drop_own(self, app: str, events: Sequence[Told]) -> None:
        await self._fleet.journal.commit(RemoveApp(app), events=events)
        self._definitions.apply(RemoveApp(app))

    def _next(self, app: str) -> AppRecord:
        """This branch's own, with a generation above that of the shared one."""
        own, shared = self._definitions.app(app), self._definitions.shared(app)
        past = 0 if shared is None or shared.value is None else shared.value["generation"]
        return AppRecord(app, own.spec, max(own.generation, past + 1), own.created_at)

    # What others wrote

    def digests(self) -> tuple[str, ...]:
        return self._entries.digests.texts()

    def entries(self, buckets: Iterable[int]) -> tuple[Entry, ...]:
        return self._entries.within(buckets)

    async def merge(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        """Takes what is newer than what is known here, and answers which that was. StorageFailed."""
        by_app: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in filter(self._believed, self._entries.news(entries)):
            by_app[entry.app].append(entry)
        # All at once: they share a commit.
        taken = await asyncio.gather(*map(self._merge, by_app, by_app.values()), return_exceptions=True)
        for failure in taken:
            if isinstance(failure, BaseException):
                raise failure
        self._trim()
        return tuple(entry for some in taken if not isinstance(some, BaseException) for entry in some)

    def _heard(self, sender: Address, wrote: Wrote) -> None:
        if sender != self._link.me:
            self._fleet.later(self._learn(wrote.entries))

    async def _learn(self, entries: Iterable[Entry]) -> None:
        await self.merge(entries)

    def _believed(self, entry: Entry) -> bool:
        reason = "" if credible(entry.stamp.time, self._now()) else "from the future"
        reason = reason or ("" if readable(entry) else "not readable")
        if reason:
            self.dropped[reason] += 1
            log.debug("definition not taken", app=entry.app[:80], branch=entry.stamp.branch[:80], reason=reason)
        return not reason

    async def _merge(self, app: str, entries: Iterable[Entry], *, waited: bool = False) -> tuple[Entry, ...]:
        async with self._fleet.lock(app):
            news = self._entries.news(entries)
            if not news:
                return ()
            for entry in news:
                self._last = observe(self._last, entry.stamp.time, self._now())
            end = next((entry for entry in news if entry.kind is EntryKind.APP and entry.value is None), None)
            again: tuple[Entry, ...] = ()
            own: tuple[Put, ...] = ()
            if end is not None and end.cascade and self._keeps(app):
                own = self._definitions.owned(app)
            elif end is not None and not end.cascade and self._lives(app) and not self._definitions.own(app):
                if not waited:
                    self._wait(app, news)
                    return ()
                again = self._again(end, news)
            taken = tuple(merge(news, again).values())
            changes = (*own, *map(Put, taken))
            await self._fleet.journal.commit(*changes, events=[self._event(entry) for entry in taken])
            self._definitions.apply(*changes)
            await self.settle(app)
            self._fleet.reapply(app)
            self._tell(again)
            if end is not None:
                self._fleet.later(self._bury(end))
            return taken

    def _event(self, entry: Entry) -> Told:
        known = self._entries.get((entry.kind, entry.app, entry.name))
        done = "deleted" if entry.value is None else "created" if known is None or known.value is None else "changed"
        data: dict[str, Any] = {"by": entry.stamp.branch}
        if entry.kind is EntryKind.QUEUE:
            data["queue"] = entry.name
        elif entry.value is not None:
            data["generation"] = entry.value["generation"]
        return f"{entry.kind}.{done}", entry.app, None, data

    # Apps that were deleted, and instances of them here

    def _wait(self, app: str, news: Iterable[Entry]) -> None:
        """Before it is written anew: one branch with instances of it is enough, and what that writes is newer."""
        if app not in self._waiting:
            self._waiting.add(app)
            self._fleet.later(self._after_others(app, news))

    async def _after_others(self, app: str, news: Iterable[Entry]) -> None:
        try:
            await asyncio.sleep(AGAIN_WITHIN * self._fleet.world.chance())
        finally:
            self._waiting.discard(app)
        await self._merge(app, news, waited=True)

    def _again(self, end: Entry, news: Iterable[Entry]) -> tuple[Entry, ...]:
        """The app with its queues, written anew: who deleted it could not know that it has instances here."""
        newer = {entry.name for entry in news if entry.stamp != end.stamp}
        stamp = self._tick()
        return tuple(
            Entry(entry.kind, entry.app, entry.name, stamp, entry.value)
            for entry in self._definitions.entries_of(end.app)
            if entry.name not in newer
        )

    def _lives(self, app: str) -> bool:
        return any(not supervisor.record.deleting for supervisor in self._fleet.of(app))

    def _keeps(self, app: str) -> bool:
        """Whether it has instances here that no other branch deletes."""
        return any(not (self._goes(one) or one.record.deleting) for one in self._fleet.of(app))

    def _goes(self, supervisor: Supervisor) -> bool:
        """With its app, where another branch deletes that: nothing that others may not have here in the first place."""
        return supervisor.record.placed is not None and not self._definitions.peer_faults(supervisor.spec)

    async def _bury(self, end: Entry) -> None:
        """Its placed instances here go too, where the tombstone says so."""
        async with self._fleet.lock(end.app):
            if self._entries.get((EntryKind.APP, end.app, "")) != end:
                return  # it was written again meanwhile
            all_go = self._definitions.bare(end.app)  # else the definition was kept, for those that stay
            why = {"reason": f"app {end.app} was deleted", "by": end.stamp.branch}
            for supervisor in self._fleet.of(end.app) if end.cascade else ():
                record = supervisor.record
                if record.placed is not None and not record.deleting and (all_go or self._goes(supervisor)):
                    await self._fleet.begin_delete(supervisor, by=why)
        await self._vacated(end.app)

    async def _vacated(self, app: str) -> None:
        """Returns when an app without a definition has no instances here any more, and forgets it."""
        while instances := self._fleet.of(app):
            if not self._definitions.bare(app):
                return
            await instances[0].changed()
        self._definitions.forget(app)

    # Clock, messages, room

    def _now(self) -> float:
        """Seconds since 1970, by most clocks."""
        return self._fleet.world.wall() - self._offset()

    def _tick(self) -> Stamp:
        self._last = tick(self._last, self._now())
        return Stamp(self._last, self._link.me.id)

    def _tell(self, entries: Sequence[Entry]) -> None:
        for portion in portions(entries):
            self._link.broadcast(Wrote(portion))

    def _trim(self) -> None:
        if excess := self._entries.excess():
            changes: list[Change] = [RemoveEntry(*key) for key in excess]
            changes += [RemoveAuthored(app) for kind, app, _ in excess if not self._definitions.own(app)]
            self._definitions.apply(*changes)
            self._fleet.later(self._fleet.journal.commit(*changes))
