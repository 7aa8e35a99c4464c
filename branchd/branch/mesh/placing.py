"""The asking side of placement: probes, offers and cancels over the link, as core/placement.py decides them.

The target's side is hosting.py; that of this very branch is called without the bus.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from branchd.branch.mesh.link import Link
from branchd.branch.mesh.neighbours import Made
from branchd.core import placement as core
from branchd.core.admission import Probe, Refusal, Room
from branchd.core.books import Books
from branchd.core.candidates import Candidates
from branchd.core.errors import BranchdError, NoRoute, Unavailable
from branchd.core.peers import Address, Announcement
from branchd.core.placement import Asked, Placement, Sign, Try
from branchd.core.roster import Member
from branchd.core.value import Value
from branchd.wire.mesh import Accepted, Cancel, Cancelled, Offer
from branchd.wire.resources import AskedBranch, Explanation, OfferedBranch, timestamp

#: seconds for the answer to an offer: taking a name may wait for one second, a commit for a slow disk
OFFER_TIMEOUT = 5.0

#: seconds for the acknowledgement of a cancel
CANCEL_TIMEOUT = 5.0

#: creates of one request that are placed with the answers to one round of probes, and how many of them at one time
BLOCK, AT_ONCE = 64, 32

#: requests of which the target is remembered, and for how many seconds; after that a name is what tells a retry
REMEMBERED, REMEMBERED_FOR = 10_000, 3600.0

#: placements that can be explained
EXPLAINED = 1000


class Target(Protocol):
    """The target's side at this very branch."""

    def room(self, probe: Probe) -> Room: ...

    async def offer(self, offer: Offer) -> Accepted | Refusal:
        """Unavailable where it cannot be told whether it was taken; the same offer again tells."""

    async def cancel(self, cancel: Cancel) -> Cancelled:
        """Unavailable where it cannot be made sure."""


