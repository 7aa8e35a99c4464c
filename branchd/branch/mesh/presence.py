"""This branch among the others: it joins, says that it is there, and believes what it hears.

What is decided is decided in core/presence.py and core/roster.py; here are the timers and the messages. Watching others
is watching.py's; the exchange by which a joiner learns of them, and that repairs what was lost, is gossip.py's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from branchd.branch.mesh.doors import Doors
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.watching import Watching
from branchd.branch.ports import BusState
from branchd.core.errors import Conflict, NoAnswer, NoRoute, Unavailable
from branchd.core.peers import Address, Announcement, BranchState, Down
from branchd.core.presence import Guard, ahead, due, joining_wait, material, news
from branchd.core.roster import Member, Roster
from branchd.wire.mesh import Announce, Gone, Ping, Pong

log = structlog.get_logger(__name__)

#: peers that a joiner tries before it goes on without what they know; the periodic exchange makes up for that
JOIN_TRIES = 3

#: seconds until a join that failed at this branch (its store, its connection) is tried again
JOIN_AGAIN = 2.0

#: seconds between two looks for those that ended long ago
SWEEP_EVERY = 600.0


@dataclass(frozen=True, slots=True)
class Self:
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
        self._link = link
        self._clock = clock
        self._wall = wall
        self._chance = chance
        self._myself = myself
        self._remember = remember
        self._happened = happened
        self._guard = Guard()
        self._doors = Doors(link, chance)
        self._watching = Watching(link, clock, chance, lambda: self.roster, lambda: self.absence_doubted, self._found)
        self._others: tuple[Member, ...] | None = None
        self._clocks: dict[str, float] = {}  #: by id, when this daemon's clock showed 0 by theirs, seconds since 1970
        self._said: Announcement | None = None
        self._said_at = 0.0
        self._drawn = 0.0  #: chance, of the next announcement's time
        self._early = False
        self._first_at = 0.0  #: when a joiner announces
        self._sweep_at = clock() + SWEEP_EVERY
        self._told_doubt = ""
        self._was_connected = False
        self._poke = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        link.hear(Announce, self._heard)
        link.hear(Gone, lambda _, gone: self.believe(gone.downs))
        link.serve(Ping, self._pinged)
        link.on_state(self._state)

    # Life

    def begin(self, exchange: Callable[[Address, bool], Awaitable[None]]) -> None:
        """`exchange`: of all that is known with one peer; True: what is newer here, all are to hear."""
        self._exchange = exchange
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        """Says that it goes; the link is to be closed after this."""
        await self._watching.end()
        tasks = [*self._tasks, *([self._running] if self._running else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._said is not None and self._link.connected:
            self._announce(BranchState.CLOSED)
        self.joined, self._said, self._running = False, None, None

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

    def silent(self) -> tuple[Member, ...]:
        """The branches that should answer and do not."""
        return tuple(member for member in self.roster if member.state is BranchState.SILENT)

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

    def confirm(self) -> None:
        """An operator says that what vanished is gone."""
        self._guard.confirm()
        self._poke.set()

    @property
    def offset(self) -> float:
        """Seconds that this branch's clock is ahead of the median of all clocks that it heard, its own included."""
        return ahead(self._wall() - self._clock(), self._clocks.values())

    # What is believed

    def believe(self, said: Iterable[Announcement | Down]) -> None:
        """Takes in what others say, in any order and however often."""
        before, now = self.roster, self._clock()
        moved = False
        for one in said:
            if one.id == self._link.me.id and self.joined:
                self._of_myself(one)
                continue
            was = self.roster.get(one.id)
            self.roster = self.roster.observe(one, now)
            member = self.roster.get(one.id)
            if member is not None and member is not was:
                moved |= was is None or (was.state, was.name) != (member.state, member.name)
                if self.joined:
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
            return
        if isinstance(said, Down):
            self._begin(self._refute(said.incarnation))
        elif said.boot != self._link.me.boot and said.state is not BranchState.CLOSED:
            told, self.twin = self.twin, said
            if told is None or told.boot != said.boot:
                self._happened("branch.twin", {"branch": said.name, "id": said.id, "boot": said.boot})

    def _changed(self, was: Member | None, member: Member, now: float) -> None:
        if member.live:
            self._guard.returned(member.id)
        elif was is not None and was.live and member.down is not None:
            self._guard.vanished(member.id, self.roster.live, now)
        if (word := news(was, member)) is not None:
            self._happened(word, {"branch": member.name, "id": member.id})

    def _roster_changed(self, moved: bool) -> None:
        """`moved`: somebody came, went, or has another name."""
        self._others = None
        if moved:
            self._watching.moved()
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
        if sender != self._link.me:
            self._clocks[said.id] = said.at - self._clock()
            self._watching.heard(said.id)
        self.believe([said])

    async def _pinged(self, _: Address, __: Ping) -> Pong:
        return Pong(self.incarnation)

    def _state(self, state: BusState) -> None:
        if state.connected and self._was_connected and self.joined:
            self._guard.reconnected(self._clock())
            self._begin(self._return())
        self._was_connected |= state.connected
        self._poke.set()

    # Joining and returning

    async def _run(self) -> None:
        while not self.joined:
            try:
                await self._join()
            except Unavailable as error:
                log.info("not joined yet", error=error.detail)
                await asyncio.sleep(JOIN_AGAIN * (0.5 + self._chance()))
        while True:
            self._poke.clear()
            try:
                pause = max(0.0, self._turn() - self._clock())
            except Exception:  # a branch that says nothing more counts as silent, and its instances as lost
                log.exception("one turn of presence failed")
                pause = JOIN_AGAIN
            try:
                async with asyncio.timeout(pause):
                    await self._poke.wait()
            except TimeoutError:
                pass

    async def _join(self) -> None:
        while not self._link.connected:
            self._poke.clear()
            await self._poke.wait()
        await self._learn()
        self.incarnation = max(self.incarnation, self.roster.incarnation(self._link.me.id)) + 1
        await self._remember(self.incarnation)
        await self._doors.hold()
        self._first_at = self._clock() + joining_wait(len(self.others()) + 1, self._chance())
        self.joined = True
        self._find_namesakes()

    async def _learn(self) -> None:
        """From anybody; from nobody where there is none, or none that answers."""
        for _ in range(JOIN_TRIES):
            peer = await self._doors.knock()
            if peer is None:
                return
            try:
                await self._exchange(peer, False)
                return
            except (NoRoute, NoAnswer) as error:
                log.info("a peer did not tell what it knows", peer=peer.id, error=error.detail)

    async def _return(self) -> None:
        """The connection was lost, and is there again: what happened meanwhile?"""
        try:
            await self._doors.hold()
            for _ in range(JOIN_TRIES):
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
        """Somebody found this branch ended."""
        if incarnation < self.incarnation:
            return
        self.incarnation = incarnation + 1
        try:
            await self._remember(self.incarnation)
        except Unavailable as error:  # the others know it, and tell it to the next daemon
            log.warning("incarnation not remembered", error=error.detail)
        self._announce()

    # Announcing and watching

    def _turn(self) -> float:
        """Does what is due; when the next thing is."""
        now = self._clock()
        if not self._link.connected:
            return now + SWEEP_EVERY
        if now >= self._announce_at():
            self._announce()
        self._watching.turn(now)
        self._tell_doubt()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY
            if (swept := self.roster.sweep(now)) is not self.roster:
                self.roster = swept
                self._roster_changed(moved=True)
            self._clocks = {member.id: at for member in self.others() if (at := self._clocks.get(member.id))}
        return min(self._announce_at(), self._watching.wake, self._sweep_at)

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

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # For gossip

    def digests(self) -> tuple[str, ...]:
        return self.roster.digests.texts()

    def entries(self, buckets: Collection[int]) -> list[Announcement | Down]:
        members = self.roster.entries(buckets)
        return [*(one.announcement for one in members), *(one.down for one in members if one.down is not None)]
