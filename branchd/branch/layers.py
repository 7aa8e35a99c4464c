"""Apps and their queues in two layers: this branch's own, and those that the neighbourhood shares.

An app and its queues stand in one layer: where this branch has an app of its own, that is the one that its instances
go by, and the shared one of that name waits for an operator's word. Look-ups, and records from one layer made into the
other's; what may be written is said in definitions.py and apps.py, and how the shared layer spreads in mesh/sharing.py.
"""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from branchd.branch.records import (
    AppRecord,
    AuthoredRecord,
    Change,
    Put,
    QueueRecord,
    Raw,
    RemoveApp,
    RemoveAuthored,
    RemoveEntry,
    RemoveQueue,
    Snapshot,
)
from branchd.core.definitions import Shared, digest
from branchd.core.errors import FileOwned, Invalid, NotFound
from branchd.core.faults import name_fault, queue_fault
from branchd.core.spec import ABSENCE, MOST_REPLICAS
from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.core.value import Value
from branchd.core.values import QueueDeclaration
from branchd.wire.decode import decode, encode

#: what to do instead of changing over the API what a file defines
FILE_CURE = "change it there, then `branchctl update`"

#: changes of one app; what a store can count
MOST_GENERATIONS = 1 << 53


class Layers:
    def __init__(self, snapshot: Snapshot) -> None:
        self.entries = Shared(snapshot.entries)
        self.branch = snapshot.branch_id
        self._apps = {app.name: app for app in snapshot.apps}
        self._authored = {record.app: record.digest for record in snapshot.authored}
        self._queues: dict[str, dict[str, QueueRecord]] = {}
        for record in snapshot.queues:
            self._queues.setdefault(record.app, {})[record.queue.name] = record
        #: Apps without a definition that have instances here: it may come later than they do, and go earlier.
        self._bare: dict[str, AppRecord] = {}
        for name in {instance.key.app for instance in snapshot.instances}:
            if self.find(name) is None:
                self._bare[name] = AppRecord(name, {})

    # What there is

    def names(self) -> list[str]:
        return sorted({*self._apps, *self.entries.apps, *self._bare})

    def find(self, name: str) -> AppRecord | None:
        if (own := self._apps.get(name)) is not None:
            return own
        entry = self.entries.apps.get(name)
        return self._bare.get(name) if entry is None else app_of(entry)

    def app(self, name: str) -> AppRecord:
        """NotFound."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"there is no app {name[:80]!r}", "branchctl app ls lists them")
        return found

    def queues_of(self, app: str) -> Mapping[str, QueueRecord]:
        if app in self._apps:
            return self._queues.get(app, {})
        return self._shared_queues(app) if app in self.entries.apps else {}

    def find_queue(self, app: str, name: str) -> QueueRecord | None:
        if app in self._apps:
            return self._queues.get(app, {}).get(name)
        entry = self.entries.queues(app).get(name) if app in self.entries.apps else None
        return None if entry is None else _queue_of(entry)

    def queue(self, app: str, name: str) -> QueueRecord:
        """NotFound."""
        self.app(app)
        found = self.find_queue(app, name)
        if found is None:
            raise NotFound(f"app {app} declares no queue {name[:80]!r}")
        return found

    def tag(self, record: AppRecord) -> str:
        """Names this very version of it; of a shared one the same at every branch."""
        stamp = record.stamp
        return f"{self.branch}.{record.generation}" if stamp is None else f"{stamp.branch}.{stamp.time}"

    def authored(self, app: str, spec: Raw) -> bool:
        """Whether an operator of this branch wrote the app just so. Its stamp does not tell: peers write any."""
        return self._authored.get(app) == digest(spec)

    # Where it stands

    def own(self, app: str) -> bool:
        """Whether this branch has a definition of its own."""
        return app in self._apps

    def bare(self, app: str) -> bool:
        """Whether there are only instances of it, or there were."""
        return app in self._bare and app not in self._apps and app not in self.entries.apps

    def own_app(self, app: str) -> AppRecord | None:
        """This branch's own definition."""
        return self._apps.get(app)

    def own_queues(self, app: str) -> Mapping[str, QueueRecord]:
        """Of this branch's own definition."""
        return self._queues.get(app, {})

    def source(self, app: str) -> str:
        """The file that defines it; empty where none does."""
        own = self._apps.get(app)
        return "" if own is None else own.source

    def from_files(self) -> list[str]:
        """The apps that files define, as last applied."""
        return sorted(name for name, app in self._apps.items() if app.source)

    def check_open(self, app: str) -> None:
        """FileOwned where a file defines the app: then that alone says what the app and its queues are."""
        if source := self.source(app):
            raise FileOwned(f"app {app} is defined in {source}", FILE_CURE)

    def shared(self, app: str) -> Entry | None:
        """The neighbourhood's definition of it."""
        return self.entries.apps.get(app)

    def entries_of(self, app: str) -> tuple[Entry, ...]:
        """The neighbourhood's definitions of the app and its queues; empty where it has none."""
        entry = self.shared(app)
        return () if entry is None else (entry, *self.entries.queues(app).values())

    def both(self, app: str) -> bool:
        return app in self._apps and app in self.entries.apps

    def twins(self, app: str) -> bool:
        """Whether both layers have it, and say the same; what a file defines stays this branch's own even so."""
        return self.both(app) and not self.source(app) and self._same(app)

    def conflict(self, app: str) -> bool:
        """Whether both layers have it, and differ."""
        return self.both(app) and not self._same(app)

    def _same(self, app: str) -> bool:
        specs = digest(app_of(self.entries.apps[app]).spec), digest(self._apps[app].spec)
        return specs[0] == specs[1] and self._shared_queues(app) == self._queues.get(app, {})

    def _shared_queues(self, app: str) -> Mapping[str, QueueRecord]:
        return {name: _queue_of(entry) for name, entry in self.entries.queues(app).items()}

    def replicated(self) -> dict[str, tuple[int, float | None]]:
        """Of the neighbourhood's apps with replicas: how many, and how long one is missing until it is made again.

        None: that it never is. What came from elsewhere may be wrong, and is passed over then.
        """
        found: dict[str, tuple[int, float | None]] = {}
        for name, entry in self.entries.apps.items():
            spec = entry.value["spec"] if entry.value else {}
            count, absence = spec.get("replicas"), spec.get("absence", ABSENCE)
            if type(count) is int and 0 <= count <= MOST_REPLICAS:
                found[name] = count, float(absence) if isinstance(absence, int | float) else None
        return found

    def own_replicas(self, app: str) -> int | None:
        """How many of an app of this branch's own are kept here; None: it is not for this branch alone to say."""
        own = self._apps.get(app)
        if own is None or app in self.entries.apps:
            return None
        count = own.spec.get("replicas")
        return count if type(count) is int and 0 <= count <= MOST_REPLICAS else 0

    # Changes, made here after they were committed

    def apply(self, *changes: Change) -> None:
        """Those of apps, queues and entries. An app that is no more is bare until forget() is called."""
        for change in changes:
            match change:
                case Put(AppRecord() as app):
                    self._apps[app.name] = app
                case Put(AuthoredRecord(name, written)):
                    self._authored[name] = written
                case RemoveAuthored(name):
                    self._authored.pop(name, None)
                case Put(QueueRecord() as queue):
                    self._queues.setdefault(queue.app, {})[queue.queue.name] = queue
                case Put(Entry() as entry):
                    before = self.find(entry.app)
                    self.entries.take([entry])
                    self._strip(before)
                case RemoveApp(name):
                    before = self._apps.pop(name, None)
                    self._queues.pop(name, None)
                    self._strip(before)
                case RemoveQueue(app_name, name):
                    self._queues.get(app_name, {}).pop(name, None)
                case RemoveEntry(kind, app_name, name):
                    self.entries.forget((kind, app_name, name))
                case _:
                    pass

    def forget(self, app: str) -> None:
        """There are no instances of an app without a definition, or no more."""
        self._bare.pop(app, None)

    def _strip(self, before: AppRecord | None) -> None:
        if before is not None and self.find(before.name) is None:
            self._bare[before.name] = replace(before, stamp=None)

    def owned(self, app: str) -> tuple[Put, ...]:
        """The changes that make the neighbourhood's definition of it, and of its queues, this branch's own as well."""
        entry = self.shared(app)
        if entry is None or app in self._apps:
            return ()
        return (Put(replace(app_of(entry), stamp=None)), *map(Put, self.queues_of(app).values()))


