"""What the API shows of the daemon's records: records and states in, resources out."""

from collections.abc import Mapping, Sequence
from signal import Signals

from branchd.branch.output import taken_away
from branchd.branch.records import AppRecord, EventRecord, InstanceRecord, QueueRecord, RunRecord
from branchd.core.lifecycle import State
from branchd.core.merge import hide
from branchd.core.spec import Spec, Unusable
from branchd.core.values import Stream, Truth
from branchd.wire.resources import (
    App,
    ConditionType,
    ConditionView,
    Event,
    Instance,
    LastExit,
    Placement,
    Queue,
    Status,
    timestamp,
)
from branchd.wire.spec import shown

_SIGNAL_NAMES = {signal.value: signal.name for signal in Signals}


def render(
    record: InstanceRecord,
    spec: Spec,
    run: RunRecord,
    branch: str,
    state: State,
    broken: str,
    reported: Sequence[ConditionView],
    *,
    current: bool,
    boot_at: float,
    unenforced: Mapping[str, str] | None,
    lost: Mapping[Stream, str],
) -> Instance:
    """`reported` is what the driver's monitor says; `boot_at` is when the machine booted, seconds since 1970.

    `unenforced`: limits that are not kept, and why; None where none are asked for. `lost`: as LogFiles tells.
    """
    machine = run.machine
    up = machine.alive
    unusable = spec.why if isinstance(spec, Unusable) else ""
    conditions = [ConditionView(ConditionType.PROCESS_UP, _truth(up), "" if up else machine.reason)]
    if not any(condition.type is ConditionType.READY for condition in reported):
        conditions.append(ConditionView(ConditionType.READY, _truth(state is State.RUNNING)))
    conditions += reported
    conditions.append(
        ConditionView(
            ConditionType.CONFIG_CURRENT,
            _truth(current),
            "" if current else unusable or "restart it to take up its spec",
        )
    )
    if unenforced is not None:
        why = "; ".join(f"{limit}: {why}" for limit, why in unenforced.items())
        conditions.append(ConditionView(ConditionType.LIMITS_APPLIED, _truth(not unenforced), why))
    if lost:
        lines = (f"{one.detail}; {one.hint}" for one in (taken_away(record.key, *each) for each in lost.items()))
        conditions.append(ConditionView(ConditionType.LOGS_KEPT, Truth.FALSE, "; ".join(lines)))
    deadline = machine.deadline if state is State.BACKOFF else None
    return Instance(
        app=record.key.app,
        name=record.key.name,
        branch=branch,
        placement=Placement.PINNED if record.placed is None else Placement.PLACED,
        kind=spec.kind,
        generation=record.generation,
        created_at=timestamp(record.created_at),
        spec=hide(record.spec),
        effective={} if unusable else shown(spec),
        status=Status(
            state=state,
            wanted=spec.wanted,
            reason=broken or unusable or machine.reason,
            pid=run.identity.pid if up and run.identity else None,
            started_at=timestamp(run.started_at) if up and run.started_at is not None else None,
            restarts=machine.restarts,
            next_try_at=timestamp(boot_at + deadline) if deadline is not None else None,
            last_exit=_last_exit(run),
            last_words=run.last_words,
            observed_generation=run.observed_generation if up else record.generation,
            deleting=record.deleting,
            conditions=tuple(conditions),
        ),
        source=record.source,
    )


def _truth(value: bool) -> Truth:
    return Truth.TRUE if value else Truth.FALSE


def _last_exit(run: RunRecord) -> LastExit | None:
    if run.last_exit is None or run.last_exit_at is None:
        return None
    number = run.last_exit.signal
    name = None if number is None else _SIGNAL_NAMES.get(number, str(number))
    return LastExit(run.last_exit.code, name, run.last_exit.why, timestamp(run.last_exit_at))


def render_event(event: EventRecord) -> Event:
    return Event(event.id, timestamp(event.at), event.type, event.app, event.instance, event.data)


def render_app(record: AppRecord, instances: int, conditions: tuple[ConditionView, ...]) -> App:
    created_at, spec = timestamp(record.created_at), hide(record.spec)
    return App(record.name, record.generation, created_at, spec, instances, conditions, record.source)


def app_conditions(app: str, *, shared: bool, conflict: bool) -> tuple[ConditionView, ...]:
    """`shared`: it is the neighbourhood's that this branch goes by."""
    if conflict:
        reason = f"this branch's own is gone by, and differs: branchctl app adopt {app}, or branchctl app publish {app}"
        return (
            ConditionView(ConditionType.SHARED, Truth.FALSE, reason),
            ConditionView(ConditionType.DEFINITION_CONFLICT, Truth.TRUE, reason),
        )
    return (ConditionView(ConditionType.SHARED, _truth(shared), "" if shared else f"branchctl app publish {app}"),)


def render_queue(record: QueueRecord) -> Queue:
    queue = record.queue
    return Queue(
        app=record.app,
        name=queue.name,
        exchange=queue.name if queue.exchange is None else queue.exchange,
        exchange_type=queue.exchange_type,
        routing_key=queue.name if queue.routing_key is None else queue.routing_key,
        options=queue.options,
    )
