"""How the records stand in the tables of the store: each record as a row and back, each change as statements.

The tables themselves are made by migrations/*.sql. Connections, threads and failures belong in store.py.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from branchd.branch.records import (
    REQUEST,
    AppRecord,
    AuthoredRecord,
    Change,
    EventRecord,
    Expire,
    InstanceRecord,
    OutcomeRecord,
    Placed,
    Put,
    QueueRecord,
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
from branchd.core.lifecycle import Machine, State
from branchd.core.spec import Wanted
from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.core.value import Value
from branchd.core.values import Exit, Identity, Key, QueueDeclaration

R = TypeVar("R")

#: ids of events that are left out at a boot: more than can have been given in the last moments before a power cut, and
#: be lost with it. What was told of them is never told of others.
LOST_IDS = 1_000_000

#: one value for each column, in the table's order
Row = Sequence[Any]


class Table(Value, Generic[R]):
    """Names come from this module alone, so that statements may be put together from them."""

    name: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    to_row: Callable[[R], Row]  #: keys first, then values
    from_row: Callable[[Row], R]

    def select(self, rest: str) -> str:
        return f"SELECT {', '.join(self.keys + self.values)} FROM {self.name} {rest}"  # noqa: S608

    def upsert(self) -> str:
        """Not INSERT OR REPLACE, which deletes first, and with that what refers to the row."""
        columns = self.keys + self.values
        changes = ", ".join(f"{column} = excluded.{column}" for column in self.values)
        return (
            f"INSERT INTO {self.name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
            f" ON CONFLICT ({', '.join(self.keys)}) DO UPDATE SET {changes}"
        )

    def read(self, connection: sqlite3.Connection) -> tuple[R, ...]:
        """All of it, in the order of the keys."""
        rows = connection.execute(self.select(f"ORDER BY {', '.join(self.keys)}"))
        return tuple(self.from_row(row) for row in rows)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value))


def _run_to_row(run: RunRecord) -> Row:
    machine = run.machine
    process = (run.identity.boot, run.identity.pid, run.identity.started) if run.identity else (None, None, None)
    last = run.last_exit
    last_exit = (False, None, None, "") if last is None else (True, last.code, last.signal, last.why)
    return (
        *(run.key.app, run.key.name),
        *(machine.state, machine.wanted, machine.run, machine.alive, machine.held, json.dumps(machine.crashes)),
        *(machine.restarts, machine.step, machine.deadline, machine.reason, machine.blamed),
        *(run.boot, run.nonce, run.intent, *process, run.started_at, run.observed_generation, run.launched),
        *(*last_exit, run.last_exit_at, json.dumps(run.last_words)),
    )


def _run_from_row(row: Row) -> RunRecord:
    app, name, state, wanted, number, alive, held, crashes, restarts, step, deadline, reason, blamed, *rest = row
    boot, nonce, intent, process_boot, pid, started, started_at, observed_generation, launched, *rest = rest
    ended, code, signal, why, last_exit_at, last_words = rest
    machine = Machine(
        state=State(state),
        wanted=Wanted(wanted),
        run=number,
        alive=bool(alive),
        held=bool(held),
        crashes=tuple(json.loads(crashes)),
        restarts=restarts,
        step=step,
        deadline=deadline,
        reason=reason,
        blamed=bool(blamed),
    )
    return RunRecord(
        key=Key(app, name),
        machine=machine,
        boot=boot,
        nonce=nonce,
        intent=intent,
        identity=None if pid is None else Identity(process_boot, pid, started),
        started_at=started_at,
        observed_generation=observed_generation,
        launched=launched,
        last_exit=Exit(code, signal, why) if ended else None,
        last_exit_at=last_exit_at,
        last_words=tuple(json.loads(last_words)),
    )


def _queue_to_row(record: QueueRecord) -> Row:
    queue = record.queue
    return (record.app, queue.name, queue.exchange, queue.exchange_type, queue.routing_key, _json(queue.options))


def _queue_from_row(row: Row) -> QueueRecord:
    app, name, exchange, exchange_type, routing_key, options = row
    return QueueRecord(app, QueueDeclaration(name, exchange, exchange_type, routing_key, json.loads(options)))


def _instance_to_row(it: InstanceRecord) -> Row:
    placed = it.placed
    by: Row = (None,) * 5
    if placed is not None:
        by = (placed.request, placed.digest, placed.named, placed.accepted_at, placed.waiting)
    own = (it.key.app, it.key.name, _json(it.spec), it.generation, it.created_at, it.deleting, it.source, it.replica)
    return (*own, *by)


def _instance_from_row(row: Row) -> InstanceRecord:
    app, name, spec, generation, created_at, deleting, source, replica, *by = row
    request, digest, named, accepted_at, waiting = by
    placed = None if request is None else Placed(request, digest, bool(named), accepted_at, bool(waiting))
    own = Key(app, name), json.loads(spec), generation, created_at, bool(deleting)
    return InstanceRecord(*own, placed, source, bool(replica))


def _event_from_row(row: Row) -> EventRecord:
    identifier, at, kind, app, instance, data = row
    return EventRecord(identifier, at, kind, app, instance, json.loads(data))


def _entry_to_row(entry: Entry) -> Row:
    value = None if entry.value is None else _json(entry.value)
    return (entry.kind, entry.app, entry.name, entry.stamp.time, entry.stamp.branch, value, entry.cascade)


def _entry_from_row(row: Row) -> Entry:
    kind, app, name, time, branch, value, cascade = row
    content = None if value is None else json.loads(value)
    return Entry(EntryKind(kind), app, name, Stamp(time, branch), content, bool(cascade))


def _outcome_from_row(row: Row) -> OutcomeRecord:
    request, digest, at, app, instance, ended, offerer, origin = row
    return OutcomeRecord(request, digest, at, app, instance, bool(ended), offerer, origin)


APPS: Table[AppRecord] = Table(
    name="apps",
    keys=("name",),
    values=("spec", "generation", "created_at", "source"),
    to_row=lambda app: (app.name, _json(app.spec), app.generation, app.created_at, app.source),
    from_row=lambda row: AppRecord(row[0], json.loads(row[1]), row[2], row[3], source=row[4]),
)
AUTHORED: Table[AuthoredRecord] = Table(
    name="authored",
    keys=("app",),
    values=("digest",),
    to_row=lambda it: (it.app, it.digest),
    from_row=lambda row: AuthoredRecord(*row),
)
QUEUES: Table[QueueRecord] = Table(
    name="queues",
    keys=("app", "name"),
    values=("exchange", "exchange_type", "routing_key", "options"),
    to_row=_queue_to_row,
    from_row=_queue_from_row,
)
INSTANCES: Table[InstanceRecord] = Table(
    name="instances",
    keys=("app", "name"),
    values=(
        *("spec", "generation", "created_at", "deleting", "source", "replica"),
        *("request", "digest", "named", "accepted_at", "waiting"),
    ),
    to_row=_instance_to_row,
    from_row=_instance_from_row,
)
RUNS: Table[RunRecord] = Table(
    name="runs",
    keys=("app", "instance"),
    values=(
        *("state", "wanted", "run", "alive", "held", "crashes", "restarts", "step", "deadline", "reason", "blamed"),
        *("boot", "nonce", "intent", "process_boot", "process_pid", "process_started"),
        *("started_at", "observed_generation", "launched", "ended", "exit_code", "exit_signal", "exit_why"),
        *("last_exit_at", "last_words"),
    ),
    to_row=_run_to_row,
    from_row=_run_from_row,
)
TOKENS: Table[TokenRecord] = Table(
    name="tokens",
    keys=("id",),
    values=("name", "digest", "scope", "created_at", "expires_at"),
    to_row=lambda it: (it.id, it.name, it.digest, it.scope, it.created_at, it.expires_at),
    from_row=lambda row: TokenRecord(*row),
)
EVENTS: Table[EventRecord] = Table(
    name="events",
    keys=("id",),
    values=("at", "type", "app", "instance", "data"),
    to_row=lambda it: (it.id, it.at, it.type, it.app, it.instance, _json(it.data)),
    from_row=_event_from_row,
)
OUTCOMES: Table[OutcomeRecord] = Table(
    name="outcomes",
    keys=("request",),
    values=("digest", "at", "app", "instance", "ended", "offerer", "origin"),
    to_row=lambda it: (it.request, it.digest, it.at, it.app, it.instance, it.ended, it.offerer, it.origin),
    from_row=_outcome_from_row,
)
ENTRIES: Table[Entry] = Table(
    name="entries",
    keys=("kind", "app", "name"),
    values=("time", "branch", "value", "cascade"),
    to_row=_entry_to_row,
    from_row=_entry_from_row,
)
FACTS: Table[Remember] = Table(
    name="facts",
    keys=("name",),
    values=("value",),
    to_row=lambda it: (it.name, it.value),
    from_row=lambda row: Remember(*row),
)

_TABLES: Mapping[type, Table[Any]] = {
    AppRecord: APPS,
    AuthoredRecord: AUTHORED,
    QueueRecord: QUEUES,
    InstanceRecord: INSTANCES,
    RunRecord: RUNS,
    TokenRecord: TOKENS,
    EventRecord: EVENTS,
    OutcomeRecord: OUTCOMES,
    Entry: ENTRIES,
}
_REMEMBER = FACTS.upsert()
_UPSERTS = {kind: table.upsert() for kind, table in _TABLES.items()}


def apply(connection: sqlite3.Connection, change: Change) -> None:
    """In the caller's transaction. sqlite3.IntegrityError for a queue without its app, a run without its instance."""
    match change:
        case Put(record):
            kind = type(record)
            connection.execute(_UPSERTS[kind], _TABLES[kind].to_row(record))
        case RemoveApp(name):
            connection.execute("DELETE FROM apps WHERE name = ?", (name,))
        case RemoveAuthored(app):
            connection.execute("DELETE FROM authored WHERE app = ?", (app,))
        case RemoveQueue(app, name):
            connection.execute("DELETE FROM queues WHERE app = ? AND name = ?", (app, name))
        case RemoveEntry(kind, app, name):
            connection.execute("DELETE FROM entries WHERE kind = ? AND app = ? AND name = ?", (kind, app, name))
        case RemoveInstance(key):
            connection.execute("DELETE FROM instances WHERE app = ? AND name = ?", (key.app, key.name))
        case RemoveToken(identifier):
            connection.execute("DELETE FROM tokens WHERE id = ?", (identifier,))
        case RemoveOutcome(request):
            connection.execute("DELETE FROM outcomes WHERE request = ?", (request,))
        case Remember():
            connection.execute(_REMEMBER, FACTS.to_row(change))
        case Expire(outcomes_before, events):
            connection.execute("DELETE FROM outcomes WHERE at < ? AND (ended OR instance IS NULL)", (outcomes_before,))
            for requests in (True, False):
                _expire_events(connection, requests, events)


