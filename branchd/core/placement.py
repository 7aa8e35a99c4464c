"""One create at the branch that it came to: whom to ask, whom to offer it to, and what to make of each answer.

A state machine without I/O: events in, one action out. Time stays with the caller (branchd.branch.mesh.placing), and so
do messages; a simulation runs it as it is. Who may be drawn: candidates.py; what a target says: admission.py.

The least loaded of a few that are asked afresh, drawn in proportion to their size, are nearly as good as the least
loaded of all, and asking few keeps the creates of many branches from herding to one: Mitzenmacher, "The Power of Two
Choices in Randomized Load Balancing" (1996); for unequal sizes: Berenbrink and others, "Balls into non-uniform bins".
"""

from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum, auto

from msgspec import Struct

from branchd.core.admission import FINAL, Probe, Reason, Refusal, Room
from branchd.core.books import Books
from branchd.core.candidates import Fitting
from branchd.core.errors import BranchdError, Conflict, NoCapacity, NotFound, OutcomeUnknown, Unavailable
from branchd.core.value import Value

#: so many branches are all asked; then the choice is exactly the one with the most spare capacity
ALL_ASKED = 8

#: branches that are asked of more than that: of two 2.8% of the instances are misplaced, of three 1.9%, of four 1.5%
#: (by tests/simulation/placement_table.py)
DRAWN = 3

#: seconds from the first answer of another branch until the others are not waited for, where one of them takes it
PATIENCE = 0.05

#: seconds for the answer to a probe
PROBE_TIMEOUT = 1.0

#: branches that it is offered to, and rounds of asking, of one create
TRIES = 8

#: reasons that one error names
TOLD = 20


# Actions


class Ask(Value):
    """Probe these; each is to come back as Answered or Silent."""

    branches: tuple[str, ...]


class Offer(Value):
    target: str


class Cancel(Value):
    target: str


class Done(Value):
    target: str


class Failed(Value):
    error: BranchdError


Action = Ask | Offer | Cancel | Done | Failed


# Events


class Answered(Value):
    branch: str
    room: Room


class Silent(Value):
    """It does not answer the probe."""

    branch: str
    why: str


class Refused(Value):
    refusal: Refusal


class Sign(Enum):
    WAITED = auto()  #: PATIENCE is over
    ACCEPTED = auto()
    NOT_ROUTED = auto()  #: the offer reached nobody, for sure
    TIMED_OUT = auto()  #: whether the offer was accepted is not known
    CANCEL_ACKNOWLEDGED = auto()
    CANCEL_UNANSWERED = auto()


Event = Answered | Silent | Refused | Sign


class Asked(Struct):
    """A branch that was asked."""

    id: str
    name: str
    labels: Mapping[str, str]
    marks: tuple[int, int]  #: of the books, for its weight and for the app
    room: Room | None = None
    silence: str = "has not answered in time"  #: why there is no room

    @property
    def answer(self) -> str:
        """Why it does not take it, or "" where it would."""
        return self.silence if self.room is None else self.room.obstacle


class Try(Value):
    """An offer, and what came of it."""

    target: str
    result: str


