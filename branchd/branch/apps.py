"""Use cases of apps and of the queues that they declare.

A branch with a broker writes what its neighbourhood shares, and one without writes its own. An app that it has of its
own stays that, whoever writes it, until an operator publishes it or adopts the shared one.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from branchd.branch.definitions import MOST, check_name, declared
from branchd.branch.fleet import Fleet, expect_new
from branchd.branch.journal import Told
from branchd.branch.layers import app_entry, queue_entry, tombstone
from branchd.branch.records import AppRecord, AuthoredRecord, Put, QueueRecord, RemoveApp, RemoveAuthored, RemoveQueue
from branchd.branch.view import app_conditions, render_app, render_queue
from branchd.core.definitions import digest
from branchd.core.errors import Conflict, Invalid, Stale, Unavailable
from branchd.core.spec import Unusable, Wanted
from branchd.wire.resources import App, Queue
from branchd.wire.spec import accept, patched

if TYPE_CHECKING:
    from branchd.branch.mesh.sharing import Sharing

#: of an app, how many other branches have instances, and the names of those that did not say
Elsewhere = Callable[[str], Awaitable[tuple[int, Sequence[str]]]]


async def nowhere(_app: str) -> tuple[int, Sequence[str]]:
    """Without a neighbourhood."""
    return 0, ()


class Apps:
    def __init__(
        self, fleet: Fleet, sharing: "Sharing | None" = None, instances_elsewhere: Elsewhere = nowhere
    ) -> None:
        """`sharing`: None without a broker."""
        self._fleet = fleet
        self._definitions = fleet.definitions
        self._sharing = sharing
        self._instances_elsewhere = instances_elsewhere

    def list(self) -> list[App]:
        return [self.get(name) for name in self._definitions.names()]

    def get(self, app: str) -> App:
        record = self._definitions.app(app)
        conflict = self._definitions.conflict(app)
        told = self._sharing is not None or conflict
        conditions = app_conditions(app, shared=record.stamp is not None, conflict=conflict) if told else ()
        return render_app(record, len(self._fleet.of(app)), conditions)

    def tag(self, app: str) -> str:
        """Names the version of its definition that this branch goes by; of a shared one the same at every branch."""
        return self._definitions.tag(self._definitions.app(app))

    async def put(self, app: str, spec: Any, match: str | None = None, new: bool = False) -> tuple[App, bool]:
        """The app, and whether it is new, as with `new` it must be. Invalid also where an instance of it would be.

        Who says all of it is its author: it is bound by no rule for other branches any more. `match`: the tag that it
        must still have, else Stale.
        """
        check_name(app, "/app", "app name")
        async with self._fleet.lock(app):
            self._definitions.check_open(app)
            old = self._definitions.find(app)
            self._expect(old, match)
            if new:
                expect_new(old)
            if old is None and len(self._definitions.names()) >= MOST:
                raise Conflict(f"there are {MOST} apps already")
            await self._write(app, old, accept(spec, dict(old.spec) if old else {}), authored=True)
        return self.get(app), old is None

    async def patch(self, app: str, patch: Any, match: str | None = None, restart: bool = False) -> App:
        """What is not named stays as it was, and so does whose it is: a part of another's is not looked at by patching.

        `restart`: every instance of it that is wanted up, now; without it, none.
        """
        async with self._fleet.lock(app):
            old = self._definitions.app(app)
            self._definitions.check_open(app)
            self._expect(old, match)
            authored = self._definitions.authored(app, old.spec)
            await self._write(app, old, patched(dict(old.spec), patch), authored=authored)
        if restart:
            restarted = [supervisor for supervisor in self._fleet.of(app) if supervisor.spec.wanted is Wanted.UP]
            for supervisor in restarted:
                supervisor.restart()
            for supervisor in restarted:
                await supervisor.begun()
        return self.get(app)

    async def publish(self, app: str) -> App:
        """This branch's own definition, with its queues, becomes the shared one. Conflict where it cannot."""
        async with self._fleet.lock(app):
            self._definitions.app(app)
            self._definitions.check_open(app)
            await self._neighbourhood().publish(app)
        return self.get(app)

    async def adopt(self, app: str) -> App:
        """The shared definition, with its queues, takes the place of this branch's own. Conflict where it cannot."""
        async with self._fleet.lock(app):
            self._definitions.app(app)
            self._definitions.check_open(app)
            await self._neighbourhood().adopt(app)
        return self.get(app)

    def _neighbourhood(self) -> "Sharing":
        if self._sharing is None:
            raise Conflict("this branch has no broker, so it shares nothing", "set [mesh] broker")
        return self._sharing

    def _expect(self, record: AppRecord | None, match: str | None) -> None:
        tag = None if record is None else self._definitions.tag(record)
        if match is not None and tag != match:
            now = "it does not exist" if record is None else f"it is at generation {record.generation} now"
            raise Stale(f"it was changed meanwhile: {now}", "read it again, then repeat your change")

    async def _write(self, app: str, old: AppRecord | None, raw: Mapping[str, Any], *, authored: bool) -> None:
        written = [Put(AuthoredRecord(app, digest(raw)))] if authored else []
        if old is None:
            new = AppRecord(app, raw, 1, self._fleet.world.wall())
        elif digest(old.spec) == digest(raw):
            if authored and not self._definitions.authored(app, raw):
                await self._fleet.journal.commit(*written)
                self._definitions.apply(*written)
                self._fleet.reapply(app)
            return
        else:
            new = replace(old, spec=raw, generation=old.generation + 1, stamp=None)
        # A change that would break an instance is refused before anything is written.
        waiting = {}
        for supervisor in self._fleet.of(app):
            if not isinstance(supervisor.spec, Unusable):  # already, so this breaks nothing
                try:
                    spec = self._definitions.effective(new, supervisor.record.spec, authored=authored)
                except Invalid as invalid:
                    raise Invalid(invalid.faults, f"instance {supervisor.key} would be invalid") from None
                if spec.depends_on != supervisor.spec.depends_on:
                    waiting[supervisor.key] = spec
        self._fleet.order.check(waiting)
        kind = "app.created" if old is None else "app.changed"
        await self._commit(new, written, [(kind, app, None, {"generation": new.generation})])
        self._fleet.reapply(app)

    async def _commit(self, new: AppRecord, written: Sequence[Put], events: Sequence[Told]) -> None:
        app, definitions = new.name, self._definitions
        if self._sharing is None or definitions.own(app):
            changes = [*definitions.owned(app), Put(new), *written]
            await self._fleet.journal.commit(*changes, events=events)
            definitions.apply(*changes)
            if self._sharing is not None:
                await self._sharing.settle(app)
            return
        stamp = self._sharing.stamp()
        # A queue that was written elsewhere while its app was being deleted must not come back with the app's name.
        stray = definitions.entries.queues(app).values() if definitions.shared(app) is None else ()
        entries = [app_entry(new, stamp), *(tombstone(entry, stamp) for entry in stray)]
        await self._sharing.write(entries, *written, events=events)

    async def delete(self, app: str, cascade: bool = False, match: str | None = None) -> None:
        """Conflict while it has instances; `cascade` deletes them first, and waits for those of this branch.

        On other branches it deletes the placed ones.
        """
        with self._fleet.leave(app):
            await self._delete(app, cascade, match)

    async def _delete(self, app: str, cascade: bool, match: str | None) -> None:
        definitions, sharing = self._definitions, self._sharing
        self._check_deletable(app, cascade)
        if definitions.app(app).stamp is not None and not cascade:
            await self._check_elsewhere(app)
        async with self._fleet.lock(app):
            record = definitions.app(app)
            self._expect(record, match)
            self._check_deletable(app, cascade)
            stamp = None if sharing is None or record.stamp is None else sharing.stamp()
            instances = self._fleet.of(app)
            for supervisor in instances:  # first: none is left behind by a daemon that ends before the next commit
                await self._fleet.begin_delete(supervisor)
            if sharing is not None and stamp is not None:
                entries = [tombstone(entry, stamp, cascade=cascade) for entry in definitions.entries_of(app)]
                await sharing.write(entries, RemoveAuthored(app), events=[("app.deleted", app, None, {})])
        for supervisor in instances:
            while self._fleet.find(supervisor.key) is supervisor:
                await supervisor.changed()
        async with self._fleet.lock(app):
            if record.stamp is None:
                definitions.app(app)
                if self._fleet.of(app):
                    raise Conflict(f"app {app} has got new instances meanwhile")
                gone = RemoveApp(app), RemoveAuthored(app)
                await self._fleet.journal.commit(*gone, events=[("app.deleted", app, None, {})])
                definitions.apply(*gone)
            if not self._fleet.of(app):
                definitions.forget(app)

    def _check_deletable(self, app: str, cascade: bool) -> None:
        self._definitions.check_open(app)
        if self._definitions.app(app).stamp is not None and self._sharing is None:
            raise Conflict(f"app {app} is its neighbourhood's, and this branch has no broker now", "set [mesh] broker")
        if self._definitions.both(app):
            hint = f"branchctl app adopt {app} drops this one, branchctl app publish {app} the other"
            raise Conflict(f"app {app} is defined here, and in the neighbourhood too", hint)
        if (instances := self._fleet.of(app)) and not cascade:
            raise Conflict(f"app {app} has {len(instances)} instances", "delete them first, or use cascade")

    async def _check_elsewhere(self, app: str) -> None:
        count, unreachable = await self._instances_elsewhere(app)
        if count:
            hint = "branchctl ps lists them; delete them first, or use cascade"
            raise Conflict(f"app {app} has instances on {count} other {'branch' if count == 1 else 'branches'}", hint)
        if unreachable:
            raise Unavailable(
                f"whether app {app} has instances is not known of {', '.join(unreachable)}",
                "try again when they are back, or use cascade",
            )


