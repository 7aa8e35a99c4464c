"""What a file's definition of an app changes here: decided, not done. Values in, values out; files.py does it.

`wanted` is not compared: it is what an operator has said last, and the file's is only where that begins.
"""

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from branchd.branch.definitions import declared
from branchd.branch.file_definitions import body
from branchd.branch.journal import Told
from branchd.branch.records import (
    AppRecord,
    AuthoredRecord,
    Change,
    InstanceRecord,
    Put,
    QueueRecord,
    Raw,
    RemoveQueue,
)
from branchd.core.definitions import digest
from branchd.core.differences import Action, Item, Thing, field_changes
from branchd.core.errors import Fault
from branchd.core.file_apps import FileApp
from branchd.core.spec import Wanted
from branchd.core.value import Value
from branchd.core.values import Key
from branchd.wire.decode import encode


class Present(Value):
    """What this branch has of an app."""

    app: AppRecord | None  #: its own definition; None where there is none, or only the neighbourhood's
    queues: Mapping[str, QueueRecord]  #: of its own definition
    instances: Mapping[str, InstanceRecord]


class Part(Value):
    item: Item
    changes: tuple[Change, ...] = ()
    event: Told | None = None
    removes: bool = False  #: something that is here is stopped and deleted by it


class AppChange(Value):
    """One app: what is told of it, and what to commit, all at once."""

    app: str
    parts: tuple[Part, ...] = ()
    faults: tuple[Fault, ...] = ()
    awaited: tuple[Key, ...] = ()  #: instances of that name are still being deleted, and come after that

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(part.item for part in self.parts)

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(change for part in self.parts for change in part.changes)

    @property
    def events(self) -> tuple[Told, ...]:
        return tuple(part.event for part in self.parts if part.event is not None)

    @property
    def removals(self) -> tuple[Item, ...]:
        return tuple(part.item for part in self.parts if part.removes)

    def without_removals(self) -> "AppChange":
        return replace(self, parts=tuple(part for part in self.parts if not part.removes))

    @property
    def kind(self) -> str:
        """added, changed, removed; or empty where all is as it is said."""
        mine = next((item.action for item in self.items if item.thing is Thing.APP), None)
        if mine in (Action.CREATE, Action.TAKE):
            return "added"
        if mine in (Action.DELETE, Action.RELEASE):
            return "removed"
        return "changed" if self.items else ""


def compare(present: Present, wanted: FileApp, now: float) -> AppChange:
    """What makes it as the file says. `now`: seconds since 1970."""
    parts = [*_app(present.app, wanted, now), *_queues(present.queues, wanted), *_instances(present, wanted, now)]
    faults = tuple(
        Fault(wanted.place("instances", name), "a placed instance of this name is here",
              "give this one another name, or delete that one first")
        for name in wanted.instances
        if (record := present.instances.get(name)) is not None and record.placed is not None
    )  # fmt: skip
    awaited = tuple(
        record.key for name in wanted.instances if (record := present.instances.get(name)) and record.deleting
    )
    return AppChange(wanted.name, tuple(parts), faults, awaited)


def release(present: Present, *, shared: bool) -> AppChange:
    """No file defines it any more: its file's instances go, and it goes after them, or stays with the API's.

    `shared`: the neighbourhood has a definition that others go by then.
    """
    app = present.app
    assert app is not None
    theirs = [record for record in present.instances.values() if not goes_along(record) and not record.deleting]
    kept = "" if not theirs else f"{len(theirs)} instances that the API made go by it"
    action = Action.DELETE if shared or not theirs else Action.RELEASE
    mine = Item(Thing.APP, app.name, "", action, detail=kept if action is Action.RELEASE else "")
    gone = [_gone(record) for record in present.instances.values() if goes_along(record) and not record.deleting]
    return AppChange(app.name, (Part(mine, removes=True), *gone))


def goes_along(record: InstanceRecord) -> bool:
    """Whether it goes with its file's app: what the file defines, and the replicas that the app asks for."""
    return bool(record.source) or record.replica