class Placing:
    def __init__(
        self,
        link: Link,
        here: Target,
        myself: Announcement,
        others: Callable[[], Sequence[Member]],
        chance: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`myself`: this branch as others see it while it takes instances; of now is what here.room() says.

        `others`: the roster without this branch, the same object as long as it has not changed. `chance`: uniform in
        [0, 1). `wall`: seconds since 1970.
        """
        self._link = link
        self._here = here
        self._addresses: dict[str, Address] = {}
        self._myself = myself
        self._others = others
        self._chance = chance
        self._wall = wall
        self._books = Books()
        self._seen: Sequence[Member] | None = None
        self._candidates = Candidates(())
        self._names: dict[str, str] = {}
        self._targets: OrderedDict[str, _Remembered] = OrderedDict()  #: by request
        self._stories: OrderedDict[tuple[str, str], _Story] = OrderedDict()

    async def place(self, offer: Offer, probe: Probe) -> Made:
        """NoCapacity, Conflict where the name is taken, Unavailable where that is not sure, OutcomeUnknown, NotFound.

        The same request, that is one with the same id, makes it at most once unless the outcome was unknown.
        """
        create = self._create(probe, offer)
        return await create.run(create.placement.begin())

    async def place_all(self, offers: Sequence[Offer], probe: Probe) -> list[Made | BranchdError]:
        """Each of them, in their order; all are of the app and the weight that the probe names."""
        answers: list[Made | BranchdError] = []
        for first in range(0, len(offers), BLOCK):
            answers += await self._place_block(offers[first : first + BLOCK], probe)
        return answers

    def explain(self, app: str, name: str) -> Explanation | None:
        """The last placement of that name that came to this branch; None where it is not remembered."""
        story = self._stories.get((app, name))
        return None if story is None else story.told(app, name, self._myself.name, self._names)

    async def _place_block(self, offers: Sequence[Offer], probe: Probe) -> list[Made | BranchdError]:
        running = asyncio.Semaphore(AT_ONCE)
        fresh = sum(self._target(offer.request) is None for offer in offers)
        creates = [self._create(probe, offer, fresh) for offer in offers]
        leader = next((create for create in creates if self._target(create.offer.request) is None), None)
        first = None if leader is None else await leader.survey()

        async def run(create: _Create) -> Made | BranchdError:
            async with running:
                begin = first if create is leader else create.placement.begin(leader.placement if leader else None)
                try:
                    return await create.run(begin)
                except BranchdError as error:
                    return error

        return await asyncio.gather(*map(run, creates))

    def _create(self, probe: Probe, offer: Offer, creates: int = 1) -> "_Create":
        """One of so many that are new."""
        self._refresh()
        fitting = self._candidates.fitting(probe.constraints)
        earlier = self._target(offer.request)
        placement = Placement(probe, fitting, self._books, self._chance, creates=creates, earlier=earlier)
        return _Create(self, self._link, self._here, placement, offer)

    def _refresh(self) -> None:
        others = self._others()
        if self._seen is not others:
            self._seen = others
            branches = [self._myself, *(member.announcement for member in others)]
            self._candidates = Candidates(branches)
            self._addresses = {branch.id: branch.peer for branch in branches}
            self._names = {branch.id: branch.name for branch in branches}

    # For creates

    def address(self, branch: str) -> Address | None:
        """None: it is not in the roster any more."""
        return self._addresses.get(branch)

    def remember(self, request: str, target: str, *, accepted: bool = False) -> None:
        """`accepted`: the target has said so; it stays true of it."""
        accepted = accepted or self.has_accepted(request, target)
        self._targets[request] = _Remembered(target, self._wall() + REMEMBERED_FOR, accepted)
        self._targets.move_to_end(request)
        if len(self._targets) > REMEMBERED:
            self._targets.popitem(last=False)

    def has_accepted(self, request: str, target: str) -> bool:
        """Whether the target said to this or another try of the request that it took it."""
        known = self._targets.get(request)
        return known is not None and known.target == target and known.accepted

    def forget(self, request: str) -> None:
        self._targets.pop(request, None)

    def keep(self, offer: Offer, placement: Placement, outcome: str) -> None:
        key = offer.app, offer.name
        self._stories[key] = _Story(self._wall(), placement.asked, placement.tries, outcome)
        self._stories.move_to_end(key)
        if len(self._stories) > EXPLAINED:
            self._stories.popitem(last=False)

    def _target(self, request: str) -> str | None:
        """The branch that may have made what this request asks for."""
        known = self._targets.get(request)
        return known.target if known is not None and known.until > self._wall() else None


class _Create:
    """One create under way: does what its state machine says, and tells it what came of that."""

    def __init__(self, placing: Placing, link: Link, here: Target, placement: Placement, offer: Offer) -> None:
        self.placement = placement
        self.offer = offer
        self._placing = placing
        self._link = link
        self._here = here
        self._action: core.Action | None = None  #: decided while nobody waited for it
        self._decided: asyncio.Future[None] | None = None
        self._probes: set[asyncio.Task[None]] = set()
        self._patience: asyncio.TimerHandle | None = None
        self._offered: Address | None = None  #: to whom last
        self._accepted: Accepted | None = None

    async def survey(self) -> core.Action:
        """Asks for room, and says what is to be done then."""
        action = self.placement.begin()
        while action is None or isinstance(action, core.Ask):
            action = await self._ask(action)
        return action

    async def run(self, action: core.Action | None) -> Made:
        outcome = "nobody waited for the end"
        try:
            while True:
                match action:
                    case core.Ask() | None:
                        action = await self._ask(action)
                    case core.Offer(target):
                        event = await self._offer(target)
                        action = self.placement.on(event)
                        if not isinstance(action, core.Offer | core.Cancel) or action.target != target:
                            self._settle(event)
                    case core.Cancel(target):
                        event = await self._cancel(target)
                        action = self.placement.on(event)
                        self._settle(event)
                    case core.Done():
                        outcome = "accepted"
                        return self._made()
                    case core.Failed(error):
                        outcome = error.detail
                        raise error
        finally:
            self._end()
            self._placing.keep(self.offer, self.placement, outcome)

    def _made(self) -> Made:
        assert self._accepted is not None
        assert self._offered is not None
        return Made(self._accepted.instance, self._accepted.made, self._accepted.owner or self._offered)

    def _settle(self, event: core.Event) -> None:
        """Once an offer's end is known: a retry has nothing to find where nothing was made."""
        if event not in (Sign.ACCEPTED, Sign.CANCEL_UNANSWERED):
            self._placing.forget(self.offer.request)

    async def _ask(self, ask: core.Ask | None) -> core.Action:
        """Asks these, and gives what the machine decides upon their answers, or upon those that are still to come."""
        if ask is not None:
            self._stop_patience()
            for branch in ask.branches:
                if branch == self._link.me.id:
                    self._heard(core.Answered(branch, self._here.room(self.placement.probe)))
                else:
                    task = asyncio.get_running_loop().create_task(self._probe(branch))
                    self._probes.add(task)
                    task.add_done_callback(self._probes.discard)
        if self._action is None:
            self._decided = asyncio.get_running_loop().create_future()
            await self._decided
        action, self._action = self._action, None
        assert action is not None
        return action

    def _heard(self, event: core.Event) -> None:
        action = self.placement.on(event)
        if action is not None:
            self._action = action
            if self._decided is not None and not self._decided.done():
                self._decided.set_result(None)

    async def _probe(self, branch: str) -> None:
        address = self._placing.address(branch)
        try:
            if address is None:
                raise NoRoute("it left the roster")
            room = await self._link.ask(address, self.placement.probe, core.PROBE_TIMEOUT)
        except NoRoute:
            self._heard(core.Silent(branch, "is not connected"))
        except Unavailable as error:
            self._heard(core.Silent(branch, error.detail))
        else:
            if not isinstance(room, Room):
                self._heard(core.Silent(branch, f"answers {type(room).__name__}"))
                return
            if self._patience is None:
                loop = asyncio.get_running_loop()
                self._patience = loop.call_later(core.PATIENCE, self._heard, Sign.WAITED)
            self._heard(core.Answered(branch, room))

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    async def _offer(self, target: str) -> core.Event:
        placing = self._placing
        self._offered = address = placing.address(target)
        local = address == self._link.me
        if address is None or not (local or self._link.connected):
            return Sign.NOT_ROUTED
        placing.remember(self.offer.request, target)
        try:
            if local:
                answer: object = await self._here.offer(self.offer)
            else:
                answer = await self._link.ask(address, self.offer, OFFER_TIMEOUT)
        except NoRoute:
            return Sign.NOT_ROUTED
        except Unavailable:
            return Sign.TIMED_OUT
        match answer:
            case Accepted():
                self._accepted = answer
                placing.remember(self.offer.request, target, accepted=True)
                return Sign.ACCEPTED
            case Refusal():
                return core.Refused(answer)
            case _:
                return Sign.TIMED_OUT

    async def _cancel(self, target: str) -> Sign:
        placing, question = self._placing, Cancel(self.offer.request)
        address = placing.address(target)
        if address is None or placing.has_accepted(self.offer.request, target):
            return Sign.CANCEL_UNANSWERED  # what another try was promised is not this one's to take back
        try:
            if address == self._link.me:
                answer: object = await self._here.cancel(question)
            else:
                answer = await self._link.ask(address, question, CANCEL_TIMEOUT)
        except (NoRoute, Unavailable):
            return Sign.CANCEL_UNANSWERED
        return Sign.CANCEL_ACKNOWLEDGED if isinstance(answer, Cancelled) else Sign.CANCEL_UNANSWERED

    def _end(self) -> None:
        self.placement.abandon()
        self._stop_patience()
        for task in self._probes:
            task.cancel()


class _Remembered(Value):
    target: str  #: that may have made what was asked for
    until: float  #: seconds since 1970
    accepted: bool  #: it said that it did


class _Story(Value):
    at: float
    asked: Mapping[str, Asked]
    tries: Sequence[Try]
    outcome: str

    def told(self, app: str, name: str, by: str, names: Mapping[str, str]) -> Explanation:
        branches = tuple(_shown(asked) for asked in self.asked.values())
        known = {**names, **{asked.id: asked.name for asked in self.asked.values()}}
        offers = tuple(OfferedBranch(known.get(tried.target, tried.target), tried.result) for tried in self.tries)
        return Explanation(app, name, timestamp(self.at), by, branches, offers, self.outcome)


def _shown(asked: Asked) -> AskedBranch:
    room = asked.room
    if room is None:
        return AskedBranch(asked.name, None, None, None, None, asked.answer)
    return AskedBranch(asked.name, room.slots, room.reserved, room.load, room.siblings, asked.answer)
