"""What presence costs and how fast it is, for neighbourhoods of several sizes: the table of `make sim`.

The core's own functions over a heap of events, without a loop, a broker or a seal. A message takes LATENCY, a broadcast
besides what the broker needs for all its copies; who is closed gives NO_ROUTE, who is silent gives nothing. Simplified:
a pong comes in the moment of its ping, a broadcast is taken in by all at one moment (its copies' times count in what is
measured), and branches whose digests agree share one roster in memory.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from statistics import median

from msgspec.structs import replace

from branchd.core.digests import differing, point
from branchd.core.peers import Announcement, BranchState, Down
from branchd.core.presence import COMPARE_EVERY, Guard, due
from branchd.core.ring import Ring, Watch
from branchd.core.roster import Roster

#: seconds of a message from branch to branch, by a broker that is not near
LATENCY = 0.01

#: seconds that the broker needs for one copy of a broadcast
COPY = 20e-6

#: seconds between two failures, and how long each lasts
BETWEEN, LASTS = 60.0, 40.0

#: of all messages, each by itself; a broker loses some only where an inbox overflows
LOSSES = (0.0, 0.01)

#: branches, and how many times one of them is closed and one is silent, for each of the losses
SIZES = {10: (100, 100), 400: (20, 20), 1000: (10, 8), 10_000: (3, 1)}

#: of background deliveries
KINDS = ("announce", "watch", "digest")

NOTES = (
    "Falsely accused: branches in all that time; each refuted it. Goals: together <= 2.0 at any size; where nothing is",
    "lost, closed is known to all within 5 s, silent within 11 s. With 1% of all messages lost, who missed the word",
    "learns of it by the digests.",
)

Action = Callable[[], None]


@dataclass
class Branch:
    id: str
    said: Announcement
    said_at: float
    drawn: float
    watch: Watch
    watched: tuple[str, ...]
    reach: int  #: how far on the circle the last one is that it watches
    state: BranchState = BranchState.UP
    guard: Guard = field(default_factory=Guard)


@dataclass
class Measured:
    branches: int
    seconds: float
    received: Counter[str]  #: background deliveries to all branches together, by kind
    busiest: float  #: of one branch a second
    closed: list[float]  #: seconds until one branch knew, for each that was to know; LASTS where it did not
    silent: list[float]
    accused: int  #: falsely
    doubted: int  #: accusations that were not made because of doubt

    def rate(self, kind: str) -> float:
        """Background deliveries per second and branch."""
        return self.received[kind] / self.seconds / self.branches


class Simulation:
    def __init__(self, branches: int, loss: float, seed: int = 1) -> None:
        self.chance = Random(seed)
        self.loss = loss
        self.now = 0.0
        self._number = count()
        self._events: list[tuple[float, int, Action]] = []
        self._received: dict[str, Counter[str]] = {}
        self._accused = self._doubted = 0
        self._failed: Branch | None = None  #: the one that all are to learn of
        self._failed_at = 0.0
        self._known: dict[str, float] = {}
        said = [
            Announcement(f"branch-{number}", "1", f"host-{number}", 1, 1, BranchState.UP, 0.0, 8, 0, "1")
            for number in range(branches)
        ]
        roster = Roster()
        for one in said:
            roster = roster.observe(one, 0.0)
        ring = Ring.of(roster)
        self.rosters = {one.id: roster for one in said}
        self.branches = {one.id: self._branch(one, ring.watched_by(one.id), branches) for one in said}
        self._ids = list(self.branches)
        for one in self.branches.values():
            self._received[one.id] = Counter()
            self._at(due(one.said_at, branches, one.drawn, False), partial(self._announce_due, one))
            self._at(one.watch.wake, partial(self._tick, one))
            self._at(self.chance.random() * COMPARE_EVERY, partial(self._compare, one))

    def _branch(self, said: Announcement, watched: tuple[str, ...], branches: int) -> Branch:
        """One of those that have long been there: it announced at some moment of the last period."""
        drawn = self.chance.random()
        last = -self.chance.random() * due(0.0, branches, drawn, False)
        watch = Watch(0.0, self.chance.random())
        return Branch(said.id, said, last, drawn, watch, watched, _reach(said.id, watched))

    def run(self, failures: int) -> Measured:
        """So many branches close, and so many fall silent, one at a time."""
        times: dict[BranchState, list[float]] = {BranchState.CLOSED: [], BranchState.SILENT: []}
        for state in [BranchState.CLOSED, BranchState.SILENT] * failures:
            self._until(self.now + (BETWEEN - LASTS) * (0.5 + self.chance.random()))
            failed = self.branches[self.chance.choice(self._ids)]
            failed.state, self._failed, self._failed_at, self._known = state, failed, self.now, {}
            self._until(self.now + LASTS)
            times[state] += [
                min(LASTS, self._known.get(id, LASTS)) for id, one in self.branches.items() if one is not failed
            ]
            self._failed = None
            self._return(failed)
        totals: Counter[str] = sum(self._received.values(), Counter())
        busiest = max(sum(one[kind] for kind in KINDS) for one in self._received.values()) / self.now
        closed, silent = times[BranchState.CLOSED], times[BranchState.SILENT]
        return Measured(len(self.branches), self.now, totals, busiest, closed, silent, self._accused, self._doubted)

    # What branches do

    def _announce_due(self, one: Branch) -> None:
        when = due(one.said_at, self.rosters[one.id].live, one.drawn, False)
        if when <= self.now + 1e-9:
            if one.state is BranchState.UP:
                self._announce(one)
            else:
                one.said_at = self.now
            when = due(one.said_at, self.rosters[one.id].live, one.drawn, False)
        self._at(when, partial(self._announce_due, one))

    def _announce(self, one: Branch) -> None:
        one.said = replace(one.said, sequence=one.said.sequence + 1)
        one.said_at, one.drawn = self.now, self.chance.random()
        self._learn(one, self.rosters[one.id].observe(one.said, self.now), one.id)
        self._broadcast(one, one.said)

    def _tick(self, one: Branch) -> None:
        if one.state is not BranchState.UP:
            self._at(self.now + 1.0, partial(self._tick, one))
            return
        if not one.watched:
            self._look_around(one)
        turn = one.watch.tick(self.now, one.watched)
        for id in turn.pings:
            self._ping(one, self.branches[id])
        for id in turn.missing:
            self._accuse(one, id, BranchState.SILENT)
        self._at(one.watch.wake, partial(self._tick, one))

    def _ping(self, one: Branch, other: Branch) -> None:
        if other.state is BranchState.CLOSED:
            self._accuse(one, other.id, BranchState.CLOSED)
        elif not self._lost():
            self._received[other.id]["watch"] += 1
            if other.state is BranchState.UP and not self._lost():
                self._received[one.id]["watch"] += 1
                one.watch.pong(other.id)

    def _accuse(self, one: Branch, id: str, state: BranchState) -> None:
        roster, live = self.rosters[one.id], self.rosters[one.id].live
        member = roster.get(id)
        assert member is not None
        if one.guard.reason(live, self.now):
            self._doubted += 1
        elif not self._lost() and not self._lost():  # its ping to itself, and the pong
            after = roster.observe(Down(id, member.announcement.incarnation, state), self.now)
            if after is not roster:
                self._accused += self.branches[id].state is BranchState.UP
                self._learn(one, after, id)
                self._broadcast(one, Down(id, member.announcement.incarnation, state))

    def _compare(self, one: Branch) -> None:
        self._at(self.now + COMPARE_EVERY * (0.9 + 0.2 * self.chance.random()), partial(self._compare, one))
        if one.state is not BranchState.UP:
            return
        other = self.branches[self.chance.choice(self._ids)]
        member = self.rosters[one.id].get(other.id)
        if other is one or member is None or not member.live or other.state is BranchState.CLOSED or self._lost():
            return
        self._received[other.id]["digest"] += 1
        if other.state is BranchState.UP and not self._lost():
            self._received[one.id]["digest"] += 1
            self._exchange(one, other)

    def _exchange(self, one: Branch, other: Branch) -> None:
        mine, theirs = self.rosters[one.id], self.rosters[other.id]
        if mine is theirs:
            return
        if mine.digests != theirs.digests:
            buckets = differing(mine.digests.texts(), theirs.digests.texts())
            self._fill(other, one, buckets)
            if not self._lost():
                self._received[other.id]["fill"] += 1
                self._fill(one, other, buckets)
        if self.rosters[one.id].digests == self.rosters[other.id].digests:
            self.rosters[one.id] = self.rosters[other.id]

    def _fill(self, source: Branch, target: Branch, buckets: tuple[int, ...]) -> None:
        for member in self.rosters[source.id].entries(buckets, self.now):
            if self.rosters[target.id].get(member.id) is not member:
                for said in (member.announcement, member.down):
                    if said is not None:
                        self._hear(target, self.rosters[target.id].observe(said, self.now), said)

    def _return(self, one: Branch) -> None:
        """With its next life, as a joiner."""
        one.state, one.watch, one.guard = BranchState.UP, Watch(self.now, self.chance.random()), Guard()
        one.said = replace(one.said, incarnation=one.said.incarnation + 1, boot=str(int(one.said.boot) + 1))
        self._exchange(one, self.branches[next(id for id in self.branches if id != one.id)])
        self._look_around(one)
        self._announce(one)

    # How it gets about

    def _broadcast(self, sender: Branch, said: Announcement | Down) -> None:
        kind = "announce" if isinstance(said, Announcement) else "gone"

        def arrive() -> None:
            # Many share one roster, and so what follows from it: before (kept, so that its id is not reused), after.
            believed: dict[int, tuple[Roster, Roster, bool]] = {}
            for name, one in self.branches.items():
                if one.state is not BranchState.UP or self._lost():
                    continue
                self._received[name][kind] += 1
                if said.id in one.watched and kind == "announce":
                    one.watch.pong(said.id)
                before = self.rosters[name]
                if (known := believed.get(id(before))) is None:
                    after = before.observe(said, self.now)
                    known = believed[id(before)] = before, after, _moved(before, after, said.id)
                if known[2]:
                    self._hear(one, known[1], said)
                else:
                    self.rosters[name] = known[1]

        self._at(self.now + LATENCY, arrive)

    def _hear(self, one: Branch, after: Roster, said: Announcement | Down) -> None:
        if said.id == one.id and isinstance(said, Down) and said.incarnation >= one.said.incarnation:
            one.said = replace(one.said, incarnation=said.incarnation + 1)
            self._announce(one)
        else:
            self._learn(one, after, said.id)

    def _learn(self, one: Branch, after: Roster, id: str) -> None:
        before, self.rosters[one.id] = self.rosters[one.id], after
        if not _moved(before, after, id):
            return
        if (point(id) - point(one.id)) % 2**64 <= one.reach:
            one.watched = ()
        member = after.get(id)
        if member is not None and member.live:
            one.guard.returned(id)
        elif id != one.id:
            one.guard.vanished(id, after.live, self.now)
            if self._failed is not None and id == self._failed.id:
                copies = COPY * len(self.branches) * self.chance.random()
                self._known.setdefault(one.id, self.now - self._failed_at + copies)

    def _look_around(self, one: Branch) -> None:
        one.watched = Ring.of(self.rosters[one.id]).watched_by(one.id)
        one.reach = _reach(one.id, one.watched)

    def _lost(self) -> bool:
        return self.loss > 0 and self.chance.random() < self.loss

    def _at(self, when: float, action: Action) -> None:
        heapq.heappush(self._events, (when, next(self._number), action))

    def _until(self, when: float) -> None:
        while self._events[0][0] <= when:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = when


def table(sizes: Mapping[int, Sequence[int]] = SIZES) -> str:
    lines = [
        "Presence: background deliveries per second and branch, and how fast all others know of one failed branch.",
        "",
        f"{'':21} {'mean per second and branch':^40} {'closed (s)':^13} {'silent (s)':^13} {'falsely':>8}",
        f"{'branches':>8} {'loss':>5} {'time':>6} {'announce':>8} {'watch':>6} {'digest':>6} {'together':>8}"
        f" {'busiest':>8} {'p50':>6} {'max':>6} {'p50':>6} {'max':>6} {'accused':>8}",
    ]
    for branches, failures in sizes.items():
        lines += [
            _line(Simulation(branches, loss).run(times), loss) for loss, times in zip(LOSSES, failures, strict=True)
        ]
    return "\n".join([*lines, "", *NOTES])


def _line(measured: Measured, loss: float) -> str:
    announce, watch, digest = (measured.rate(kind) for kind in KINDS)
    times = [figure for known in (measured.closed, measured.silent) for figure in (median(known), max(known))]
    return (
        f"{measured.branches:>8} {loss:>5.0%} {measured.seconds:>5.0f}s {announce:>8.2f} {watch:>6.2f} {digest:>6.2f}"
        f" {announce + watch + digest:>8.2f} {measured.busiest:>8.2f}"
        f" {' '.join(f'{figure:>6.2f}' for figure in times)} {measured.accused:>8}"
    )


def _moved(before: Roster, after: Roster, id: str) -> bool:
    one, other = before.get(id), after.get(id)
    return (one is not None and one.live) != (other is not None and other.live)


def _reach(me: str, watched: tuple[str, ...]) -> int:
    return max(((point(id) - point(me)) % 2**64 for id in watched), default=2**64)
