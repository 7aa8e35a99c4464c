"""This branch among the others: it joins, says that it is there, and believes what it hears.

What is decided is decided in core/presence.py and core/roster.py; here are the timers and the messages. Watching others
is watching.py's; the exchange by which a joiner learns of them, and that repairs what was lost, is gossip.py's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import structlog

from branchd.branch.mesh.doors import TRIES, Doors
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.watching import Watching
from branchd.branch.ports import BusState
from branchd.branch.tasks import Tasks
from branchd.core.errors import Conflict, NoAnswer, NoRoute, Unavailable
from branchd.core.peers import Address, Announcement, BranchState, Down
from branchd.core.presence import Guard, ahead, due, joining_wait, material, news
from branchd.core.roster import LINGER, Member, Roster
from branchd.core.value import Value
from branchd.wire.mesh import Announce, Gone, Ping, Pong

log = structlog.get_logger(__name__)

#: seconds until what failed at this branch (its store, its connection) is tried again
AGAIN = 2.0

#: seconds between two looks for those that ended long ago
SWEEP_EVERY = 600.0


class Self(Value):
    """What the branch knows of itself, and others are to hear."""

    name: str
    state: BranchState
    slots: int
    reserved: int
    version: str
    labels: Mapping[str, str]
    address: str | None


class Presence:
    """`roster` is a value: who wants to look twice at the same one keeps it. Made before the link is opened."""

    def __init__(
        self,
        link: Link,
        clock: Callable[[], float],
        wall: Callable[[], float],
        chance: Callable[[], float],
        myself: Callable[[], Self],
        incarnation: int,
        remember: Callable[[int], Awaitable[None]],
        happened: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        """`incarnation`: the last that was remembered, 0 for none. `happened`: an event for operators, its data."""
        self.roster = Roster()
        self.incarnation = incarnation
        self.joined = False  #: it knows what the others know; soon after it announces itself
        self.twin: Announcement | None = None  #: of another daemon with this branch's id, which must not be
        self.namesakes: Mapping[str, tuple[str, ...]] = {}  #: names that several live branches have, with their ids
        self.tasks = Tasks("presence")
        self._link = link
        self._clock = clock
        self._wall = wall
        self._chance = chance
        self._myself = myself
        self._remember = remember
        self._happened = happened
        self._guard = Guard()
        self._doors = Doors(link, chance)
        self.watching = Watching(link, clock, chance, lambda: self.roster, lambda: self.absence_doubted, self._found)
        self._others: tuple[Member, ...] | None = None
        self._absent: tuple[Member, ...] | None = None  #: that may be missing
        self._clocks: dict[str, float] = {}  #: by id, when this daemon's clock showed 0 by theirs, seconds since 1970
        self._said: Announcement | None = None
        self._said_at = 0.0
        self._drawn = 0.0  #: chance, of the next announcement's time
        self._early = False
        self._raising = 0  #: the highest incarnation on its way to the disk
        self._first_at = 0.0  #: when a joiner announces
        self._sweep_at = clock() + SWEEP_EVERY
        self._told_doubt = ""
        self._was_connected = False
        self._poke = asyncio.Event()
        link.hear(Announce, self._heard)
        link.hear(Gone, lambda _, gone: self.believe(gone.downs))
        link.serve(Ping, self._pinged)
        link.on_state(self._state)

    # Life

    def begin(self, exchange: Callable[[Address, bool], Awaitable[None]]) -> None:
        """`exchange`: of all that is known with one peer; True: what is newer here, all are to hear."""
        self._exchange = exchange
        self.tasks.repeat(self._step, lambda: AGAIN * (0.5 + self._chance()))

    async def end(self, *, quietly: bool = False) -> None:
        """Says that it goes, unless `quietly`; the link is to be closed after this."""
        await self.watching.tasks.end()
        await self.tasks.end()
        if self._said is not None and self._link.connected and not quietly:
            self._announce(BranchState.CLOSED)
        self.joined, self._said = False, None

    # For the branch

    def changed(self) -> None:
        """Something of Self changed; where that is material, others hear of it soon."""
        if self._said is not None and material(self._said, self._saying()):
            self._early = True
            self._poke.set()

    def others(self) -> tuple[Member, ...]:
        """The other branches that are up or draining."""
        if self._others is None:
            self._others = tuple(member for member in self.roster if member.live and member.id != self._link.me.id)
        return self._others

    def missing(self) -> tuple[Member, ...]:
        """Those whose instances may be there though nobody can tell: silent, or ended lately without a goodbye."""
        if self._absent is None:
            self._absent = tuple(one for one in self.roster if not one.live and not one.said_goodbye)
        now = self._clock()
        return tuple(member for member in self._absent if self._guard.misses(member, now))

    def find(self, which: str) -> Member | None:
        """The branch with that id or name, unless it is closed. Conflict where several have the name."""
        member = self.roster.get(which)
        if member is not None and member.state is not BranchState.CLOSED:
            return member
        named = [one for one in self.roster if one.name == which and one.state is not BranchState.CLOSED]
        named = [one for one in named if one.live] or named
        if len(named) > 1:
            ids = ", ".join(sorted(one.id for one in named))
            raise Conflict(f"{len(named)} branches are named {which}: {ids}", "give all but one of them another name")
        return named[0] if named else None

    @property
    def absence_doubted(self) -> str:
        """Why nothing may be concluded from absence, a NoRoute included, in words; "" when it may."""
        if not self._link.connected:
            return "this branch is not connected to the broker"
        return self._doubt() if self.joined else "this branch has not joined its neighbourhood yet"

    @property
    def doubt_lasts(self) -> float:
        """Seconds that absence is doubted at most, if this branch keeps its connection."""
        return self._guard.lasts(self._clock())

    def confirm(self) -> None:
        """An operator says that what vanished is gone."""
        self._guard.confirm((member.id for member in self.roster if not member.live), self._clock())
        self._poke.set()

    @property
    def offset(self) -> float:
        """Seconds that this branch's clock is ahead of the median of all clocks that it heard, its own included."""
        return ahead(self._wall() - self._clock(), self._clocks.values())

    # What is believed

    def believe(self, said: Iterable[Announcement | Down], ages: Mapping[str, float] = MappingProxyType({})) -> None:
        """Takes in what others say, in any order and however often.

        `ages`: of branches that ended, by id, seconds since then; without it, now.
        """
        before, now = self.roster, self._clock()
        moved = False
        for one in said:
            if one.id == self._link.me.id and self.joined:
                self._of_myself(one)
                continue
            age = max(0.0, ages.get(one.id, 0.0))
            if age >= LINGER:
                continue  # who tells it is about to forget it
            was = self.roster.get(one.id)
            self.roster = self.roster.observe(one, now - age)
            member = self.roster.get(one.id)
            if member is not None and member is not was:
                moved |= was is None or (was.state, was.name) != (member.state, member.name)
                if self.joined:
                    if isinstance(one, Announcement):
                        self._guard.answered(one.id)
                    self._changed(was, member, now)
        if self.roster is not before:
            self._roster_changed(moved)

    def _found(self, down: Down) -> None:
        """By this branch itself."""
        before = self.roster
        self.believe([down])
        if self.roster is not before:  # else another watcher was faster
            self._link.broadcast(Gone((down,)))

    def _of_myself(self, said: Announcement | Down) -> None:
        if said.incarnation < self.incarnation:
            if isinstance(said, Down) and self._said is None:
                self._first_at = self._clock()  # an earlier life is missed, while this one still waits to say a word
                self._poke.set()
            return
        if isinstance(said, Down):
            self._raise_above(said.incarnation)
        elif said.boot != self._link.me.boot:
            told = self.twin
            if said.state is not BranchState.CLOSED:
                self.twin = said
                if told is None or told.boot != said.boot:
                    self._happened("branch.twin", {"branch": said.name, "id": said.id, "boot": said.boot})
            if self._link.definite and self._link.connected:
                self._raise_above(said.incarnation)  # the inbox is this one's, and the others look for the twin there

    def _raise_above(self, incarnation: int) -> None:
        if incarnation >= self._raising:
            self._raising = incarnation + 1
            self.tasks.begin(self._refute(self._raising))

    def _changed(self, was: Member | None, member: Member, now: float) -> None:
        if member.live:
            self._guard.returned(member.id)
        elif was is not None and was.live and member.down is not None:
            self._guard.vanished(member.id, self.roster.live, now)
        if (word := news(was, member)) is not None:
            self._happened(word, {"branch": member.name, "id": member.id})

    def _roster_changed(self, moved: bool) -> None:
        """`moved`: somebody came, went, or has another name."""
        self._others = self._absent = None
        if moved:
            self.watching.moved()
            self._find_namesakes()
            self._poke.set()  # how many there are decides when to announce, and of what is missing it may be doubted

    def _find_namesakes(self) -> None:
        if not self.joined:
            return
        before, self.namesakes = self.namesakes, self.roster.namesakes()
        for name, ids in self.namesakes.items():
            if set(ids) - set(before.get(name, ())):
                self._happened("branch.namesakes", {"branch": name, "ids": list(ids)})

    def _doubt(self) -> str:
        return self._guard.reason(self.roster.live, self._clock())

    # Messages

    def _heard(self, sender: Address, message: Announce) -> None:
        said = message.announcement
        if said.peer != sender:
            self._link.dropped["impostor"] += 1
            return
        self.believe([said])
        member = self.roster.get(said.id)
        if member is not None and member.announcement is said:  # the latest: an old one tells no time
            self._clocks[said.id] = said.at - self._clock()
            self.watching.heard(said.id)

    async def _pinged(self, _: Address, __: Ping) -> Pong:
        return Pong()

    def _state(self, state: BusState) -> None:
        if state.connected and self._was_connected and self.joined:
            self._guard.reconnected(self._clock())
            self.tasks.begin(self._return())
        self._was_connected |= state.connected
        self._poke.set()

    # Joining and returning

    async def _step(self) -> None:
        """Joins; then a turn, until the next one is due."""
        if not self.joined:
            await self._join()
        self._poke.clear()
        pause = max(0.0, self._turn() - self._clock())
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._poke.wait()

    async def _join(self) -> None:
        while not self._link.connected:
            self._poke.clear()
            await self._poke.wait()
        await self._doors.learn(self._exchange, self.tasks.report)
        self.incarnation = max(self.incarnation, self.roster.incarnation(self._link.me.id)) + 1
        await self._remember(self.incarnation)
        await self._doors.hold()
        self._first_at = self._clock() + joining_wait(len(self.others()) + 1, self._chance())
        self.joined = True
        self._find_namesakes()

    async def _return(self) -> None:
        """The connection was lost, and is there again: what happened meanwhile?"""
        try:
            await self._doors.hold()
            for _ in range(TRIES):
                if not (others := self.others()):
                    break
                try:
                    await self._exchange(others[int(self._chance() * len(others))].peer, True)
                    return
                except (NoRoute, NoAnswer):
                    continue  # it is not back yet, perhaps
            if (peer := await self._doors.knock()) is not None and peer != self._link.me:
                await self._exchange(peer, True)
        except (NoRoute, Unavailable) as error:
            log.info("nobody told what happened meanwhile", error=error.detail)

    async def _refute(self, incarnation: int) -> None:
        """Somebody found this branch ended: it says that it is there, under an incarnation that is on disk by then."""
        try:
            await self._remember(incarnation)
        except Unavailable as error:  # the others know it, and tell it to the next daemon
            log.warning("incarnation not remembered", error=error.detail)
        if incarnation > self.incarnation:
            self.incarnation = incarnation
            self._announce()

    # Announcing and watching

    def _turn(self) -> float:
        """Does what is due; when the next thing is."""
        now = self._clock()
        if not self._link.connected:
            return now + SWEEP_EVERY
        if now >= self._announce_at():
            self._announce()
        self.watching.turn(now)
        self._tell_doubt()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY
            if (swept := self.roster.sweep(now)) is not self.roster:
                self.roster = swept
                self._roster_changed(moved=True)
            self._clocks = {member.id: at for member in self.others() if (at := self._clocks.get(member.id))}
        return min(self._announce_at(), self.watching.wake, self._sweep_at)

    def _announce_at(self) -> float:
        if self._said is None:
            return self._first_at
        return due(self._said_at, len(self.others()) + 1, self._drawn, self._early)

    def _saying(self, state: BranchState | None = None) -> Announcement:
        mine, me = self._myself(), self._link.me
        fresh = self._said is None or self._said.incarnation < self.incarnation
        return Announcement(
            id=me.id,
            boot=me.boot,
            name=mine.name,
            incarnation=self.incarnation,
            sequence=1 if fresh or self._said is None else self._said.sequence + 1,
            state=state or mine.state,
            at=self._wall(),
            slots=mine.slots,
            reserved=mine.reserved,
            version=mine.version,
            labels=mine.labels,
            address=mine.address,
        )

    def _announce(self, state: BranchState | None = None) -> None:
        self._said, self._said_at = self._saying(state), self._clock()
        self._drawn, self._early = self._chance(), False
        was = self.roster.get(self._said.id)
        self.roster = self.roster.observe(self._said, self._said_at)
        self._link.broadcast(Announce(self._said))
        self._roster_changed(moved=was is None or not was.live)

    def _tell_doubt(self) -> None:
        doubt = self._doubt()
        if doubt != self._told_doubt:
            self._told_doubt = doubt
            self._happened("mesh.doubt" if doubt else "mesh.certain", {"reason": doubt} if doubt else {})

    # For gossip

    def digests(self) -> tuple[str, ...]:
        return self.roster.digests.texts()

    def entries(self, buckets: Collection[int]) -> list[Announcement | Down]:
        members = self.roster.entries(buckets, self._clock())
        return [*(one.announcement for one in members), *(one.down for one in members if one.down is not None)]

    def ages(self, said: Iterable[Announcement | Down]) -> Mapping[str, float]:
        """Of those among them that ended, by id: seconds since then."""
        now, members = self._clock(), (self.roster.get(one.id) for one in said)
        return {member.id: now - member.since for member in members if member is not None and not member.live}
