"""What the store keeps, as values; one class a table. adapters/store.py maps them, branch/ holds them in memory.

Times named `*_at` are seconds since 1970 (for people); others are seconds since boot (for the automaton).
"""

from collections.abc import Mapping
from typing import Any

from msgspec import field

from branchd.core.lifecycle import Machine
from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.core.value import Value
from branchd.core.values import Exit, Identity, Key, QueueDeclaration

Raw = Mapping[str, Any]


class AppRecord(Value):
    name: str
    spec: Raw  #: as given; secrets in the clear, which is why the state folder is 0700
    generation: int = 1
    created_at: float = 0.0
    stamp: Stamp | None = None  #: of one that the neighbourhood shares, which is kept as an Entry
    source: str = ""  #: path of the file that it is defined in; empty: it was made over the API


class QueueRecord(Value):
    app: str
    queue: QueueDeclaration


class AuthoredRecord(Value):
    """That an operator of this very branch wrote the app so, in whichever layer; what others write never changes it."""

    app: str
    digest: str  #: of the spec, as core/definitions.py makes it


class Placed(Value):
    """That this branch was chosen for the instance, and by which request."""

    request: str  #: id of the request
    digest: str  #: of what it asked for
    named: bool  #: its name was taken, and others may try to
    accepted_at: float  #: with the request's id it decides which of two holders of one name stays
    waiting: bool = False  #: a replacement, for whose name its elder stands until it hands it over


class InstanceRecord(Value):
    key: Key
    spec: Raw
    generation: int = 1
    created_at: float = 0.0
    deleting: bool = False
    placed: Placed | None = None  #: None: pinned
    source: str = ""  #: path of the file that it is defined in; empty: it was made over the API
    replica: bool = False  #: pinned, and made because its app wants so many


class RunRecord(Value):
    """The automaton of an instance and its process, as last committed."""

    key: Key
    machine: Machine
    boot: str  #: of which boot the machine's times are
    nonce: str = ""  #: mark of the process that is being started or runs; an intent while `identity` is None
    intent: float = 0.0  #: when the nonce was drawn, seconds since boot
    identity: Identity | None = None
    started_at: float | None = None
    observed_generation: int = 0
    launched: str = ""  #: digest of what of the spec it was started with
    last_exit: Exit | None = None
    last_exit_at: float | None = None
    last_words: tuple[str, ...] = ()  #: FATAL: the end of what the process wrote


class TokenRecord(Value):
    id: str
    name: str
    digest: str  #: SHA-256 of the token, hexadecimal; tokens are 256 random bits, so no salt and no stretching
    scope: str
    created_at: float
    expires_at: float | None = None


class EventRecord(Value):
    id: int
    at: float
    type: str  #: such as "instance.state"
    app: str | None = None
    instance: str | None = None
    data: Raw = field(default_factory=dict)


class OutcomeRecord(Value):
    """What became of a request to create, so that asking again makes nothing twice."""

    request: str  #: its id: of the principal and the Idempotency-Key, else random
    digest: str  #: of what was asked for; another request under the same id is refused
    at: float  #: when it was accepted or cancelled; of one that has ended: when that was
    app: str
    instance: str | None  #: None: it was cancelled, and will never make anything
    ended: bool = False  #: what it made is no more
    offerer: str = ""  #: id of the branch that offered it, and may cancel it; "" where it came to this one's own API
    origin: str = ""  #: of a move: the request that first made the instance, perhaps on another branch; else ""


Record = (
    AppRecord | AuthoredRecord | QueueRecord | InstanceRecord | RunRecord | TokenRecord | EventRecord | OutcomeRecord
    | Entry
)  # fmt: skip

#: type of the events that tell who asked for what
REQUEST = "request"


class Put(Value):
    """Insert, or replace what has the same key."""

    record: Record


class RemoveApp(Value):
    """With its queues."""

    name: str


class RemoveAuthored(Value):
    app: str


class RemoveQueue(Value):
    app: str
    name: str


class RemoveEntry(Value):
    kind: EntryKind
    app: str
    name: str


class RemoveInstance(Value):
    """With its run."""

    key: Key


class RemoveToken(Value):
    id: str


class RemoveOutcome(Value):
    """As if the request had never come."""

    request: str


class Remember(Value):
    """A fact about the branch itself."""

    name: str
    value: str


class Expire(Value):
    """Forget old outcomes and events.

    Outcomes older than `outcomes_before` (seconds since 1970) whose instance is no more; all but the newest `events` of
    type REQUEST, and all but as many of the others: neither drives the other out.
    """

    outcomes_before: float
    events: int


Change = (
    Put | RemoveApp | RemoveAuthored | RemoveQueue | RemoveEntry | RemoveInstance | RemoveToken | RemoveOutcome
    | Remember | Expire
)  # fmt: skip


class Snapshot(Value):
    """Everything at start, each list in the order of its keys. Events stay in the store."""

    branch_id: str
    apps: tuple[AppRecord, ...]
    authored: tuple[AuthoredRecord, ...]
    queues: tuple[QueueRecord, ...]
    instances: tuple[InstanceRecord, ...]
    runs: tuple[RunRecord, ...]
    tokens: tuple[TokenRecord, ...]
    outcomes: tuple[OutcomeRecord, ...]
    entries: tuple[Entry, ...]  #: the definitions that the neighbourhood shares; apps and queues are this branch's own
    last_event: int  #: highest id ever given, 0 for none
    facts: Mapping[str, str]  #: what was remembered
