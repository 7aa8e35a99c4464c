"""When a branch speaks of itself, how it joins, and what is made of others that appear and vanish.

Arithmetic over passed-in numbers; what is believed stands in roster.py, who watches whom in ring.py. The budget is two
background deliveries a second for each branch at any size: announcements 0.5, the ring 1.0, digests 0.2.
"""

from collections.abc import Iterable
from enum import StrEnum
from statistics import median

from branchd.core.peers import Announcement, BranchState
from branchd.core.roster import Member

#: announcements a second that each branch receives: all others' together
ANNOUNCED = 0.5

#: seconds; the shortest period, for a branch that is alone
SHORTEST = 2.0

#: share of the period by which each one is longer or shorter, so that branches that began together spread
JITTER = 0.1

#: share of the period that must pass between an announcement and an early one
EARLY = 0.25

#: share of the slots by which the reserved ones must have changed to be told early: placement asks anyway
MATERIAL = 0.1

#: seconds between two comparisons with a peer: a question and its answer, each received once in so many seconds
COMPARE_EVERY = 10.0

#: seconds within which they count together
VANISH_WITHIN = 30.0

#: how many may vanish in that time before it is doubted: so many, or this share of all
FEW, SHARE = 2, 0.3

#: seconds that mass disappearance is doubted at most
DOUBTED_FOR = 300.0

#: seconds after doubt ended without their return, within which those who have not answered since are no reason to doubt
#: again: else a branch that watches two at a time would doubt its way through a lost rack, DOUBTED_FOR by DOUBTED_FOR
EXCUSED_FOR = 300.0

#: seconds after a lost connection was made anew: the others, who lost theirs too, need time to return
SETTLED_AFTER = 60.0

#: seconds that a branch which ended without a goodbye is missed: its instances may run on, and its daemon may be
#: started again. After them it counts as one that went.
MISSED_FOR = 600.0

#: bits of the doors' names; see doors()
_DOORS = (12, 9, 6, 3, 0)


def period(branches: int) -> float:
    """Seconds between two announcements of one branch among so many, itself included."""
    return max(SHORTEST, branches / ANNOUNCED)


def due(last: float, branches: int, chance: float, early: bool) -> float:
    """When to announce after the announcement at `last`. chance: drawn once after each; early: there is news."""
    return last + period(branches) * (EARLY if early else 1 - JITTER + 2 * JITTER * chance)


def joining_wait(branches: int, chance: float) -> float:
    """Seconds that a joiner waits before it announces, so that many at once are heard at a rate that all can bear."""
    return chance * min(period(branches), 5.0) * branches / 100


def material(before: Announcement, after: Announcement) -> bool:
    """Whether the difference is worth an early announcement."""
    if abs(after.reserved - before.reserved) >= max(1.0, MATERIAL * after.slots):
        return True
    return _fixed(before) != _fixed(after)


def _fixed(said: Announcement) -> tuple[object, ...]:
    return said.name, said.state, said.slots, said.version, dict(said.labels), said.address


def doors(point: int) -> tuple[str, ...]:
    """Keys at which a joiner finds somebody, the narrowest first, from a point of 64 bits.

    Every branch holds the doors of the hash of its id. A joiner knows nobody and not how many there are, so it knocks
    at the doors of a random point, one after the other, until one is held. That asks one branch or a few at any size,
    where a broadcast would disturb all: four on average from 10 to 10,000, and seldom more than twenty.
    """
    return tuple(f"j.{bits}.{point >> (64 - bits):x}" for bits in _DOORS)


class News(StrEnum):
    """What operators are told of another branch; the words of events."""

    JOINED = "branch.joined"
    LEFT = "branch.left"
    SILENT = "branch.silent"
    RETURNED = "branch.returned"


