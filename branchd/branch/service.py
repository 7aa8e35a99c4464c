"""The branch: every use case of the API, over definitions, supervisors and the store.

A definition is checked, committed, and only then acted on, under its app's lock, so that two writers of one app never
overwrite each other; no lock is held while a process is waited for.
"""

import asyncio
import hashlib
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import structlog

from branchd.branch.celery import Celery
from branchd.branch.definitions import MOST, Definitions, changed, check_name, declared
from branchd.branch.events import KEPT, EventLog
from branchd.branch.journal import Journal, Told
from branchd.branch.ports import LogFiles
from branchd.branch.records import (
    AppRecord,
    Change,
    Expire,
    InstanceRecord,
    Put,
    QueueRecord,
    RemoveApp,
    RemoveInstance,
    RemoveQueue,
    ReplyRecord,
    RunRecord,
    Snapshot,
)
from branchd.branch.supervisor import Supervisor
from branchd.branch.tokens import Tokens
from branchd.branch.view import render_app, render_queue
from branchd.branch.watch import Watch
from branchd.branch.world import Policies, World
from branchd.core.access import Principal
from branchd.core.capacity import capacity
from branchd.core.errors import BranchdError, Conflict, Fault, Invalid, NotFound, Stale, Unavailable
from branchd.core.faults import SIGNALS
from branchd.core.lifecycle import Event, State, Symbol
from branchd.core.spec import Wanted
from branchd.core.values import Key, QueueDeclaration, signal_number
from branchd.wire import json
from branchd.wire.agent import Heartbeat
from branchd.wire.resources import App, Branch, Instance, Queue, Stats, timestamp
from branchd.wire.spec import accept, patched

log = structlog.get_logger(__name__)

#: seconds that the answer to a request with an Idempotency-Key is remembered
REPLIES_KEPT = 24 * 3600.0

#: seconds between two clean-ups of old replies and events
EXPIRE_EVERY = 600.0

Raw = Mapping[str, Any]


