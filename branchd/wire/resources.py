"""What the API shows, as values: one Value a resource. The OpenAPI document is made from these types.

Times are RFC 3339 texts in UTC, sizes bytes, durations seconds.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from msgspec import field

from branchd.core.access import Scope
from branchd.core.lifecycle import State
from branchd.core.spec import Kind, Wanted
from branchd.core.value import Value
from branchd.core.values import Truth


class Placement(StrEnum):
    PLACED = "placed"
    PINNED = "pinned"


class ConditionType(StrEnum):
    PROCESS_UP = "ProcessUp"
    READY = "Ready"
    CELERY_RESPONSIVE = "CeleryResponsive"
    QUEUES_IN_SYNC = "QueuesInSync"
    CONFIG_CURRENT = "ConfigCurrent"
    LIMITS_APPLIED = "LimitsApplied"  #: of an instance that asks for limits
    LOGS_KEPT = "LogsKept"  #: of an instance whose log was taken away while it ran: False
    SHARED = "Shared"  #: of an app: it is the neighbourhood's, and not this branch's own
    DEFINITION_CONFLICT = "DefinitionConflict"  #: of an app: this branch's own differs from the neighbourhood's


class ConditionView(Value):
    type: ConditionType
    status: Truth
    reason: str = ""


class LastExit(Value):
    """How the process before this one ended; both None where nobody could tell."""

    code: int | None
    signal: str | None
    why: str  #: who sent the signal, where that is known
    at: str


class Status(Value):
    state: State
    wanted: Wanted
    reason: str  #: why it is not simply running; empty when there is nothing to say
    pid: int | None
    started_at: str | None
    restarts: int  #: automatic ones since it was last started on request
    next_try_at: str | None  #: in BACKOFF
    last_exit: LastExit | None
    last_words: tuple[str, ...]  #: in FATAL: the end of what its last process wrote
    observed_generation: int
    deleting: bool
    conditions: tuple[ConditionView, ...]


class Instance(Value):
    app: str
    name: str
    branch: str
    placement: Placement
    kind: Kind
    generation: int
    created_at: str
    spec: Mapping[str, Any]
    effective: Mapping[str, Any]
    status: Status
    source: str = ""  #: the file that defines it; empty: the API made it


class InstanceStatus(Value):
    """How an instance is, without what was asked for, which is most of it and seldom changes."""

    app: str
    name: str
    branch: str
    placement: Placement
    kind: Kind
    generation: int
    status: Status

    @classmethod
    def of(cls, instance: Instance) -> "InstanceStatus":
        return cls(
            instance.app, instance.name, instance.branch, instance.placement, instance.kind, instance.generation,
            instance.status,
        )  # fmt: skip


class AskedBranch(Value):
    """What a branch answered when it was asked for room; the figures are null where it did not answer."""

    branch: str
    slots: int | None
    reserved: int | None
    load: float | None  #: per core, of the last minute
    siblings: int | None  #: instances of the app there
    answer: str  #: why it would not take the instance; empty where it would


class OfferedBranch(Value):
    branch: str
    result: str  #: "accepted", or what else came of it


class Explanation(Value):
    """Why an instance is where it is, as the branch that placed it saw it; or why it is nowhere."""

    app: str
    name: str
    at: str
    by: str  #: the branch that asked
    asked: tuple[AskedBranch, ...]
    offers: tuple[OfferedBranch, ...]  #: in this order
    outcome: str


class App(Value):
    name: str
    generation: int
    created_at: str
    spec: Mapping[str, Any]
    instances: int
    conditions: tuple[ConditionView, ...] = ()  #: none without a neighbourhood
    source: str = ""  #: as of an instance


class Queue(Value):
    app: str
    name: str
    exchange: str
    exchange_type: str
    routing_key: str
    options: Mapping[str, Any] = field(default_factory=dict)


class QueueBody(Value):
    """How a queue is declared, as given. Without exchange and routing key: of the queue's own name."""

    exchange: str | None = None
    exchange_type: str = "direct"
    routing_key: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  #: kombu.Queue's own: durable, queue_arguments, ...


class Consumer(Value):
    """That an instance consumes from a queue: wanted by its spec, and what its worker says it does."""

    queue: str
    wanted: bool
    consuming: bool | None  #: None: the worker does not say


class AutoscaleView(Value):
    min: int
    max: int
    actual: int | None  #: processes in the pool now, as the worker says


class Stats(Value):
    """Sampled when asked for."""

    pid: int | None
    rss: int | None = None
    cpu_seconds: float | None = None
    processes: int | None = None
    threads: int | None = None
    open_files: int | None = None
    tree: Mapping[str, float] | None = None  #: what the kernel counts of its control group: memory, cpu_seconds, tasks
    worker: Mapping[str, Any] | None = None  #: what the Celery worker says of itself


class Branch(Value):
    id: str
    name: str
    state: str
    version: str
    slots: int
    reserved: int
    labels: Mapping[str, str]
    address: str | None
    seen_at: str
    load: Mapping[str, float]
    started_at: str | None = None  #: when its code was started, also by a reload; it tells that of itself alone


class OperationState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    KEPT = "kept"  #: left as it was


class Step(Value):
    name: str
    state: StepState
    detail: str = ""


class Operation(Value):
    """Long work: its steps in the order in which they are taken."""

    id: str
    kind: str
    branch: str
    state: OperationState
    by: str
    started_at: str
    ended_at: str | None
    detail: str
    steps: tuple[Step, ...]


class Token(Value):
    id: str
    name: str
    scope: Scope
    created_at: str
    expires_at: str | None
    token: str | None = None  #: only in the answer to its creation


class WhoAmI(Value):
    principal: str
    scope: Scope
    branch: str


class Event(Value):
    id: int
    at: str
    type: str
    app: str | None
    instance: str | None
    data: Mapping[str, Any]


def timestamp(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 text with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
