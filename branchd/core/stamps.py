"""When a shared definition was written, in an order that all branches agree on.

Hybrid logical clock: Kulkarni, Demirbas and others, "Logical Physical Clocks" (OPODIS 2014). One number holds both
parts: milliseconds since 1970 in the upper bits, a counter in the lower 16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

COUNTER_BITS = 16


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    time: int
    branch: str  #: id of the writer; decides between equal times

    @property
    def wall(self) -> float:
        """Seconds since 1970, by the clock of the writer, or of one that it had heard of."""
        return (self.time >> COUNTER_BITS) / 1000


class EntryKind(StrEnum):
    APP = "app"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Entry:
    """One shared definition, or its tombstone."""

    kind: EntryKind
    app: str
    name: str  #: of the queue; "" for an app
    stamp: Stamp
    value: Mapping[str, Any] | None  #: None: a tombstone
    cascade: bool = False  #: of an app's tombstone: its instances go too
