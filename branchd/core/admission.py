"""Whether a branch takes an instance: what it answers to a probe, and its last word on an offer.

The target's side of a placement; whom to ask and whom to choose stands in placement.py. Only placed instances are
judged here: pinned ones always run, which is why more may be reserved than there are slots.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import field

from branchd.core.capacity import Capacity
from branchd.core.value import Value


class Reason(StrEnum):
    """Why an offer is refused. Of another branch the same offer may be accepted, but for the words in FINAL."""

    NO_ROOM = "no-room"  #: too few slots are left
    GUARD = "guard"  #: the host is short of memory, cpu or disk
    LABELS = "labels"  #: its labels are not those that the constraints name
    POLICY = "policy"  #: its configuration does not let other branches place this here
    DRAINING = "draining"
    STOPPING = "stopping"
    INVALID = "invalid"  #: the spec does not hold together there: it allows other accounts, or is another version
    DEFINITION_CONFLICT = "definition-conflict"  #: the branch has a definition of the app of its own
    STORAGE = "storage"  #: its store takes nothing: disk full, read-only or broken
    NAME_PINNED = "name-pinned"  #: the branch has a pinned instance of that name
    NAME_TAKEN = "name-taken"
    UNSURE = "unsure"  #: whether the name is taken cannot be told now
    TOMBSTONE = "tombstone"  #: the app was deleted
    MISMATCH = "mismatch"  #: another request came under the same id
    CANCELLED = "cancelled"  #: the request was cancelled there, for good; elsewhere it may be made
    ENDED = "ended"  #: what the request made there has been deleted since


#: what any other branch would answer as well, or could not answer safely
FINAL = frozenset({Reason.NAME_TAKEN, Reason.UNSURE, Reason.TOMBSTONE, Reason.MISMATCH, Reason.ENDED})


class Probe(Value):
    """Question; Room. What an instance would take."""

    app: str
    weight: int
    constraints: Mapping[str, str] = field(default_factory=dict)  #: labels that the branch must have
    spread: str | None = None  #: a label, over whose values the app's instances are to be spread


class Room(Value):
    slots: int
    reserved: int
    load: float  #: per core, of the last minute; decides between equals
    siblings: int  #: instances of the app here
    obstacle: str = ""  #: why it takes nothing, in words; empty when it would


class Refusal(Value):
    reason: Reason
    detail: str


class Guards(Value):
    """Limits of the host beyond which it takes nothing, whatever its slots say. They refuse and never rank."""

    memory_available: float = 0.05  #: least share of the memory
    load_per_core: float = 8.0  #: greatest, of the last minute
    disk_free: float = 0.02  #: least share of the state's disk

    def tripped(self, load: Mapping[str, float]) -> str:
        """Which one, in words, or "". `load`: the port Host's figures; those that it does not have trip nothing."""
        total = load.get("memory_total", 0.0)
        available = load["memory_available"] / total if total else 1.0
        if available < self.memory_available:
            return f"{available:.1%} of the memory is available, at least {self.memory_available:.1%} must be"
        if load.get("load_per_core", 0.0) > self.load_per_core:
            return f"the load per core is {load['load_per_core']:.1f}, at most {self.load_per_core:g} may be"
        if load.get("disk_free", 1.0) < self.disk_free:
            return f"{load['disk_free']:.1%} of the disk is free, at least {self.disk_free:.1%} must be"
        return ""


class Standing(Value):
    """How a branch stands as it judges. The host's figures may be a second old; the capacity may not."""

    capacity: Capacity  #: reserved: by all its instances, pinned ones and those that are being taken included
    siblings: int  #: instances of the app here
    load: Mapping[str, float]  #: the port Host's figures
    labels: Mapping[str, str] = field(default_factory=dict)
    guards: Guards = Guards()
    draining: bool = False
    stopping: bool = False
    policy: str = ""  #: why its configuration does not let the asking branch place this here; "" where it does


def judge_room(probe: Probe, standing: Standing) -> Room:
    """The answer to a probe; it promises nothing."""
    refusal = admit(probe, standing)
    return Room(
        standing.capacity.slots,
        standing.capacity.reserved,
        standing.load.get("load_per_core", 0.0),
        standing.siblings,
        "" if refusal is None else f"{refusal.reason}: {refusal.detail}",
    )


def admit(probe: Probe, standing: Standing) -> Refusal | None:
    """None: it may be taken, as far as the branch itself is concerned; what its name and its app say comes after."""
    capacity = standing.capacity
    reason, detail = None, ""
    if standing.stopping:
        reason, detail = Reason.STOPPING, "this branch is stopping"
    elif standing.draining:
        reason, detail = Reason.DRAINING, "this branch is draining"
    elif standing.policy:
        reason, detail = Reason.POLICY, standing.policy
    elif detail := lacking(probe.constraints, standing.labels):
        reason = Reason.LABELS
    elif detail := standing.guards.tripped(standing.load):
        reason = Reason.GUARD
    elif capacity.reserved + probe.weight > capacity.slots:
        reason = Reason.NO_ROOM
        detail = f"{capacity.reserved} of {capacity.slots} slots are reserved, {probe.weight} more are asked for"
    return None if reason is None else Refusal(reason, detail)


def lacking(constraints: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """Which of the constraints these labels do not meet, in words, or ""."""
    wrong = [f"{name} is {labels.get(name)!r}, not {value!r}" for name, value in constraints.items()
             if labels.get(name) != value]  # fmt: skip
    return ", ".join(wrong)
