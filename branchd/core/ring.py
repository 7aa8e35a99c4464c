"""Who watches whom, and when the watched one is missing.

The branches stand on a circle, by the hash of their ids; each pings the two behind it, so that each is watched by two,
whatever their number. What is made of a missing one, and whether anything may be, stands in presence.py.

The goals, for one failure at a time: closed is known to all within 5 s, silent within 11 s. A branch that closes right
after a ping is found by the next, PERIOD later; one that falls silent right after a pong is found PERIOD +
TRIES * RETRY = 10 s later. What remains, 1 s in both, is for the watcher's look at itself and the delivery to all.
"""

from bisect import bisect
from collections.abc import Collection, Iterable

from branchd.core.digests import point
from branchd.core.peers import BranchState
from branchd.core.roster import Member
from branchd.core.value import Value

#: branches that each one watches: two, so that one of the watchers may fail too
WATCHED = 2

#: silent ones on the way to those, watched beside them: the broker says when they are gone for good
SILENT_WATCHED = 2

#: seconds between two pings of one branch; each costs two deliveries, so this is 2 * WATCHED / PERIOD = 1/s a branch
PERIOD = 4.0

#: seconds after which an unanswered ping is sent again
RETRY = 1.5

#: unanswered pings after which a branch is missing; any pong meanwhile, to whichever, counts. Where 1% of all messages
#: is lost, four in a row are lost once in 6 million rounds: among 10,000 branches every 20 minutes
TRIES = 4


class Ring(Value):
    """Of live and silent branches."""

    places: tuple[tuple[int, str, bool], ...]  #: where it stands, its id, whether it is live; in order

    @classmethod
    def of(cls, members: Iterable[Member]) -> "Ring":
        there = (member for member in members if member.state is not BranchState.CLOSED)
        return cls(tuple(sorted((point(member.id), member.id, member.live) for member in there)))

    def watched_by(self, me: str) -> tuple[str, ...]:
        found: list[str] = []
        live = silent = 0
        start = bisect(self.places, (point(me), me, True))
        for _, id, is_live in self.places[start:] + self.places[:start]:
            if live == WATCHED:
                break
            if id != me and (is_live or silent < SILENT_WATCHED):
                found.append(id)
                live += is_live
                silent += not is_live
        return tuple(found)


class Turn(Value):
    pings: tuple[str, ...]  #: to be pinged now
    missing: tuple[str, ...]  #: pinged TRIES times without a pong


class Watch:
    """Of one branch over those behind it. Call tick() at `wake`; times are seconds of any one clock."""

    def __init__(self, now: float, chance: float) -> None:
        self._round = now + chance * PERIOD
        self._unanswered: dict[str, tuple[float, int]] = {}  #: by id: the time of the first ping, and how many

    @property
    def wake(self) -> float:
        return min([self._round, *(first + pings * RETRY for first, pings in self._unanswered.values())])

    def tick(self, now: float, watched: Collection[str]) -> Turn:
        if now > self.wake + RETRY:  # it was this daemon that stood still: pongs may wait to be read
            self._unanswered.clear()
        unanswered = {id: self._unanswered[id] for id in watched if id in self._unanswered}
        if now >= self._round:
            self._round = now + PERIOD
            unanswered = dict.fromkeys(watched, (now, 0)) | unanswered
        due = [id for id, (first, pings) in unanswered.items() if now >= first + pings * RETRY]
        missing = tuple(id for id in due if unanswered[id][1] == TRIES)
        for id in due:
            first, pings = unanswered.pop(id)
            if id not in missing:
                unanswered[id] = first, pings + 1
        self._unanswered = unanswered
        return Turn(tuple(id for id in due if id not in missing), missing)

    def pong(self, id: str) -> None:
        self._unanswered.pop(id, None)