def _app(old: AppRecord | None, wanted: FileApp, now: float) -> Iterator[Part]:
    spec = dict(wanted.spec)
    authored = Put(AuthoredRecord(wanted.name, digest(spec)))
    if old is None:
        new = AppRecord(wanted.name, spec, 1, now, source=wanted.source)
        fields = field_changes({}, spec)
    else:
        fields = field_changes(old.spec, spec)
        changed = digest(old.spec) != digest(spec)
        new = replace(old, spec=spec, generation=old.generation + changed, source=wanted.source)
    if new == old:
        return
    action, kind = Action.CHANGE, "app.changed"
    if old is None:
        action, kind = Action.CREATE, "app.created"
    elif not old.source:
        action = Action.TAKE
    item = Item(Thing.APP, wanted.name, "", action, fields, detail=_moved("" if old is None else old.source, wanted))
    event = (kind, wanted.name, None, {"generation": new.generation, "file": wanted.source})
    fewer = old is not None and _replicas(spec) < _replicas(old.spec)
    yield Part(item, (Put(new), authored), event, removes=fewer)


def _replicas(spec: Raw) -> int:
    return int(spec.get("replicas") or 0)


def _queues(old: Mapping[str, QueueRecord], wanted: FileApp) -> Iterator[Part]:
    for name, given in wanted.queues.items():
        record, before = QueueRecord(wanted.name, declared(name, dict(given))), old.get(name)
        if record == before:
            continue
        said = {} if before is None else body(encode(before.queue))
        item = Item(Thing.QUEUE, wanted.name, name, Action.CHANGE if before else Action.CREATE,
                    field_changes(said, body(encode(record.queue))))  # fmt: skip
        kind = "queue.changed" if before else "queue.created"
        yield Part(item, (Put(record),), (kind, wanted.name, None, {"queue": name, "file": wanted.source}))
    for name in sorted(old.keys() - wanted.queues.keys()):
        item = Item(Thing.QUEUE, wanted.name, name, Action.DELETE)
        event = ("queue.deleted", wanted.name, None, {"queue": name, "file": wanted.source})
        yield Part(item, (RemoveQueue(wanted.name, name),), event, removes=True)


def _instances(present: Present, wanted: FileApp, now: float) -> Iterator[Part]:
    for name, given in wanted.instances.items():
        old = present.instances.get(name)
        if old is None:
            yield _new(wanted, name, given, now)
        elif not old.deleting and old.placed is None:
            yield from _changed(old, wanted, given)
    for record in present.instances.values():
        if record.source and not record.deleting and record.key.name not in wanted.instances:
            yield _gone(record)


def _new(wanted: FileApp, name: str, given: Raw, now: float) -> Part:
    begin = given.get("wanted", wanted.spec.get("wanted", Wanted.UP.value))
    record = InstanceRecord(Key(wanted.name, name), {**given, "wanted": begin}, 1, now, source=wanted.source)
    item = Item(Thing.INSTANCE, wanted.name, name, Action.CREATE, field_changes({}, given))
    return Part(item, (Put(record),), ("instance.created", wanted.name, name, {"file": wanted.source}))


def _changed(old: InstanceRecord, wanted: FileApp, given: Raw) -> Iterator[Part]:
    before, after = _without_wanted(old.spec), _without_wanted(given)
    remembered = old.spec.get("wanted", wanted.spec.get("wanted", Wanted.UP.value))
    changed = digest(before) != digest(after)
    new = replace(old, source=wanted.source)
    if changed:
        new = replace(new, spec={**after, "wanted": remembered}, generation=old.generation + 1)
    elif not old.source:
        new = replace(new, spec={**old.spec, "wanted": remembered})
    if new == old:
        return
    action = Action.CHANGE if old.source else Action.TAKE
    key = old.key
    item = Item(
        Thing.INSTANCE, key.app, key.name, action, field_changes(before, after), detail=_moved(old.source, wanted)
    )
    told = {"generation": new.generation, "file": wanted.source}
    yield Part(item, (Put(new),), ("instance.changed", key.app, key.name, told))


def _gone(record: InstanceRecord) -> Part:
    key = record.key
    return Part(
        Item(Thing.INSTANCE, key.app, key.name, Action.DELETE),
        (Put(replace(record, deleting=True)),),
        ("instance.deleting", key.app, key.name, {"file": record.source}),
        removes=True,
    )


def _without_wanted(raw: Raw) -> dict[str, object]:
    return {name: value for name, value in raw.items() if name != "wanted"}


def _moved(before: str, wanted: FileApp) -> str:
    return f"it was in {before}" if before and before != wanted.source else ""