class Placement:
    """begin() and on() give the next action, or None where there is nothing to do but to wait for the next event.

    `asked` and `tries` tell what happened, for people.
    """

    def __init__(
        self,
        probe: Probe,
        fitting: Fitting,
        books: Books,
        chance: Callable[[], float],
        *,
        creates: int = 1,
        earlier: str | None = None,
    ) -> None:
        """`fitting`: the branches that meet the constraints. `chance`: uniform in [0, 1).

        `creates`: for how many of the same kind the answers are to do. `earlier`: the branch that the same request was
        offered to before; it is offered to that one first, for it may have made it.
        """
        self.probe = probe
        self.asked: dict[str, Asked] = {}
        self.tries: list[Try] = []
        self._fitting = fitting
        self._books = books
        self._chance = chance
        self._breadth = ALL_ASKED if len(fitting) <= ALL_ASKED or probe.spread else DRAWN
        self._breadth = max(self._breadth, creates * DRAWN if creates > 1 else 0)
        self._earlier = earlier
        self._rounds = 0
        self._unanswered = 0
        self._waited = False  #: those who have not answered are not waited for
        self._target: str | None = None  #: an offer to it is under way
        self._routed = False  #: an offer to the target may have reached it
        self._repeated = False
        self._passed: set[str] = set()  #: targets that do not take it
        self._over = False

    def begin(self, known: "Placement | None" = None) -> Action | None:
        """`known`: another placement of the same probe, whose answers do for this one too, and the other way round."""
        if known is not None:
            self.asked = known.asked
        if self._earlier is not None:
            self._routed = True
            return self._offer(self._earlier)
        return self._ended(self._go_on())

    def on(self, event: Event) -> Action | None:
        return None if self._over else self._ended(self._on(event))

    def abandon(self) -> None:
        """Nobody waits for it any more: what is under way may be accepted, and counts as if it were."""
        if self._target is not None and not self._over:
            self._books.keep(self._target, self.probe)
        self._over = True

    def _ended(self, action: Action | None) -> Action | None:
        self._over = isinstance(action, Done | Failed)
        return action

    def _on(self, event: Event) -> Action | None:
        match event:
            case Answered(branch, room):
                self.asked[branch].room = room
                return self._heard()
            case Silent(branch, why):
                self.asked[branch].silence = why
                return self._heard()
            case Sign.WAITED:
                self._waited = True
                return self._go_on() if self._target is None else None
        target = self._target
        assert target is not None, f"{event} without an offer"
        match event:
            case Sign.ACCEPTED:
                self._books.keep(target, self.probe)
                self.tries.append(Try(target, "accepted"))
                return Done(target)
            case Refused(refusal):
                if refusal.reason in FINAL:
                    self._pass(target, f"{refusal.reason}: {refusal.detail}")
                    return Failed(_error(refusal))
                return self._next(target, f"{refusal.reason}: {refusal.detail}")
            case Sign.NOT_ROUTED if not self._routed:
                return self._next(target, "is not connected")
            case Sign.TIMED_OUT if not self._repeated:
                self._routed = self._repeated = True
                return Offer(target)
            case Sign.NOT_ROUTED | Sign.TIMED_OUT:
                return Cancel(target)
            case Sign.CANCEL_ACKNOWLEDGED:
                return self._next(target, "did not answer; cancelled")
            case Sign.CANCEL_UNANSWERED:
                self._books.keep(target, self.probe)
                self.tries.append(Try(target, "did not answer; whether it took it is not known"))
                return Failed(
                    OutcomeUnknown(
                        f"{self._name(target)} was offered it and does not answer, so whether it was made is not known",
                        "ask again under the same Idempotency-Key, which makes it at most once",
                    )
                )
        raise AssertionError(event)

    def _heard(self) -> Action | None:
        self._unanswered -= 1
        if self._target is not None or (self._unanswered and not self._waited):
            return None
        return self._go_on()

    def _go_on(self) -> Action | None:
        """With no offer under way: to the best of those that take it, else ask others, else give up."""
        if len(self.tries) >= TRIES:
            return Failed(self._no_capacity())
        best, level = self._best()
        if best is not None and level <= 1:
            return self._offer(best.id)
        if self._unanswered:
            return None
        if ask := self._ask():
            return ask
        if best is not None:  # above its slots by what this branch offered meanwhile, of which some may be refused
            return self._offer(best.id)
        return Failed(self._no_capacity())

    def _ask(self) -> Ask | None:
        if self._rounds >= TRIES:
            return None
        without = self.asked.keys() | self._passed
        drawn = self._fitting.draw(self._breadth, without, self._chance, self.probe.spread)
        if not drawn:
            return None
        for branch in drawn:
            marks = self._books.mark(branch.id, ""), self._books.mark(branch.id, self.probe.app)
            self.asked[branch.id] = Asked(branch.id, branch.name, branch.labels, marks)
        self._rounds += 1
        self._unanswered += len(drawn)
        self._waited = False
        return Ask(tuple(branch.id for branch in drawn))

    def _best(self) -> tuple[Asked | None, float]:
        """Of those that would take it the one that would be filled least, and to what level."""
        siblings = self._siblings() if self.probe.spread else {}
        best, rank = None, (False, 0, 0.0, 0.0)
        for asked in self.asked.values():
            room = asked.room
            if room is None or room.obstacle or asked.id in self._passed:
                continue
            reserved = room.reserved + self._books.since(asked.id, "", asked.marks[0])
            level = (reserved + self.probe.weight) / room.slots if room.slots else float("inf")
            own = siblings[asked.labels.get(self.probe.spread, "")] if self.probe.spread else 0
            if best is None or (level > 1, own, level, room.load) < rank:
                best, rank = asked, (level > 1, own, level, room.load)
        return best, rank[2]

    def _siblings(self) -> Counter[str]:
        """Instances of the app by the value of the label that they are spread over, as far as was asked."""
        assert self.probe.spread is not None
        counts: Counter[str] = Counter()
        for asked in self.asked.values():
            if asked.room is not None:
                siblings = asked.room.siblings + self._books.since(asked.id, self.probe.app, asked.marks[1])
                counts[asked.labels.get(self.probe.spread, "")] += siblings
        return counts

    def _offer(self, target: str) -> Offer:
        self._target = target
        self._books.offer(target, self.probe)
        return Offer(target)

    def _pass(self, target: str, result: str) -> None:
        self._books.drop(target, self.probe)
        self.tries.append(Try(target, result))
        self._passed.add(target)

    def _next(self, target: str, result: str) -> Action | None:
        self._pass(target, result)
        self._target = None
        self._routed = self._repeated = False
        return self._go_on()

    def _name(self, branch: str) -> str:
        return self.asked[branch].name if branch in self.asked else branch

    def _no_capacity(self) -> NoCapacity:
        reasons = {tried.target: tried.result for tried in self.tries}
        for asked in self.asked.values():
            if asked.id not in reasons:
                reasons[asked.id] = asked.answer or "was not offered it"
        if not reasons:
            needed = ", ".join(f"{name}={value}" for name, value in self.probe.constraints.items())
            detail = f"no branch that takes instances has the labels {needed}" if needed else "every branch is draining"
            return NoCapacity(detail)
        told = [f"{self._name(branch)}: {reason}" for branch, reason in list(reasons.items())[:TOLD]]
        more = f"; and {len(reasons) - TOLD} more" if len(reasons) > TOLD else ""
        return NoCapacity(f"no branch takes it: {'; '.join(told)}{more}")


def _error(refusal: Refusal) -> BranchdError:
    """Of a reason in FINAL."""
    match refusal.reason:
        case Reason.UNSURE:
            return Unavailable(refusal.detail, "try again in a few seconds")
        case Reason.TOMBSTONE:
            return NotFound(refusal.detail)
        case _:
            return Conflict(refusal.detail)
