"""Store in memory, for tests of who uses the port: passes tests/adapters/conformance_store.py."""

import asyncio
from collections.abc import Sequence
from typing import Any

from branchd.branch.records import (
    REQUEST,
    AppRecord,
    AuthoredRecord,
    Change,
    EventRecord,
    Expire,
    InstanceRecord,
    OutcomeRecord,
    Put,
    QueueRecord,
    Record,
    Remember,
    RemoveApp,
    RemoveAuthored,
    RemoveEntry,
    RemoveInstance,
    RemoveOutcome,
    RemoveQueue,
    RemoveToken,
    RunRecord,
    Snapshot,
    TokenRecord,
)
from branchd.core.errors import Conflict, StorageFailed
from branchd.core.stamps import Entry

#: records by their class and key
Tables = dict[type, dict[Any, Any]]

_KINDS = (
    AppRecord, AuthoredRecord, QueueRecord, InstanceRecord, RunRecord, TokenRecord, EventRecord, OutcomeRecord, Entry,
    Remember,
)  # fmt: skip


class MemoryStore:
    """A daemon that starts again calls load() of the same store again."""

    def __init__(self, branch_id: str = "0123456789abcdef0123456789abcdef") -> None:
        self.full = False  #: as if the disk were full: no write is kept
        self.writes: list[tuple[Change, ...]] = []  #: what was kept, in order
        self.durable: list[bool] = []  #: which of it was to outlive a power cut
        self._branch_id = branch_id
        self._last_event = self._last_expired = 0
        self._tables: Tables = {kind: {} for kind in _KINDS}

    def load(self) -> Snapshot:
        return Snapshot(
            branch_id=self._branch_id,
            apps=self._sorted(AppRecord),
            authored=self._sorted(AuthoredRecord),
            queues=self._sorted(QueueRecord),
            instances=self._sorted(InstanceRecord),
            runs=self._sorted(RunRecord),
            tokens=self._sorted(TokenRecord),
            outcomes=self._sorted(OutcomeRecord),
            entries=self._sorted(Entry),
            last_event=self._last_event,
            facts={fact.name: fact.value for fact in self._sorted(Remember)},
        )

    async def write(self, *changes: Change, durable: bool = True) -> None:
        if self.full:
            raise StorageFailed("the store is full", "free space on the disk; running instances go on")
        tables = {kind: dict(records) for kind, records in self._tables.items()}
        for change in changes:
            _apply(tables, change)
        if any(isinstance(change, Expire) for change in changes):
            expired = self._tables[EventRecord].keys() - tables[EventRecord].keys()
            self._last_expired = max([self._last_expired, *expired])
        self._tables = tables
        self._last_event = max([self._last_event, *tables[EventRecord]])
        self.writes.append(changes)
        self.durable.append(durable)

    def begin_write(self, *changes: Change) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.write(*changes, durable=False))

    async def events(self, after: int, limit: int) -> Sequence[EventRecord]:
        return [event for event in self._sorted(EventRecord) if event.id > after][:limit]

    async def first_event(self) -> int:
        return self._last_expired + 1

    async def event_before(self, last: int, count: int) -> int:
        up_to = [event.id for event in self._sorted(EventRecord) if event.id <= last]
        return up_to[-count - 1] if count < len(up_to) else 0

    def _sorted(self, kind: type) -> tuple[Any, ...]:
        return tuple(record for _, record in sorted(self._tables[kind].items()))


def _apply(tables: Tables, change: Change) -> None:
    match change:
        case Put(QueueRecord(app=app)) if app not in tables[AppRecord]:
            raise Conflict(f"there is no app {app}")
        case Put(RunRecord(key=key)) if key not in tables[InstanceRecord]:
            raise Conflict(f"there is no instance {key}")
        case Put(record):
            tables[type(record)][_key(record)] = record
        case RemoveApp(name):
            tables[AppRecord].pop(name, None)
            for queue in [key for key in tables[QueueRecord] if key[0] == name]:
                del tables[QueueRecord][queue]
        case RemoveQueue(app, name):
            tables[QueueRecord].pop((app, name), None)
        case RemoveEntry(kind, app, name):
            tables[Entry].pop((kind, app, name), None)
        case RemoveInstance(key):
            tables[InstanceRecord].pop(key, None)
            tables[RunRecord].pop(key, None)
        case RemoveAuthored(app):
            tables[AuthoredRecord].pop(app, None)
        case RemoveToken(identifier):
            tables[TokenRecord].pop(identifier, None)
        case RemoveOutcome(request):
            tables[OutcomeRecord].pop(request, None)
        case Remember(name):
            tables[Remember][name] = change
        case Expire(outcomes_before, events):
            for request, outcome in list(tables[OutcomeRecord].items()):
                if outcome.at < outcomes_before and (outcome.ended or outcome.instance is None):
                    del tables[OutcomeRecord][request]
            kept = sorted(tables[EventRecord].items(), reverse=True)
            for requests in (True, False):
                for event, _ in [one for one in kept if (one[1].type == REQUEST) is requests][events:]:
                    del tables[EventRecord][event]


def _key(record: Record) -> Any:
    match record:
        case AppRecord():
            return record.name
        case AuthoredRecord():
            return record.app
        case QueueRecord():
            return record.app, record.queue.name
        case InstanceRecord() | RunRecord():
            return record.key
        case TokenRecord() | EventRecord():
            return record.id
        case OutcomeRecord():
            return record.request
        case Entry():
            return record.kind, record.app, record.name