def news(before: Member | None, after: Member) -> News | None:
    if after.live:
        again = before is not None and before.peer.boot == after.peer.boot
        if before is None or (before.state is BranchState.CLOSED and not again):
            return News.JOINED
        return None if before.live else News.RETURNED
    if before is None or before.state is after.state:
        return None
    return News.LEFT if after.state is BranchState.CLOSED else News.SILENT


def ahead(mine: float, theirs: Iterable[float]) -> float:
    """How far a clock is ahead of the median of all, itself included."""
    return mine - median([mine, *theirs])


class Guard:
    """Whether absence means anything: when many vanish at once it is the network, or this branch, that failed."""

    def __init__(self) -> None:
        self._reconnected: float | None = None
        self._vanished: dict[str, float] = {}  #: when, by id; while in doubt all who have not returned
        self._doubted: tuple[float, int, int] | None = None  #: since when, how many of how many
        self._excused: float | None = None  #: since when those do not count that have not answered since
        self._answered: set[str] = set()  #: since then
        self._let_go: frozenset[str] = frozenset()  #: that had ended when an operator said that it is as it looks

    def reconnected(self, now: float) -> None:
        """The connection to the broker had been lost, and is made anew."""
        self._reconnected = now

    def vanished(self, id: str, live: int, now: float) -> None:
        """It was found ended, without a word of its own; so many are still live."""
        self._settle(live, now)
        if self._excused is not None and id not in self._answered:
            return
        self._vanished[id] = now
        everybody = live + len(self._vanished)
        if self._doubted is None and len(self._vanished) > _few(everybody):
            self._doubted = now, len(self._vanished), everybody

    def answered(self, id: str) -> None:
        """It has said something."""
        if self._excused is not None:
            self._answered.add(id)

    def returned(self, id: str) -> None:
        self._vanished.pop(id, None)
        self._let_go -= {id}

    def confirm(self, ended: Iterable[str], now: float) -> None:
        """An operator says that it is as it looks: these are gone."""
        self._reconnected, self._let_go = None, frozenset(ended)
        self._excuse(now)

    def misses(self, member: Member, now: float) -> bool:
        """Whether what it has may run on and nobody can tell: it is silent, or ended lately without a goodbye."""
        if member.state is BranchState.SILENT:
            return True
        lately = not member.live and not member.said_goodbye and now < member.since + MISSED_FOR
        return lately and member.id not in self._let_go

    def reason(self, live: int, now: float) -> str:
        """Why nothing may be concluded from absence, in words; "" when it may."""
        self._settle(live, now)
        if self._doubted is not None:
            _, many, everybody = self._doubted
            return f"{many} of {everybody} branches vanished within {VANISH_WITHIN:.0f} s"
        if self._reconnected is not None:
            return f"this branch lost its connection, and has been connected again for less than {SETTLED_AFTER:.0f} s"
        return ""

    def lasts(self, now: float) -> float:
        """Seconds until the doubt ends by itself, if it does not before; 0 where there is none."""
        ends = [] if self._doubted is None else [self._doubted[0] + DOUBTED_FOR]
        ends += [] if self._reconnected is None else [self._reconnected + SETTLED_AFTER]
        return max([0.0, *(end - now for end in ends)])

    def _settle(self, live: int, now: float) -> None:
        if self._reconnected is not None and now >= self._reconnected + SETTLED_AFTER:
            self._reconnected = None
        if self._excused is not None and now >= self._excused + EXCUSED_FOR:
            self._excused = None
        if self._doubted is None:
            self._vanished = {id: at for id, at in self._vanished.items() if at > now - VANISH_WITHIN}
        elif len(self._vanished) <= _few(live + len(self._vanished)):  # enough of them are back
            self._doubted = None
            self._vanished.clear()
        elif now >= self._doubted[0] + DOUBTED_FOR:
            self._excuse(now)

    def _excuse(self, now: float) -> None:
        self._doubted = None
        self._vanished.clear()
        self._excused = now
        self._answered.clear()


def _few(branches: int) -> float:
    return max(FEW, SHARE * branches)
