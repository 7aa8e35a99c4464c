"""The instances of this branch and their supervisors, and what every use case needs to change them.

A definition is checked, committed, and only then acted on, under its app's lock, so that two writers of one app never
overwrite each other; no lock is held while a process is waited for.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import structlog
from msgspec.structs import replace

from branchd.branch.attendance import Attendance
from branchd.branch.definitions import MOST, Definitions
from branchd.branch.journal import Journal, Told
from branchd.branch.memory import MemoryWatch
from branchd.branch.order import Order
from branchd.branch.outcomes import Outcomes
from branchd.branch.records import (
    AppRecord,
    Change,
    InstanceRecord,
    OutcomeRecord,
    Put,
    RemoveInstance,
    RemoveOutcome,
    RunRecord,
    Snapshot,
)
from branchd.branch.supervisor import Supervisor
from branchd.branch.tasks import whole
from branchd.branch.watch import Watch
from branchd.branch.world import Policies, World
from branchd.core.errors import BranchdError, Conflict, NotFound, Stale, StorageFailed, Unavailable
from branchd.core.ordering import Hold
from branchd.core.spec import Spec, Unusable
from branchd.core.values import Key

log = structlog.get_logger(__name__)

#: seconds until an instance whose removal failed is tried to be removed again
REMOVE_AGAIN = 1.0

#: why nothing is started while a daemon lets go; the next one looks anew at whatever waits
NEXT = Hold("waits for the next daemon")


class Fleet:
    def __init__(self, world: World, policies: Policies, snapshot: Snapshot, journal: Journal) -> None:
        self.world = world
        self.journal = journal
        self.definitions = Definitions(policies, snapshot, world.host)
        self.outcomes = Outcomes(snapshot.outcomes)
        self.stopping = False  #: no new instance is made
        self.letting_go = False  #: no process is started any more: the next daemon does it
        self.watchers: list[Callable[[Key], None]] = []  #: told of instances that are new, being deleted or gone
        self.defined: list[Callable[[str], None]] = []  #: told of apps whose definition came to be another
        self.leaving: Counter[str] = Counter()  #: apps that are being deleted, with all their instances
        self._branch = policies.name
        self._watch = Watch(world.clock)
        #: only those in use: anybody may ask for an app that does not exist
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        runs = {run.key: run for run in snapshot.runs}
        self._supervisors: dict[Key, Supervisor] = {}
        self._by_app: dict[str, dict[Key, Supervisor]] = {}
        self.order = Order(self.find, self.of)
        self.memory = MemoryWatch(world.host)
        self.weight = 0  #: slots that all of them take
        for instance in snapshot.instances:
            app = self.definitions.app(instance.key.app)
            supervisor = self._supervisor(app, instance, runs.get(instance.key))
            if isinstance(supervisor.spec, Unusable):
                log.warning("unusable", instance=str(instance.key), reason=supervisor.spec.why)
            self._take_in(supervisor)

    def lock(self, app: str) -> asyncio.Lock:
        return self._locks.setdefault(app, asyncio.Lock())

    # Who is there

    def all(self) -> list[Supervisor]:
        return list(self._supervisors.values())

    def of(self, app: str) -> list[Supervisor]:
        return list(self._by_app.get(app, {}).values())

    def count(self, app: str) -> int:
        return len(self._by_app.get(app, ()))

    def find(self, key: Key) -> Supervisor | None:
        return self._supervisors.get(key)

    def get(self, app: str, name: str) -> Supervisor:
        """NotFound."""
        self.definitions.app(app)
        found = self._supervisors.get(Key(app, name))
        if found is None:
            raise NotFound(f"app {app} has no instance {name[:80]!r}", f"branchctl ps '{app}:*' lists them")
        return found

    def attending(self, pid: int) -> Attendance | None:
        """What goes with the process of that id; None where it is none of an instance."""
        for supervisor in self._supervisors.values():
            if supervisor.process is not None and supervisor.process.identity.pid == pid:
                return supervisor.attendance
        return None

    # Changes; the caller holds the app's lock

    def check_room(self, key: Key) -> None:
        """Conflict where there is one of that name, too many, or no app any more; Unavailable at the daemon's end."""
        if key in self._supervisors:
            taken = self._supervisors[key]
            hint = "it is being deleted; wait until it is gone" if taken.record.deleting else "choose another name"
            raise Conflict(f"{key} exists already", hint)
        if self.definitions.bare(key.app):
            raise Conflict(
                f"app {key.app} was deleted", "what is left of its instances here ends; then define it again"
            )
        if len(self._supervisors) >= MOST:
            raise Conflict(f"there are {MOST} instances already")
        if self.stopping:
            raise Unavailable("this branch is stopping")

    async def add(
        self,
        record: InstanceRecord,
        outcome: OutcomeRecord | None = None,
        sure: Callable[[], Awaitable[None]] | None = None,
        *,
        by: Mapping[str, str] | None = None,
    ) -> Supervisor:
        """Commits a new instance, with the outcome of the request for it, and starts it where it is wanted up.

        `by`: who asked, for the event, where no event `request` says so.
        `sure` is awaited between the two. What it raises is raised, and the commit taken back, as far as the store
        lets it be: the instance is there all the same where it does not.
        """
        key = record.key
        outcomes = [] if outcome is None else [Put(outcome)]
        await self.journal.commit(Put(record), *outcomes, events=[("instance.created", key.app, key.name, by or {})])
        doubt: BranchdError | None = None
        if sure is not None:
            try:
                await sure()
            except BranchdError as error:
                doubt = error
                forgotten = [] if outcome is None else [RemoveOutcome(outcome.request)]
                told: list[Told] = [("instance.deleted", key.app, key.name, {"reason": error.detail})]
                try:
                    await self.journal.commit(RemoveInstance(key), *forgotten, events=told)
                except StorageFailed as failure:
                    log.warning("not taken back", instance=str(key), reason=failure.detail)
                else:
                    raise
        if outcome is not None:
            self.outcomes.add(outcome)
        supervisor = self._install(record)
        if doubt is not None:
            raise doubt
        return supervisor

    def _install(self, record: InstanceRecord) -> Supervisor:
        supervisor = self._supervisor(self.definitions.app(record.key.app), record, None)
        self._take_in(supervisor)
        self.order.look(supervisor)
        self._changed(record.key)
        if self.stopping:
            supervisor.retire()  # the daemon's end began meanwhile: the next one starts it
        else:
            supervisor.want(supervisor.spec.wanted)
        return supervisor

    async def write(self, supervisor: Supervisor, raw: Mapping[str, Any]) -> None:
        """Checks, commits and applies an instance's spec; nothing where it is as it was."""
        record = supervisor.record
        key = record.key
        if record.deleting:
            raise Conflict(f"{key} is being deleted")
        app = self.definitions.app(key.app)
        if isinstance(supervisor.spec, Unusable) and {**raw, "wanted": None} == {**record.spec, "wanted": None}:
            spec = self.definitions.standing(app, raw)  # what is wrong with it must not keep anybody from stopping it
        else:
            spec = self.definitions.effective(app, raw)
        if spec.depends_on != supervisor.spec.depends_on:
            self.order.check({key: spec})
        if dict(raw) == dict(record.spec):
            return
        new = replace(record, spec=raw, generation=record.generation + 1)
        events: list[Told] = [("instance.changed", key.app, key.name, {"generation": new.generation})]
        await self.journal.commit(Put(new), events=events)
        self._redefine(supervisor, new, spec)

    async def define(self, app: str, changes: Sequence[Change], events: Sequence[Told], *, begun: bool = True) -> None:
        """Commits changes of an app, its queues and its instances, all at once, and applies them.

        The caller has seen that they hold together. New instances are started, and those that go are stopped.
        `begun`: False while no supervisor was resumed yet: then nothing is started or stopped here. One that is
        cancelled ends so when all of it is done: what is committed is applied too.
        """
        await whole(self._define(app, changes, events, begun))

    async def _define(self, app: str, changes: Sequence[Change], events: Sequence[Told], begun: bool) -> None:
        await self.journal.commit(*changes, events=events)
        self.definitions.apply(*changes)
        written = [change.record for change in changes if isinstance(change, Put)]
        records = {record.key: record for record in written if isinstance(record, InstanceRecord)}
        for supervisor in self.of(app):
            record = records.pop(supervisor.key, supervisor.record)
            if not begun:
                self._let_go(supervisor)
                self._take_in(self._supervisor(self.definitions.app(app), record, supervisor.run))
            elif record.deleting:
                supervisor.redefine(record, supervisor.spec, None)
                supervisor.retire()
                self._changed(record.key)
            else:
                self._redefine(supervisor, record, self.definitions.standing(self.definitions.app(app), record.spec))
        for record in records.values():
            if begun:
                self._install(record)
            else:
                self._take_in(self._supervisor(self.definitions.app(app), record, None))
        self._tell(app)

    def reapply(self, app: str) -> None:
        """What the definition of the app has come to be, to its instances."""
        for supervisor in self.of(app):
            spec = self.definitions.standing(self.definitions.app(app), supervisor.record.spec)
            self._redefine(supervisor, supervisor.record, spec)
        self._tell(app)

    @contextmanager
    def leave(self, app: str) -> Iterator[None]:
        """As long as it is being deleted, no replica of it is made."""
        self.leaving[app] += 1
        try:
            yield
        finally:
            self.leaving -= Counter([app])
            self._tell(app)

    def _tell(self, app: str) -> None:
        for told in self.defined:
            told(app)

    def _redefine(self, supervisor: Supervisor, record: InstanceRecord, spec: Spec) -> None:
        self.weight += spec.weight - supervisor.spec.weight
        supervisor.redefine(record, spec, self.definitions.declarations(record.key.app, spec))

    async def begin_delete(
        self,
        supervisor: Supervisor,
        *further: Change,
        events: Sequence[Told] = (),
        by: Mapping[str, str] | None = None,
    ) -> None:
        """Commits that it goes, and stops it; it is removed when nothing of it runs any more.

        `further` and `events` are committed with it; nothing of it where it was going already. `by`: as for add().
        """
        record = supervisor.record
        key = record.key
        if not record.deleting:
            going = replace(record, deleting=True)
            told: list[Told] = [*events, ("instance.deleting", key.app, key.name, by or {})]
            await self.journal.commit(Put(going), *further, events=told)
            supervisor.redefine(going, supervisor.spec, None)
            self._changed(key)
        supervisor.retire()

    async def inherit(self, supervisor: Supervisor) -> None:
        """Commits that a replacement stands for its name from now on."""
        placed = supervisor.record.placed
        assert placed is not None
        record = replace(supervisor.record, placed=replace(placed, waiting=False))
        await self.journal.commit(Put(record))
        spec = supervisor.spec
        supervisor.redefine(record, spec, self.definitions.declarations(record.key.app, spec))
        self._changed(record.key)

    # What each supervisor asks and tells, of whom only the fleet knows the others

    def hold(self, supervisor: Supervisor) -> Hold | None:
        return NEXT if self.letting_go else self.order.hold(supervisor)

    def look(self, supervisor: Supervisor) -> None:
        self.order.look(supervisor)
        self.memory.look(supervisor)

    def settle(self, supervisor: Supervisor) -> None:
        if supervisor.record.deleting:
            self.later(self._remove(supervisor))

    async def _remove(self, supervisor: Supervisor) -> None:
        key = supervisor.key
        async with self.lock(key.app):
            if self._supervisors.get(key) is not supervisor or not supervisor.settled:
                return
            outcome = self.outcomes.ended(key, self.world.wall())
            outcomes = [] if outcome is None else [Put(outcome)]
            try:
                await self.world.logs.remove(key)
                events: list[Told] = [("instance.deleted", key.app, key.name, {})]
                await self.journal.commit(RemoveInstance(key), *outcomes, events=events)
            except Unavailable as error:
                # What was promised is done when it can be: a full disk only delays it.
                log.warning("not deleted yet", instance=str(key), reason=error.detail)
                asyncio.get_running_loop().call_later(REMOVE_AGAIN, self.settle, supervisor)
                return
            if outcome is not None:
                self.outcomes.add(outcome)
            self._let_go(supervisor)
            supervisor.gone()
            self._changed(key)

    def _take_in(self, supervisor: Supervisor) -> None:
        key = supervisor.key
        self._supervisors[key] = self._by_app.setdefault(key.app, {})[key] = supervisor
        self.weight += supervisor.spec.weight

    def _let_go(self, supervisor: Supervisor) -> None:
        key = supervisor.key
        del self._supervisors[key], self._by_app[key.app][key]
        if not self._by_app[key.app]:
            del self._by_app[key.app]
        self.weight -= supervisor.spec.weight

    def _changed(self, key: Key) -> None:
        for watcher in self.watchers:
            watcher(key)

    def _supervisor(self, app: AppRecord, record: InstanceRecord, run: RunRecord | None) -> Supervisor:
        spec = self.definitions.standing(app, record.spec)
        return Supervisor(
            self.world,
            self.journal,
            self._watch,
            self._branch,
            self.definitions.node_name(record.key),
            record,
            spec,
            self.definitions.declarations(app.name, spec),
            run,
            self,
        )

    # Work that nobody waits for

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            level = log.error if isinstance(error, BranchdError) else log.critical
            level("in the background", error=f"{type(error).__name__}: {error}")


def expect_new(record: object | None) -> None:
    """If-None-Match: it must not exist yet. Stale."""
    if record is not None:
        raise Stale("it exists already", "leave If-None-Match out to replace it")


def expect(record: AppRecord | InstanceRecord | None, match: int | None) -> None:
    """If-Match: the generation that the writer has seen. Stale."""
    if match is not None and (record is None or record.generation != match):
        now = "it does not exist" if record is None else f"it is at generation {record.generation} now"
        raise Stale(f"it was changed since generation {match}: {now}", "read it again, then repeat your change")
