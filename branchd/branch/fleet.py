"""The instances of this branch and their supervisors, and what every use case needs to change them.

A definition is checked, committed, and only then acted on, under its app's lock, so that two writers of one app never
overwrite each other; no lock is held while a process is waited for.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any
from weakref import WeakValueDictionary

import structlog

from branchd.branch.definitions import MOST, Definitions
from branchd.branch.journal import Journal, Told
from branchd.branch.records import AppRecord, InstanceRecord, Put, RemoveInstance, RunRecord, Snapshot
from branchd.branch.supervisor import Supervisor
from branchd.branch.watch import Watch
from branchd.branch.world import Policies, World
from branchd.core.errors import BranchdError, Conflict, NotFound, Stale, Unavailable
from branchd.core.spec import Unusable
from branchd.core.values import Key

log = structlog.get_logger(__name__)

#: seconds until an instance whose removal failed is tried to be removed again
REMOVE_AGAIN = 1.0


class Fleet:
    def __init__(self, world: World, policies: Policies, snapshot: Snapshot, journal: Journal) -> None:
        self.world = world
        self.journal = journal
        self.definitions = Definitions(policies, snapshot, world.host.account(None)[1])
        self.stopping = False  #: nothing new is started
        self._branch = policies.name
        self._watch = Watch(world.clock)
        #: only those in use: anybody may ask for an app that does not exist
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        runs = {run.key: run for run in snapshot.runs}
        self._supervisors: dict[Key, Supervisor] = {}
        for instance in snapshot.instances:
            app = self.definitions.app(instance.key.app)
            supervisor = self._supervisor(app, instance, runs.get(instance.key))
            if isinstance(supervisor.spec, Unusable):
                log.warning("unusable", instance=str(instance.key), reason=supervisor.spec.why)
            self._supervisors[instance.key] = supervisor

    def lock(self, app: str) -> asyncio.Lock:
        return self._locks.setdefault(app, asyncio.Lock())

    # Who is there

    def all(self) -> list[Supervisor]:
        return list(self._supervisors.values())

    def of(self, app: str) -> list[Supervisor]:
        return [supervisor for key, supervisor in self._supervisors.items() if key.app == app]

    def find(self, key: Key) -> Supervisor | None:
        return self._supervisors.get(key)

    def get(self, app: str, name: str) -> Supervisor:
        """NotFound."""
        self.definitions.app(app)
        found = self._supervisors.get(Key(app, name))
        if found is None:
            raise NotFound(f"app {app} has no instance {name[:80]!r}", f"branchctl ps '{app}:*' lists them")
        return found

    def of_pid(self, pid: int) -> Supervisor | None:
        for supervisor in self._supervisors.values():
            if supervisor.process is not None and supervisor.process.identity.pid == pid:
                return supervisor
        return None

    # Changes; the caller holds the app's lock

    def check_room(self, key: Key) -> None:
        """Conflict where an instance of that name exists, or too many do; Unavailable at the daemon's end."""
        if key in self._supervisors:
            taken = self._supervisors[key]
            hint = "it is being deleted; wait until it is gone" if taken.record.deleting else "choose another name"
            raise Conflict(f"{key} exists already", hint)
        if len(self._supervisors) >= MOST:
            raise Conflict(f"there are {MOST} instances already")
        if self.stopping:
            raise Unavailable("this branch is stopping")

    async def add(self, record: InstanceRecord, *further: Put) -> Supervisor:
        """Commits a new instance, with what else belongs to it, and starts it where it is wanted up."""
        key = record.key
        await self.journal.commit(Put(record), *further, events=[("instance.created", key.app, key.name, {})])
        supervisor = self._supervisor(self.definitions.app(key.app), record, None)
        self._supervisors[key] = supervisor
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
        if dict(raw) == dict(record.spec):
            return
        new = InstanceRecord(key, raw, record.generation + 1, record.created_at)
        events: list[Told] = [("instance.changed", key.app, key.name, {"generation": new.generation})]
        await self.journal.commit(Put(new), events=events)
        supervisor.redefine(new, spec, self.definitions.declarations(key.app, spec))

    async def begin_delete(self, supervisor: Supervisor) -> None:
        """Commits that it goes, and stops it; it is removed when nothing of it runs any more."""
        record = supervisor.record
        key = record.key
        if not record.deleting:
            going = InstanceRecord(key, record.spec, record.generation, record.created_at, deleting=True)
            await self.journal.commit(Put(going), events=[("instance.deleting", key.app, key.name, {})])
            supervisor.redefine(going, supervisor.spec, None)
        supervisor.retire()

    def _settled(self, supervisor: Supervisor) -> None:
        if supervisor.record.deleting:
            self.later(self._remove(supervisor))

    async def _remove(self, supervisor: Supervisor) -> None:
        key = supervisor.key
        async with self.lock(key.app):
            if self._supervisors.get(key) is not supervisor or not supervisor.settled:
                return
            try:
                await self.world.logs.remove(key)
                await self.journal.commit(RemoveInstance(key), events=[("instance.deleted", key.app, key.name, {})])
            except Unavailable as error:
                # What was promised is done when it can be: a full disk only delays it.
                log.warning("not deleted yet", instance=str(key), reason=error.detail)
                asyncio.get_running_loop().call_later(REMOVE_AGAIN, self._settled, supervisor)
                return
            del self._supervisors[key]
            supervisor.gone()

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
            self._settled,
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