class Service:
    def __init__(self, world: World, policies: Policies, snapshot: Snapshot, admin_token: str, version: str) -> None:
        self._world = world
        self._policies = policies
        self._version = version
        self.id = snapshot.branch_id
        self.name = policies.name
        self.logs: LogFiles = world.logs
        self.events = EventLog(world.store, snapshot.last_event)
        self.tokens = Tokens(world.store, snapshot.tokens, world.wall, admin_token)
        self.celery = Celery(self)
        self.addresses: tuple[str, ...] = ()
        self._journal = Journal(world.store, self.events, world.wall)
        self._watch = Watch(world.clock)
        self._definitions = Definitions(policies, world.host.account(None)[1])
        self._supervisors: dict[Key, Supervisor] = {}
        self._replies = {(reply.principal, reply.key): reply for reply in snapshot.replies}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._why_not_ready = "starting: looking for what an earlier daemon left"
        self._stopping = False
        self._load(snapshot)

    # The daemon's own life

    def _load(self, snapshot: Snapshot) -> None:
        self._definitions.apps = {app.name: app for app in snapshot.apps}
        for record in snapshot.queues:
            self._definitions.queues.setdefault(record.app, {})[record.queue.name] = record
        runs = {run.key: run for run in snapshot.runs}
        for instance in snapshot.instances:
            app = self._definitions.apps[instance.key.app]
            self._supervisors[instance.key] = self._supervisor(app, instance, runs.get(instance.key))

    async def begin(self) -> None:
        """Adopts what runs, starts what is wanted. Returns when every instance is in its supervisor's hands."""
        self._world.channel.listen(self._heard, self._hung_up)
        lost = dict(s.lost for s in self._supervisors.values() if s.lost)
        found = self._world.processes.find(lost) if lost else {}
        for supervisor in self._supervisors.values():
            nonce = supervisor.lost[0] if supervisor.lost else ""
            supervisor.resume(found.get(nonce), nonce in found and found[nonce] is None)
        for supervisor in list(self._supervisors.values()):
            await supervisor.idle()
        await self._journal.commit(events=[("branch.started", None, None, {"version": self._version})])
        self._why_not_ready = ""
        self._expire()

    async def end(self) -> None:
        """Runs every stop plan, all at once, and returns when nothing runs any more. What is wanted stays wanted."""
        self._stopping = True
        self._why_not_ready = "stopping"
        self.events.close()
        for supervisor in self._supervisors.values():
            supervisor.post(Event(Symbol.DOWN))
        for supervisor in list(self._supervisors.values()):
            while not supervisor.settled:
                await supervisor.changed()
        self.close()

    def kill(self) -> None:
        """While end() waits: no more patience."""
        for supervisor in self._supervisors.values():
            supervisor.post(Event(Symbol.KILL))

    def close(self) -> None:
        """Lets go of everything; what runs goes on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def ready(self) -> bool:
        return not self._why_not_ready

    def problems(self) -> list[str]:
        return [self._why_not_ready] if self._why_not_ready else []

    def branch(self) -> Branch:
        reserved = (supervisor.spec.weight for supervisor in self._supervisors.values())
        room = capacity(self._policies.slots, self._world.host.cpus, reserved)
        return Branch(
            id=self.id,
            name=self.name,
            state="up",
            version=self._version,
            slots=room.slots,
            reserved=room.reserved,
            labels=self._policies.labels,
            address=next(iter(self.addresses), None),
            seen_at=timestamp(self._world.wall()),
            load=self._world.host.load(),
        )

    def _expire(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EXPIRE_EVERY, self._expire)
        before = self._world.wall() - REPLIES_KEPT
        self._replies = {key: reply for key, reply in self._replies.items() if reply.at > before}
        self._later(self._world.store.write(Expire(before, KEPT)))

    # Apps

    def apps(self) -> list[App]:
        return [self.app(name) for name in sorted(self._definitions.apps)]

    def app(self, app: str) -> App:
        return render_app(self._definitions.app(app), len(self._of(app)))

    async def put_app(self, app: str, spec: Any, match: int | None = None) -> tuple[App, bool]:
        check_name(app, "/app", "app name")
        async with self._locks[app]:
            old = self._definitions.apps.get(app)
            _expect(old, match)
            if old is None and len(self._definitions.apps) >= MOST:
                raise Conflict(f"there are {MOST} apps already")
            raw = accept(spec, dict(old.spec) if old else {})
            await self._write_app(app, old, raw)
        return self.app(app), old is None

    async def patch_app(self, app: str, patch: Any, match: int | None = None, restart: bool = False) -> App:
        async with self._locks[app]:
            old = self._definitions.app(app)
            _expect(old, match)
            await self._write_app(app, old, patched(dict(old.spec), patch))
        if restart:
            for supervisor in self._of(app):
                if supervisor.spec.wanted is Wanted.UP:
                    supervisor.post(Event(Symbol.RESTART))
        return self.app(app)

    async def _write_app(self, app: str, old: AppRecord | None, raw: Raw) -> None:
        if old is None:
            new = AppRecord(app, raw, 1, self._world.wall())
        elif dict(old.spec) == dict(raw):
            return
        else:
            new = replace(old, spec=raw, generation=old.generation + 1)
        # An instance that the change would break is worth a refusal, before anything is written.
        specs = {}
        for supervisor in self._of(app):
            try:
                specs[supervisor.key] = self._definitions.effective(new, supervisor.record.spec)
            except Invalid as invalid:
                raise Invalid(invalid.faults, f"instance {supervisor.key} would be invalid") from None
        kind = "app.created" if old is None else "app.changed"
        await self._journal.commit(Put(new), events=[(kind, app, None, {"generation": new.generation})])
        self._definitions.apps[app] = new
        for supervisor in self._of(app):
            spec = specs[supervisor.key]
            supervisor.redefine(supervisor.record, spec, self._definitions.declarations(app, spec))

    async def delete_app(self, app: str, cascade: bool = False) -> None:
        async with self._locks[app]:
            self._definitions.app(app)
            instances = self._of(app)
            if instances and not cascade:
                raise Conflict(f"app {app} has {len(instances)} instances", "delete them first, or use cascade")
            for supervisor in instances:
                await self._begin_delete(supervisor)
        for supervisor in instances:
            while supervisor.key in self._supervisors:
                await supervisor.changed()
        async with self._locks[app]:
            self._definitions.app(app)
            if self._of(app):
                raise Conflict(f"app {app} has got new instances meanwhile")
            await self._journal.commit(RemoveApp(app), events=[("app.deleted", app, None, {})])
            del self._definitions.apps[app]
            self._definitions.queues.pop(app, None)

    # Declarations of queues

    def queues(self, app: str) -> list[Queue]:
        self._definitions.app(app)
        return [render_queue(record) for _, record in sorted(self._definitions.queues.get(app, {}).items())]

    def queue(self, app: str, queue: str) -> Queue:
        return render_queue(self._definitions.queue(app, queue))

    async def put_queue(self, app: str, queue: str, declaration: Any) -> tuple[Queue, bool]:
        async with self._locks[app]:
            self._definitions.app(app)
            queues = self._definitions.queues.setdefault(app, {})
            created = queue not in queues
            if created and len(queues) >= MOST:
                raise Conflict(f"app {app} declares {MOST} queues already")
            record = QueueRecord(app, declared(queue, declaration))
            if queues.get(queue) != record:
                kind = "queue.created" if created else "queue.changed"
                await self._journal.commit(Put(record), events=[(kind, app, None, {"queue": queue})])
                queues[queue] = record
                self._redeclare(app)
        return render_queue(record), created

    async def delete_queue(self, app: str, queue: str) -> None:
        async with self._locks[app]:
            self._definitions.queue(app, queue)
            events: list[Told] = [("queue.deleted", app, None, {"queue": queue})]
            await self._journal.commit(RemoveQueue(app, queue), events=events)
            del self._definitions.queues[app][queue]
            self._redeclare(app)

    def _redeclare(self, app: str) -> None:
        for supervisor in self._of(app):
            queues = self._definitions.declarations(app, supervisor.spec)
            supervisor.redefine(supervisor.record, supervisor.spec, queues)

    # Instances

    def instances(self, app: str | None = None) -> list[Instance]:
        if app is not None:
            self._definitions.app(app)
        keys = sorted(key for key in self._supervisors if app is None or key.app == app)
        return [self._supervisors[key].view() for key in keys]

    def instance(self, app: str, name: str) -> Instance:
        return self.supervisor(app, name).view()

    def supervisor(self, app: str, name: str) -> Supervisor:
        self._definitions.app(app)
        found = self._supervisors.get(Key(app, name))
        if found is None:
            raise NotFound(f"app {app} has no instance {name[:80]!r}", f"branchctl ps '{app}:*' lists them")
        return found

    async def create(
        self, principal: Principal, app: str, body: Any, idempotency_key: str | None = None
    ) -> tuple[Instance, bool]:
        """The instance, and whether this call made it: False for the replay of an earlier one. Body: spec and name."""
        if not isinstance(body, dict):
            raise Invalid([Fault("", f"an instance is an object, not {type(body).__name__}")])
        spec = dict(body)
        name = spec.pop("name", None)
        digest = hashlib.sha256(json.dumps([app, body])).hexdigest()
        async with self._locks[app]:
            self._definitions.app(app)
            reply = self._replies.get((principal.name, idempotency_key)) if idempotency_key is not None else None
            if reply is not None and reply.at > self._world.wall() - REPLIES_KEPT:
                if reply.digest != digest:
                    raise Conflict("this Idempotency-Key was used for another request", "use a new key")
                return self.instance(reply.app, reply.instance), False
            if name is None:
                seed = f"{principal.name}\0{idempotency_key}" if idempotency_key is not None else secrets.token_hex(16)
                name = f"{app[:54]}-{hashlib.sha256(seed.encode()).hexdigest()[:8]}"
            record = self._new(app, name, spec)
            changes: list[Change] = [Put(record)]
            if idempotency_key is not None:
                reply = ReplyRecord(principal.name, idempotency_key, digest, self._world.wall(), app, name)
                changes.append(Put(reply))
            await self._create(record, changes)
            if reply is not None:
                self._replies[reply.principal, reply.key] = reply
        return await self._done_with(self._supervisors[record.key]), True

    def _new(self, app: str, name: Any, spec: Raw) -> InstanceRecord:
        """The record of a new instance; every fault of its name and of its spec at once."""
        faults = []
        if not isinstance(name, str):
            faults.append(Fault("/name", f"{name!r} is not text"))
        else:
            try:
                check_name(name, "/name", "instance name")
            except Invalid as invalid:
                faults += invalid.faults
        try:
            raw = accept(spec, {})
            self._definitions.effective(self._definitions.app(app), raw)
        except Invalid as invalid:
            faults += invalid.faults
        if faults:
            raise Invalid(faults)
        key = Key(app, name)
        if key in self._supervisors:
            taken = self._supervisors[key]
            hint = "it is being deleted; wait until it is gone" if taken.record.deleting else "choose another name"
            raise Conflict(f"{key} exists already", hint)
        if len(self._supervisors) >= MOST:
            raise Conflict(f"there are {MOST} instances already")
        if self._stopping:
            raise Unavailable("this branch is stopping")
        return InstanceRecord(key, raw, 1, self._world.wall())

    async def _create(self, record: InstanceRecord, changes: list[Change]) -> None:
        key = record.key
        await self._journal.commit(*changes, events=[("instance.created", key.app, key.name, {})])
        supervisor = self._supervisor(self._definitions.app(key.app), record, None)
        self._supervisors[key] = supervisor
        if supervisor.spec.wanted is Wanted.UP:
            supervisor.want(Wanted.UP)

    async def put_instance(self, app: str, name: str, spec: Any, match: int | None = None) -> tuple[Instance, bool]:
        async with self._locks[app]:
            self._definitions.app(app)
            supervisor = self._supervisors.get(Key(app, name))
            _expect(supervisor.record if supervisor else None, match)
            if supervisor is None:
                if not isinstance(spec, dict):
                    raise Invalid([Fault("", f"a spec is an object, not {type(spec).__name__}")])
                record = self._new(app, name, spec)
                await self._create(record, [Put(record)])
                return await self._done_with(self.supervisor(app, name)), True
            await self._write(supervisor, accept(spec, dict(supervisor.record.spec)))
        return await self._done_with(supervisor), False

    async def patch_instance(
        self, app: str, name: str, patch: Any, match: int | None = None, restart: bool = False
    ) -> Instance:
        async with self._locks[app]:
            supervisor = self.supervisor(app, name)
            _expect(supervisor.record, match)
            await self._write(supervisor, patched(dict(supervisor.record.spec), patch))
        if restart and supervisor.spec.wanted is Wanted.UP:
            supervisor.post(Event(Symbol.RESTART))
        return await self._done_with(supervisor)

    async def edit(self, app: str, name: str, change: Callable[[], Raw]) -> None:
        """A patch that depends on what the spec is at that moment."""
        async with self._locks[app]:
            supervisor = self.supervisor(app, name)
            await self._write(supervisor, patched(dict(supervisor.record.spec), change()))

    async def _write(self, supervisor: Supervisor, raw: Raw) -> None:
        """Checks, commits and applies an instance's spec. Under the app's lock."""
        record = supervisor.record
        if record.deleting:
            raise Conflict(f"{record.key} is being deleted")
        spec = self._definitions.effective(self._definitions.app(record.key.app), raw)
        new = changed(record, raw)
        if new is record:
            return
        key = record.key
        events: list[Told] = [("instance.changed", key.app, key.name, {"generation": new.generation})]
        await self._journal.commit(Put(new), events=events)
        supervisor.redefine(new, spec, self._definitions.declarations(key.app, spec))

    async def delete_instance(self, app: str, name: str) -> None:
        async with self._locks[app]:
            await self._begin_delete(self.supervisor(app, name))

    async def _begin_delete(self, supervisor: Supervisor) -> None:
        if not supervisor.record.deleting:
            record = replace(supervisor.record, deleting=True)
            key = record.key
            await self._journal.commit(Put(record), events=[("instance.deleting", key.app, key.name, {})])
            supervisor.redefine(record, supervisor.spec, None)
        supervisor.post(Event(Symbol.DOWN))

    async def start(self, app: str, name: str) -> Instance:
        return await self._act(app, name, Wanted.UP, Symbol.UP)

    async def stop(self, app: str, name: str) -> Instance:
        return await self._act(app, name, Wanted.DOWN, Symbol.DOWN)

    async def restart(self, app: str, name: str) -> Instance:
        return await self._act(app, name, Wanted.UP, Symbol.RESTART)

    async def _act(self, app: str, name: str, wanted: Wanted, symbol: Symbol) -> Instance:
        async with self._locks[app]:
            supervisor = self.supervisor(app, name)
            if self._stopping and wanted is Wanted.UP:
                raise Unavailable("this branch is stopping")
            if supervisor.spec.wanted is not wanted:
                await self._write(supervisor, {**supervisor.record.spec, "wanted": wanted.value})
            elif supervisor.record.deleting:
                raise Conflict(f"{supervisor.key} is being deleted")
            supervisor.post(Event(symbol))
        return await self._done_with(supervisor)

    async def signal(self, app: str, name: str, signal: str) -> Instance:
        supervisor = self.supervisor(app, name)
        if signal.removeprefix("SIG") not in SIGNALS:
            raise Invalid([Fault("/signal", f"{signal[:20]!r} is not a signal", f"one of {', '.join(SIGNALS)}")])
        if not supervisor.signal(signal_number(signal)):
            raise Conflict(f"{supervisor.key} has no process", f"it is {supervisor.state}")
        return supervisor.view()

    async def wait(self, app: str, name: str, what: Literal["ready", "stopped", "gone"], seconds: float) -> bool:
        """True when it came to that within so many seconds; False then, and as soon as it cannot any more."""
        key = Key(app, name)
        supervisor = self._supervisors.get(key)
        try:
            async with asyncio.timeout(seconds):
                while supervisor is not None and self._supervisors.get(key) is supervisor:
                    if what == "ready" and (supervisor.ready or supervisor.state in (State.FATAL, State.EXITED)):
                        return supervisor.ready
                    if what == "stopped" and supervisor.settled:
                        return True
                    await supervisor.changed()
                return what != "ready"
        except TimeoutError:
            return False

    async def stats(self, app: str, name: str) -> Stats:
        supervisor = self.supervisor(app, name)
        process = supervisor.process
        if process is None:
            return Stats(pid=None)
        usage = self._world.host.usage(process.identity) or {}
        worker = await self.celery.stats(supervisor)
        return Stats(
            pid=process.identity.pid,
            rss=_whole(usage.get("rss")),
            cpu_seconds=usage.get("cpu_seconds"),
            processes=_whole(usage.get("processes")),
            threads=_whole(usage.get("threads")),
            open_files=_whole(usage.get("open_files")),
            worker=worker,
        )

    # Inside

    async def _done_with(self, supervisor: Supervisor) -> Instance:
        """The instance as it is once what was asked of it has begun."""
        await supervisor.idle()
        return supervisor.view()

    def declaration(self, app: str, queue: str) -> QueueDeclaration:
        return self._definitions.declaration(app, queue)

    def _of(self, app: str) -> list[Supervisor]:
        return [supervisor for key, supervisor in self._supervisors.items() if key.app == app]

    def _supervisor(self, app: AppRecord, record: InstanceRecord, run: RunRecord | None) -> Supervisor:
        spec = self._definitions.effective(app, record.spec)
        return Supervisor(
            self._world,
            self._journal,
            self._watch,
            self.name,
            self._definitions.node_name(record.key),
            record,
            spec,
            self._definitions.declarations(app.name, spec),
            run,
            self._settled,
        )

    def _settled(self, supervisor: Supervisor) -> None:
        if supervisor.record.deleting:
            self._later(self._remove(supervisor))

    async def _remove(self, supervisor: Supervisor) -> None:
        key = supervisor.key
        async with self._locks[key.app]:
            if self._supervisors.get(key) is not supervisor or not supervisor.settled:
                return
            await self._world.logs.remove(key)
            await self._journal.commit(RemoveInstance(key), events=[("instance.deleted", key.app, key.name, {})])
            del self._supervisors[key]
            supervisor.gone()

    def _heard(self, pid: int, report: Heartbeat) -> None:
        if supervisor := self._by_pid(pid):
            supervisor.heard(report)

    def _hung_up(self, pid: int) -> None:
        if supervisor := self._by_pid(pid):
            supervisor.hung_up()

    def _by_pid(self, pid: int) -> Supervisor | None:
        for supervisor in self._supervisors.values():
            if supervisor.process is not None and supervisor.process.identity.pid == pid:
                return supervisor
        return None

    def _later(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            level = log.error if isinstance(error, BranchdError) else log.critical
            level("in the background", error=f"{type(error).__name__}: {error}")


def _expect(record: AppRecord | InstanceRecord | None, match: int | None) -> None:
    """If-Match: the generation that the writer has seen."""
    if match is not None and (record is None or record.generation != match):
        now = "it does not exist" if record is None else f"it is at generation {record.generation} now"
        raise Stale(f"it was changed since generation {match}: {now}", "read it again, then repeat your change")


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
