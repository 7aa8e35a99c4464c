"""Use cases of apps and of the queues that they declare."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from branchd.branch.definitions import MOST, check_name, declared
from branchd.branch.fleet import Fleet, expect, expect_new
from branchd.branch.journal import Told
from branchd.branch.records import AppRecord, Put, QueueRecord, RemoveApp, RemoveQueue
from branchd.branch.view import render_app, render_queue
from branchd.core.errors import Conflict, Invalid
from branchd.core.spec import Unusable, Wanted
from branchd.wire.resources import App, Queue
from branchd.wire.spec import accept, patched


class Apps:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._definitions = fleet.definitions

    def list(self) -> list[App]:
        return [self.get(name) for name in sorted(self._definitions.apps)]

    def get(self, app: str) -> App:
        return render_app(self._definitions.app(app), len(self._fleet.of(app)))

    async def put(self, app: str, spec: Any, match: int | None = None, new: bool = False) -> tuple[App, bool]:
        """The app, and whether it is new, as with `new` it must be. Invalid also where an instance of it would be."""
        check_name(app, "/app", "app name")
        async with self._fleet.lock(app):
            old = self._definitions.apps.get(app)
            expect(old, match)
            if new:
                expect_new(old)
            if old is None and len(self._definitions.apps) >= MOST:
                raise Conflict(f"there are {MOST} apps already")
            await self._write(app, old, accept(spec, dict(old.spec) if old else {}))
        return self.get(app), old is None

    async def patch(self, app: str, patch: Any, match: int | None = None, restart: bool = False) -> App:
        """`restart`: every instance of it that is wanted up, now; without it, none."""
        async with self._fleet.lock(app):
            old = self._definitions.app(app)
            expect(old, match)
            await self._write(app, old, patched(dict(old.spec), patch))
        if restart:
            for supervisor in self._fleet.of(app):
                if supervisor.spec.wanted is Wanted.UP:
                    supervisor.restart()
        return self.get(app)

    async def _write(self, app: str, old: AppRecord | None, raw: Mapping[str, Any]) -> None:
        if old is None:
            new = AppRecord(app, raw, 1, self._fleet.world.wall())
        elif dict(old.spec) == dict(raw):
            return
        else:
            new = replace(old, spec=raw, generation=old.generation + 1)
        # A change that would break an instance is refused before anything is written.
        specs = {}
        for supervisor in self._fleet.of(app):
            unusable = isinstance(supervisor.spec, Unusable)  # already, so this breaks nothing
            judge = self._definitions.standing if unusable else self._definitions.effective
            try:
                specs[supervisor] = judge(new, supervisor.record.spec)
            except Invalid as invalid:
                raise Invalid(invalid.faults, f"instance {supervisor.key} would be invalid") from None
        kind = "app.created" if old is None else "app.changed"
        await self._fleet.journal.commit(Put(new), events=[(kind, app, None, {"generation": new.generation})])
        self._definitions.apps[app] = new
        for supervisor, spec in specs.items():
            supervisor.redefine(supervisor.record, spec, self._definitions.declarations(app, spec))

    async def delete(self, app: str, cascade: bool = False) -> None:
        """Conflict while it has instances; `cascade` deletes them first, and waits for them."""
        async with self._fleet.lock(app):
            self._definitions.app(app)
            instances = self._fleet.of(app)
            if instances and not cascade:
                raise Conflict(f"app {app} has {len(instances)} instances", "delete them first, or use cascade")
            for supervisor in instances:
                await self._fleet.begin_delete(supervisor)
        for supervisor in instances:
            while self._fleet.find(supervisor.key) is supervisor:
                await supervisor.changed()
        async with self._fleet.lock(app):
            self._definitions.app(app)
            if self._fleet.of(app):
                raise Conflict(f"app {app} has got new instances meanwhile")
            await self._fleet.journal.commit(RemoveApp(app), events=[("app.deleted", app, None, {})])
            del self._definitions.apps[app]
            self._definitions.queues.pop(app, None)


class Queues:
    """Declarations of queues; who consumes from them is the instances'."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._definitions = fleet.definitions

    def list(self, app: str) -> list[Queue]:
        self._definitions.app(app)
        return [render_queue(record) for _, record in sorted(self._definitions.queues.get(app, {}).items())]

    def get(self, app: str, queue: str) -> Queue:
        return render_queue(self._definitions.queue(app, queue))

    async def put(self, app: str, queue: str, declaration: Any, new: bool = False) -> tuple[Queue, bool]:
        """The queue, and whether it is new, as with `new` it must be."""
        async with self._fleet.lock(app):
            self._definitions.app(app)
            queues = self._definitions.queues.setdefault(app, {})
            created = queue not in queues
            if new:
                expect_new(queues.get(queue))
            if created and len(queues) >= MOST:
                raise Conflict(f"app {app} declares {MOST} queues already")
            record = QueueRecord(app, declared(queue, declaration))
            if queues.get(queue) != record:
                kind = "queue.created" if created else "queue.changed"
                await self._fleet.journal.commit(Put(record), events=[(kind, app, None, {"queue": queue})])
                queues[queue] = record
                self._redeclare(app)
        return render_queue(record), created

    async def delete(self, app: str, queue: str) -> None:
        async with self._fleet.lock(app):
            self._definitions.queue(app, queue)
            events: list[Told] = [("queue.deleted", app, None, {"queue": queue})]
            await self._fleet.journal.commit(RemoveQueue(app, queue), events=events)
            del self._definitions.queues[app][queue]
            self._redeclare(app)

    def _redeclare(self, app: str) -> None:
        for supervisor in self._fleet.of(app):
            queues = self._definitions.declarations(app, supervisor.spec)
            supervisor.redefine(supervisor.record, supervisor.spec, queues)
