"""When a shared definition was written, in an order that all branches agree on.

Hybrid logical clock: Kulkarni, Demirbas and others, "Logical Physical Clocks" (OPODIS 2014). One number holds both
parts: milliseconds since 1970 in the upper bits, a counter in the lower 16.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from branchd.core.value import Value

COUNTER_BITS = 16

#: seconds that a stamp may be ahead of this branch's time. Below, clocks that are wrong only make the counter run;
#: above, one broken clock would keep all others from ever writing something newer.
MOST_AHEAD = 24 * 3600.0


class Stamp(Value, order=True):
    time: int
    branch: str  #: id of the writer; decides between equal times

    @property
    def wall(self) -> float:
        """Seconds since 1970, by the clock of the writer, or of one that it had heard of."""
        return (self.time >> COUNTER_BITS) / 1000


class EntryKind(StrEnum):
    APP = "app"
    QUEUE = "queue"


class Entry(Value):
    """One shared definition, or its tombstone."""

    kind: EntryKind
    app: str
    name: str  #: of the queue; "" for an app
    stamp: Stamp
    value: Mapping[str, Any] | None  #: None: a tombstone
    cascade: bool = False  #: of an app's tombstone: its instances go too


def at(wall: float) -> int:
    """The least time of a stamp of then; `wall` in seconds since 1970."""
    return int(wall * 1000) << COUNTER_BITS


def tick(last: int, wall: float) -> int:
    """The time of the next stamp: above every one that was given or seen, and not behind the clock."""
    return max(last + 1, at(wall))


def credible(time: int, wall: float) -> bool:
    """Whether it is of the past, or of clocks that run apart; a clock that gave another one is broken, or this is."""
    return 0 <= time <= at(wall + MOST_AHEAD)


def observe(last: int, remote: int, wall: float) -> int:
    """What tick() goes on from when another branch's stamp was seen; unmoved by one that is not credible."""
    return max(last, remote) if credible(remote, wall) else last
