"""Definitions in files: what they say that is not so here yet, and making it so.

What a file defines is its own: the API changes none of it (FileOwned), only whether it is wanted up, which is
remembered as ever. Where anything at all is wrong in the files, nothing of them is applied, and what was applied before
goes on. What a difference consists of is decided in file_changes.py.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import Any

import structlog
from msgspec import Struct, field
from msgspec.structs import replace

from branchd.branch.file_changes import AppChange, Present, compare, goes_along, release
from branchd.branch.file_definitions import Read, faults
from branchd.branch.fleet import Fleet
from branchd.branch.operations import Progress
from branchd.branch.records import AppRecord, InstanceRecord, Put, Raw, RemoveApp, RemoveAuthored
from branchd.branch.rolling import one_by_one
from branchd.branch.world import Policies
from branchd.core.differences import Action as Act
from branchd.core.differences import Item, Thing
from branchd.core.errors import BranchdError, Conflict, Fault, Invalid, NotFound
from branchd.core.file_apps import FileDefinitions
from branchd.core.spec import Spec, Unusable, Wanted
from branchd.core.value import Value
from branchd.core.values import Key
from branchd.wire.resources import StepState

log = structlog.get_logger(__name__)


class Difference(Value):
    """Between the files and what was applied of them."""

    added: tuple[str, ...] = ()  #: apps
    changed: tuple[str, ...] = ()  #: apps; also those of which only instances are to be restarted
    removed: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()  #: all of it, app by app
    faults: tuple[Fault, ...] = ()  #: of the files; where there are any nothing is applied
    files: tuple[str, ...] = ()  #: that were read


class _Compared(Struct):
    """One app: what the files say of it, against what is here at that moment."""

    change: AppChange
    specs: dict[str, Spec] = field(default_factory=dict)  #: of its instances, as they would count; those that are valid


class _Look(Struct):
    """What the files said at one moment, against what is here then or, app by app, a little later."""

    found: FileDefinitions
    changes: dict[str, AppChange] = field(default_factory=dict)  #: by app, those without a change too
    restarts: dict[str, set[str]] = field(default_factory=dict)  #: by app, names of instances
    faults: tuple[Fault, ...] = ()


async def nothing() -> FileDefinitions:
    """Of a branch without files."""
    return FileDefinitions()


class Files:
    def __init__(self, fleet: Fleet, policies: Policies, read: Read) -> None:
        self._fleet = fleet
        self._definitions = fleet.definitions
        self._policies = policies
        self._read = read
        self._updating = asyncio.Lock()
        self._left_over: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.faults: tuple[Fault, ...] = ()  #: when they were read last
        self._left: dict[str, tuple[str, ...]] = {}  #: by app, labels of what no file defines any more and is here

    @property
    def left(self) -> tuple[str, ...]:
        """What update() would take away, by the files as they were read last."""
        return tuple(label for labels in self._left.values() for label in labels)

    async def settle(self) -> None:
        """At the daemon's start, before a supervisor is resumed: what files say counts from now on.

        What runs is adopted, and not restarted for it. Nothing is taken away: the files may be missing because their
        disk is. Where they cannot be applied, what was applied before counts.
        """
        look = await self._look()
        if look.faults:
            log.error("definitions in files not applied", faults=len(look.faults), first=_told(look.faults[0]))
            return
        if self.left:
            log.warning("not in the files any more, and left as it is", what=", ".join(self.left))
        for app, whole in look.changes.items():
            change = whole.without_removals()
            try:
                if change.items:
                    await self._fleet.define(app, change.changes, change.events, begun=False)
                    log.info("definitions in files applied", app=app, what=change.kind)
            except BranchdError as error:
                log.error("definitions in files not applied", app=app, reason=error.detail)
            else:
                if change.awaited:
                    self._left_over.append(partial(self._define, app, look.found, removing=False))

    def begin(self) -> None:
        """After that, when all were resumed: what had to wait for what is being deleted."""
        for work in self._left_over:
            self._fleet.later(work())
        self._left_over.clear()

    async def reread(self) -> Difference:
        """What update() would do; nothing is changed."""
        return self._difference(await self._look())

    async def add(self, app: str) -> None:
        """Defines what the files say of this app, which is not here yet, and starts what is wanted up.

        NotFound where no file defines it; Conflict where it is here; Invalid.
        """
        async with self._updating:
            look = _sound(await self._look())
            if app not in look.found.apps:
                raise NotFound(f"no file defines app {app[:80]!r}")
            if look.changes[app].kind != "added":
                raise Conflict(f"app {app} is here already", "update takes up what was changed")
            await self._define(app, look.found)

    async def remove(self, app: str) -> None:
        """Takes away what was applied of this app, none of which runs; its file may still define it.

        NotFound where there is no app of a file here of that name; Conflict where something of it still runs.
        """
        async with self._updating:
            if not self._definitions.source(app):
                raise NotFound(f"there is no app {app[:80]!r} of a file here")
            running = [str(one.key) for one in self._fleet.of(app) if goes_along(one.record) and not one.settled]
            if running:
                raise Conflict(f"{', '.join(running[:5])} still runs", "stop it first")
            await self._define(app, FileDefinitions())

    async def update(self, apps: Collection[str] | None = None, progress: Progress | None = None) -> Difference:
        """Makes it as the files say, or what they say of these apps; what that was.

        New instances are started, those that are no more stopped and deleted, and those whose process needs it are
        restarted, of each app one after the other, each when the one before is ready. Invalid where anything is wrong
        in the files, NotFound for an app that is neither there nor here: nothing is changed then. Conflict where
        something does not come up again; the rest of its app is not restarted then.
        """
        async with self._updating:
            look = _sound(await self._look(apps))
            difference = self._difference(look, apps)
            progress = Progress() if progress is None else progress
            progress.plan([item.label for item in difference.items])
            by_app = groupby(difference.items, lambda item: item.app)
            made = [self._make(app, list(items), look.found, progress) for app, items in by_app]
            for ended in await asyncio.gather(*made, return_exceptions=True):
                if isinstance(ended, BaseException):
                    raise ended
            return difference

    async def check(self, apps: Collection[str] | None) -> None:
        """Whether update() can begin. Invalid, NotFound."""
        _sound(await self._look(apps))

    async def defined(self) -> FileDefinitions:
        """What the files say now, whether or not it is here; nothing where anything is wrong in them."""
        look = await self._look()
        return FileDefinitions() if look.faults else look.found

    # Looking

    async def _look(self, apps: Collection[str] | None = None) -> _Look:
        """Reads the files. NotFound where one of `apps` is neither there nor here.

        Of hundreds of apps that takes long, and the loop has others to serve: what looks at the files alone is done in
        a thread, and between two apps that are compared all others have their turn.
        """
        found = await self._read()
        look = _Look(found)
        look.faults = await asyncio.to_thread(faults, found, self._policies, self._definitions.own_account)
        if not look.faults:
            specs: dict[Key, Spec] = {}
            for app in self._names(found):
                await asyncio.sleep(0)
                if app in found.apps or self._definitions.source(app):  # else an update took it away meanwhile
                    specs |= self._look_at(app, look)
            for app in self._left.keys() - look.changes.keys():
                del self._left[app]
            look.faults = (
                *(fault for change in look.changes.values() for fault in change.faults),
                *self._circles(specs),
            )
        self.faults = look.faults
        if not look.faults:
            for app in apps or ():
                if app not in look.changes:
                    raise NotFound(f"no file defines app {app[:80]!r}", "branchctl reread tells what the files define")
        return look

    def _look_at(self, app: str, look: _Look) -> dict[Key, Spec]:
        """Adds the app to the look; the specs of its instances as they would be."""
        compared = self._compared(app, look.found)
        change = look.changes[app] = compared.change
        look.restarts[app] = self._restarts(compared)
        self._left.pop(app, None)
        if labels := tuple(item.label for item in change.removals):
            self._left[app] = labels
        return {} if change.faults else {Key(app, name): spec for name, spec in compared.specs.items()}

    def _names(self, found: FileDefinitions) -> list[str]:
        return sorted({*found.apps, *self._definitions.from_files()})

    def _compared(self, app: str, found: FileDefinitions) -> _Compared:
        definitions = self._definitions
        here = {one.key.name: one.record for one in self._fleet.of(app)}
        present = Present(definitions.own_app(app), definitions.own_queues(app), here)
        if app not in found.apps:
            return _Compared(release(present, shared=definitions.shared(app) is not None))
        compared = _Compared(compare(present, found.apps[app], self._fleet.world.wall()))
        broken = [*compared.change.faults]
        record, raws = self._after(compared.change)
        for name, raw in raws.items():
            try:
                compared.specs[name] = definitions.effective(record, raw, authored=True)
            except Invalid as invalid:
                supervisor = self._fleet.find(Key(app, name))
                # What the API made of this app may be invalid by it; what is Unusable already is not its doing.
                if supervisor and not supervisor.record.source and not isinstance(supervisor.spec, Unusable):
                    told = f"{supervisor.key}, which the API made, would be invalid: {invalid.faults[0].pointer}"
                    hint = "delete it, or give it what the app no longer says"
                    broken.append(Fault(found.apps[app].place(), told, hint))
        compared.change = replace(compared.change, faults=tuple(broken))
        return compared

    def _circles(self, specs: Mapping[Key, Spec]) -> Iterator[Fault]:
        """What would wait for itself: across all files, and what else is here."""
        try:
            self._fleet.order.check(specs)
        except Invalid as invalid:
            for fault in invalid.faults:
                yield Fault("depends_on", fault.detail, fault.hint)

    def _after(self, change: AppChange) -> tuple[AppRecord, dict[str, Raw]]:
        """The app, and the specs of its instances that stay, as they are when the change is made."""
        written = [one.record for one in change.changes if isinstance(one, Put)]
        apps = [record for record in written if isinstance(record, AppRecord)]
        records = {one.key.name: one.record for one in self._fleet.of(change.app)}
        records |= {record.key.name: record for record in written if isinstance(record, InstanceRecord)}
        specs = {name: record.spec for name, record in records.items() if not record.deleting}
        return (apps[0] if apps else self._definitions.app(change.app)), specs

    def _difference(self, look: _Look, apps: Collection[str] | None = None) -> Difference:
        if look.faults:
            return Difference(faults=look.faults, files=look.found.files)
        kinds: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
        items: list[Item] = []
        for app, change in look.changes.items():
            if apps is not None and app not in apps:
                continue
            restarts = look.restarts[app]
            told = [replace(item, restart=item.thing is Thing.INSTANCE and item.name in restarts)
                    for item in change.items]  # fmt: skip
            alone = restarts - {item.name for item in change.items if item.thing is Thing.INSTANCE}
            told += [Item(Thing.INSTANCE, app, name, Act.RESTART, restart=True) for name in sorted(alone)]
            if told:
                kinds[change.kind or "changed"].append(app)
            items += told
        added, changed, removed = map(tuple, kinds.values())
        return Difference(added, changed, removed, tuple(items), files=look.found.files)

    def _restarts(self, compared: _Compared) -> set[str]:
        """Instances that run with something else than counts for them after the change.

        Of those that the API made only such as this change makes outdated: the others are as somebody left them. What
        would be invalid is Unusable already, and not started again before somebody mends it.
        """
        change = compared.change
        taken = {item.name for item in change.items if item.action is Act.TAKE}
        found = set()
        for name, spec in compared.specs.items():
            supervisor = self._fleet.find(Key(change.app, name))
            if supervisor is None or supervisor.spec.wanted is Wanted.DOWN:
                continue
            if supervisor.outdated(spec) and (supervisor.record.source or name in taken or not supervisor.outdated()):
                found.add(name)
        return found

    # Doing

    async def _make(self, app: str, items: list[Item], found: FileDefinitions, progress: Progress) -> None:
        if any(item.action is not Act.RESTART for item in items):
            await self._define(app, found)
        for item in items:
            if not item.restart:
                progress.step(item.label, StepState.DONE, _DONE[item.action])
        names = {item.name for item in items if item.restart}
        restarts = [one for one in self._fleet.of(app) if one.key.name in names]
        restarts.sort(key=lambda one: (one.spec.priority, one.key))
        if failure := await one_by_one(self._fleet, restarts, progress, outdated=True):
            raise failure

    async def _define(self, app: str, found: FileDefinitions, *, removing: bool = True) -> None:
        """As it stands now: nobody else changed it since. Returns when what goes is gone. Invalid."""
        for key in self._compared(app, found).change.awaited:
            await self._gone(key)
        with ExitStack() as stack:
            async with self._fleet.lock(app):
                change = self._compared(app, found).change
                if change.faults:
                    raise Invalid(list(change.faults))
                if not removing:
                    change = change.without_removals()
                if change.kind == "removed":
                    stack.enter_context(self._fleet.leave(app))
                if change.items:
                    await self._fleet.define(app, change.changes, change.events)
            if change.kind == "removed":
                await self._end(app)
        for item in change.items:
            if item.thing is Thing.INSTANCE and item.action is Act.DELETE:
                await self._gone(Key(app, item.name))
        if removing:
            self._left.pop(app, None)

    async def _end(self, app: str) -> None:
        """Of an app that no file defines any more, when its instances are gone: it goes, or becomes the API's."""
        with self._fleet.leave(app):
            for supervisor in self._fleet.of(app):
                if goes_along(supervisor.record):
                    await self._gone(supervisor.key)
            await self._forget(app)

    async def _forget(self, app: str) -> None:
        async with self._fleet.lock(app):
            definitions = self._definitions
            old = definitions.own_app(app)
            if old is None or not old.source:
                return
            left = [one for one in self._fleet.of(app) if not one.record.deleting]
            if left and definitions.shared(app) is None:
                await self._fleet.define(
                    app, [Put(replace(old, source=""))], [("app.changed", app, None, {"file": ""})]
                )
            else:
                gone = RemoveApp(app), RemoveAuthored(app)
                await self._fleet.define(app, gone, [("app.deleted", app, None, {"file": old.source})])
                if not self._fleet.of(app):
                    definitions.forget(app)

    async def _gone(self, key: Key) -> None:
        supervisor = self._fleet.find(key)
        while supervisor is not None and supervisor.record.deleting and self._fleet.find(key) is supervisor:
            await supervisor.changed()


_DONE = {
    Act.CREATE: "created", Act.CHANGE: "changed", Act.TAKE: "taken over", Act.DELETE: "deleted",
    Act.RELEASE: "is the API's now",
}  # fmt: skip


def _sound(look: _Look) -> _Look:
    """Invalid, with all faults of the files."""
    if look.faults:
        count = len(look.faults)
        raise Invalid(list(look.faults), f"the definitions in files have {count} fault{'s' if count > 1 else ''}")
    return look


def _told(fault: Fault) -> str:
    return f"{fault.pointer}: {fault.detail}"