def _expire_events(connection: sqlite3.Connection, requests: bool, most: int) -> None:
    """All but the newest; what is lost by it is remembered, for who reads on after an id."""
    which = "FROM events WHERE (type = ?) = ?"
    newest_to_go = f"SELECT id {which} ORDER BY id DESC LIMIT 1 OFFSET ?"
    for (last,) in connection.execute(newest_to_go, (REQUEST, requests, most)).fetchall():
        connection.execute(f"DELETE {which} AND id <= ?", (REQUEST, requests, last))
        connection.execute(
            "INSERT INTO meta (key, value) VALUES ('last_expired_event', ?) ON CONFLICT (key)"
            " DO UPDATE SET value = max(CAST(value AS INTEGER), CAST(excluded.value AS INTEGER))",
            (last,),
        )


def read_all(connection: sqlite3.Connection) -> Snapshot:
    """ValueError or TypeError where a row makes no record."""
    [branch_id] = connection.execute("SELECT value FROM meta WHERE key = 'branch_id'").fetchone()
    last_event = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return Snapshot(
        branch_id=branch_id,
        apps=APPS.read(connection),
        authored=AUTHORED.read(connection),
        queues=QUEUES.read(connection),
        instances=INSTANCES.read(connection),
        runs=RUNS.read(connection),
        tokens=TOKENS.read(connection),
        outcomes=OUTCOMES.read(connection),
        entries=ENTRIES.read(connection),
        last_event=last_event[0] if last_event else 0,
        facts={fact.name: fact.value for fact in FACTS.read(connection)},
    )


def enter_boot(connection: sqlite3.Connection, boot: str) -> None:
    """Events that an earlier boot told of, and that a power cut took away, keep their ids."""
    last = connection.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone()
    if last == (boot,):
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('boot', ?)", (boot,))
        if last is not None:
            connection.execute("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'events'", (LOST_IDS,))


def read_events(connection: sqlite3.Connection, after: int, limit: int) -> tuple[EventRecord, ...]:
    rows = connection.execute(EVENTS.select("WHERE id > ? ORDER BY id LIMIT ?"), (after, limit))
    return tuple(EVENTS.from_row(row) for row in rows)


def event_before(connection: sqlite3.Connection, last: int, count: int) -> int:
    query = "SELECT id FROM events WHERE id <= ? ORDER BY id DESC LIMIT 1 OFFSET ?"
    found = connection.execute(query, (last, count)).fetchone()
    return 0 if found is None else int(found[0])


def first_event(connection: sqlite3.Connection) -> int:
    expired = connection.execute("SELECT value FROM meta WHERE key = 'last_expired_event'").fetchone()
    return 1 if expired is None else int(expired[0]) + 1