class _AppValue(Value):
    spec: Mapping[str, Any]
    generation: int
    created_at: float  #: seconds since 1970


def app_entry(record: AppRecord, stamp: Stamp) -> Entry:
    value = _AppValue(record.spec, record.generation, record.created_at)
    return Entry(EntryKind.APP, record.name, "", stamp, encode(value))


def queue_entry(record: QueueRecord, stamp: Stamp) -> Entry:
    return Entry(EntryKind.QUEUE, record.app, record.queue.name, stamp, encode(record.queue))


def tombstone(entry: Entry, stamp: Stamp, *, cascade: bool = False) -> Entry:
    return Entry(entry.kind, entry.app, entry.name, stamp, None, cascade)


def app_of(entry: Entry) -> AppRecord:
    """Of an app's entry that is no tombstone."""
    assert entry.value is not None
    return AppRecord(entry.app, **entry.value, stamp=entry.stamp)


def readable(entry: Entry) -> bool:
    """Whether another branch's entry can be kept: its names are names, and its value is of its kind."""
    is_app = entry.kind is EntryKind.APP
    if name_fault(entry.app, "", "") or (entry.name if is_app else queue_fault(entry.name, "")):
        return False
    if name_fault(entry.stamp.branch, "", ""):
        return False  # it becomes part of a tag, which is a header
    try:
        if entry.value is not None:
            decode(_AppValue if is_app else QueueDeclaration, entry.value)
    except Invalid:
        return False
    if is_app:
        return entry.value is None or 0 < entry.value["generation"] < MOST_GENERATIONS
    return entry.value is None or entry.value["name"] == entry.name


def _queue_of(entry: Entry) -> QueueRecord:
    assert entry.value is not None
    return QueueRecord(entry.app, QueueDeclaration(**entry.value))