class Queues:
    """Declarations of queues; who consumes from them is the instances'."""

    def __init__(self, fleet: Fleet, sharing: "Sharing | None" = None) -> None:
        self._fleet = fleet
        self._definitions = fleet.definitions
        self._sharing = sharing

    def list(self, app: str) -> list[Queue]:
        self._definitions.app(app)
        return [render_queue(record) for _, record in sorted(self._definitions.queues_of(app).items())]

    def get(self, app: str, queue: str) -> Queue:
        return render_queue(self._definitions.queue(app, queue))

    async def put(self, app: str, queue: str, declaration: Any, new: bool = False) -> tuple[Queue, bool]:
        """The queue, and whether it is new, as with `new` it must be."""
        async with self._fleet.lock(app):
            self._definitions.app(app)
            self._definitions.check_open(app)
            old = self._definitions.find_queue(app, queue)
            if new:
                expect_new(old)
            if old is None and len(self._definitions.queues_of(app)) >= MOST:
                raise Conflict(f"app {app} declares {MOST} queues already")
            record = QueueRecord(app, declared(queue, declaration))
            if old != record:
                kind = "queue.created" if old is None else "queue.changed"
                await self._commit(app, queue, record, [(kind, app, None, {"queue": queue})])
        return render_queue(record), old is None

    async def delete(self, app: str, queue: str) -> None:
        async with self._fleet.lock(app):
            self._definitions.queue(app, queue)
            self._definitions.check_open(app)
            await self._commit(app, queue, None, [("queue.deleted", app, None, {"queue": queue})])

    async def _commit(self, app: str, name: str, record: QueueRecord | None, events: Sequence[Told]) -> None:
        """None: the queue goes."""
        definitions, sharing = self._definitions, self._sharing
        if sharing is not None and definitions.shared(app) is not None and not definitions.own(app):
            stamp = sharing.stamp()
            known = definitions.entries.queues(app).get(name)
            if record is not None:
                await sharing.write([queue_entry(record, stamp)], events=events)
            elif known is not None:
                await sharing.write([tombstone(known, stamp)], events=events)
        else:
            changes = [*definitions.owned(app), RemoveQueue(app, name) if record is None else Put(record)]
            await self._fleet.journal.commit(*changes, events=events)
            definitions.apply(*changes)
            if sharing is not None:
                await sharing.settle(app)
        self._fleet.reapply(app)
