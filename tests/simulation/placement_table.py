"""How evenly placement fills a neighbourhood: the table that `make sim` prints.

The very functions of core/ that run in production, in a light event simulation: hosts of unequal size, creates that
come to branches at random, messages and commits that take time. Beside it two policies that the design refuses.

- *misplaced*: the share of the instances that are above the ideal even filling of their host. The ideal puts each on
  the host whose level it leaves lowest, one after the other, and knows everything at once; so many would have to move.
- *p99 level*: the level (reserved / slots) of the host at the 99th percentile, over that of the ideal's fullest.
- *fullest*: the same of the fullest host.
- *overfull*: hosts above their slots. Only placement itself has targets that refuse.
- *unplaced*: creates that were answered with an error on the way to 97% of all slots. The others refuse nothing.

The first four are taken at 70%. Announcements are as old as the formula of core/presence.py makes them. Placement does
not look at what they say of the load, so its creates come as fast as a broker carries them; the creates of the two
others, which would fare worse then, come within four periods of the announcements.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import ceil
from random import Random

from branchd.core.admission import Probe, Standing, admit, judge_room
from branchd.core.books import Books
from branchd.core.candidates import Candidates
from branchd.core.capacity import Capacity
from branchd.core.peers import Announcement, BranchState
from branchd.core.placement import Action, Answered, Ask, Failed, Offer, Placement, Refused, Sign
from branchd.core.presence import MATERIAL, due, period

SIZES = (10, 400, 1_000, 10_000)

#: slots of a host, each as likely as the others: of 3, 4 and 6 CPUs
SLOTS = (12, 16, 24)

#: of all slots: where the filling is looked at, and where it ends
LOOK, END = 0.70, 0.97

#: creates a second, where they come fast
RATE = 1000.0

#: periods of the announcements in which the creates up to LOOK come, where they come slowly
PERIODS = 4.0

#: seconds, on the average: a message's way, and a target's commit
WAY, COMMIT = 0.001, 0.005

#: seconds after the last create in which all come to their end
SETTLED = 1.0

PROBE = Probe("app", 1)


@dataclass(slots=True)
class Host:
    id: str
    slots: int
    reserved: int = 0
    announced: int = 0  #: what was reserved then
    announced_at: float = 0.0
    early: bool = False  #: it announces early, as soon as it may

    @property
    def standing(self) -> Standing:
        return Standing(Capacity(self.slots, self.reserved), 0, {})


class World:
    def __init__(self, branches: int, slots: Sequence[int] = SLOTS, seed: int = 1) -> None:
        self.random = Random(seed)
        self.hosts = [Host(f"{number:05}", self.random.choice(slots)) for number in range(branches)]
        self.by_id = {host.id: host for host in self.hosts}
        self.slots = sum(host.slots for host in self.hosts)
        self.now = 0.0
        self.failed = 0  #: creates that were answered with an error
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what))

    def fill(self, create: Callable[[], None], level: float, gap: float) -> None:
        """Creates until so many have begun as make this level, so many seconds apart on the average, and ends them."""
        left = round(level * self.slots) - sum(host.reserved for host in self.hosts) - self.failed

        def arrive() -> None:
            nonlocal left
            if left > 0:
                left -= 1
                create()
                self.later(self.random.expovariate(1 / gap), arrive)

        self.later(0.0, arrive)
        while left > 0:
            self._step()
        end = self.now + SETTLED
        while self._events and self._events[0][0] < end:
            self._step()

    def _step(self) -> None:
        self.now, _, what = heapq.heappop(self._events)
        what()

    def way(self) -> float:
        return self.random.expovariate(1 / WAY)


Policy = Callable[[World], Callable[[], None]]


def by_placement(world: World) -> Callable[[], None]:
    """Each create at a branch of its own choice, by the state machine of core/placement.py."""
    fitting = Candidates(
        Announcement(host.id, "b", host.id, 1, 1, BranchState.UP, 0.0, host.slots, 0, "") for host in world.hosts
    ).fitting({})
    books: defaultdict[str, Books] = defaultdict(Books)

    def create() -> None:
        placement = Placement(PROBE, fitting, books[world.random.choice(world.hosts).id], world.random.random)

        def probed(host: Host) -> None:
            answer = Answered(host.id, judge_room(PROBE, host.standing))
            world.later(world.way(), lambda: act(placement.on(answer)))

        def offered(host: Host) -> None:
            refusal = admit(PROBE, host.standing)
            host.reserved += refusal is None
            answer = Sign.ACCEPTED if refusal is None else Refused(refusal)
            world.later(COMMIT + world.way(), lambda: act(placement.on(answer)))

        def act(action: Action | None) -> None:
            match action:
                case Ask(branches):
                    for branch in branches:
                        world.later(world.way(), partial(probed, world.by_id[branch]))
                case Offer(target):
                    world.later(world.way(), partial(offered, world.by_id[target]))
                case Failed():
                    world.failed += 1

        act(placement.begin())

    return create


def by_announcement(world: World) -> Callable[[], None]:
    """To the branch that is the least loaded of all by what each said last."""
    least: list[tuple[float, str]] = []
    branches = len(world.hosts)

    def announce(host: Host) -> None:
        host.announced, host.announced_at, host.early = host.reserved, world.now, False
        heapq.heappush(least, ((host.announced + 1) / host.slots, host.id))

    def regularly(host: Host) -> None:
        announce(host)
        world.later(due(0.0, branches, world.random.random(), early=False), partial(regularly, host))

    for host in world.hosts:
        announce(host)
        world.later(world.random.random() * period(branches), partial(regularly, host))

    def create() -> None:
        while least[0][0] != (world.by_id[least[0][1]].announced + 1) / world.by_id[least[0][1]].slots:
            heapq.heappop(least)  # it said something else since
        host = world.by_id[least[0][1]]
        host.reserved += 1
        if not host.early and host.reserved - host.announced >= MATERIAL * host.slots:
            host.early = True
            soonest = due(host.announced_at, branches, 0.0, early=True)
            world.later(max(0.0, soonest - world.now), lambda: announce(host) if host.early else None)

    return create


def by_chance(world: World) -> Callable[[], None]:
    """To any branch."""

    def create() -> None:
        world.random.choice(world.hosts).reserved += 1

    return create


@dataclass(frozen=True, slots=True)
class Result:
    misplaced: float
    p99: float
    fullest: float
    overfull: int
    unplaced: int | None = None


def play(branches: int, policy: Policy, slots: Sequence[int] = SLOTS, seed: int = 1) -> Result:
    world = World(branches, slots, seed)
    create = policy(world)
    if policy is not by_placement:
        world.fill(create, LOOK, PERIODS * period(branches) / (LOOK * world.slots))
        return measure(world)
    world.fill(create, LOOK, 1 / RATE)
    looked = measure(world)
    world.fill(create, END, 1 / RATE)
    overfull = looked.overfull + measure(world).overfull
    return Result(looked.misplaced, looked.p99, looked.fullest, overfull, world.failed)


def measure(world: World) -> Result:
    total = sum(host.reserved for host in world.hosts)
    ideal, highest = ideal_filling([host.slots for host in world.hosts], total)
    above = sum(max(0, host.reserved - best) for host, best in zip(world.hosts, ideal, strict=True))
    levels = sorted(host.reserved / host.slots for host in world.hosts)
    overfull = sum(host.reserved > host.slots for host in world.hosts)
    return Result(above / total, levels[ceil(0.99 * len(levels)) - 1] / highest, levels[-1] / highest, overfull)


def ideal_filling(slots: Sequence[int], total: int) -> tuple[list[int], float]:
    """Instances of each host, and the level of the fullest."""
    filled, highest = [0] * len(slots), 0.0
    levels = [(1 / size, host) for host, size in enumerate(slots)]
    heapq.heapify(levels)
    for _ in range(total):
        highest, host = levels[0]
        filled[host] += 1
        heapq.heapreplace(levels, ((filled[host] + 1) / slots[host], host))
    return filled, highest


POLICIES: Mapping[str, Policy] = {
    "three asked": by_placement,
    "least by announcement": by_announcement,
    "at random": by_chance,
}


def table(sizes: Sequence[int] = SIZES) -> str:
    """Placement by policy and size; within a minute."""
    columns = ("misplaced", "p99 level", "fullest", "overfull", "unplaced")
    lines = [f"{'branches':>8}  {'policy':21}" + "".join(f"{column:>10}" for column in columns)]
    for branches in sizes:
        for name, policy in POLICIES.items():
            lines.append(f"{branches:>8}  {name:21}{_shown(play(branches, policy))}")
    return "\n".join(lines)


def _shown(result: Result) -> str:
    unplaced = "" if result.unplaced is None else result.unplaced
    levels = f"{result.p99:>9.2f}x{result.fullest:>9.2f}x"
    return f"{result.misplaced:>10.1%}{levels}{result.overfull:>10}{unplaced:>10}".rstrip()
