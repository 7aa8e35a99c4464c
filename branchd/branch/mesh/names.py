"""Whose name is whose: the broker's routing keys are the directory of the neighbourhood.

The owner of a placed instance binds `i.app:name` to its inbox, those of pinned ones `n.app:name`, which many may share.
Here they are bound and unbound, taken, compared after every connection, and asked for. Nothing is kept of where others
are. Who may be hosted is judged in hosting.py.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from branchd.branch.fleet import Fleet
from branchd.branch.journal import Told
from branchd.branch.mesh.link import Link
from branchd.branch.ports import BusState, Claim
from branchd.branch.supervisor import Supervisor
from branchd.branch.tasks import Tasks
from branchd.core.errors import Conflict, NoAnswer, NoRoute, NotFound, StorageFailed, Unavailable
from branchd.core.names import Holding, asks_per_second
from branchd.core.peers import Address, pinned_key, placed_key
from branchd.core.values import Key
from branchd.wire.mesh import Here, Knock, WhereIs

log = structlog.get_logger(__name__)

#: seconds that who holds a name has to say so
ANSWER_WITHIN = 1.0

#: seconds after a reconnection in which no name is taken: others who were cut off too are to bind theirs first
QUIET = 30.0

#: how often each name is asked for after a connection: a message may be lost
ROUNDS = 2

#: keys that are bound at one time
BATCH = 500

#: seconds until what failed is tried again
AGAIN = 1.0


class Taken(Conflict):
    """Another branch has an instance of that name."""

    def __init__(self, key: Key, holder: Address, here: Here) -> None:
        super().__init__(f"{key} exists already, at branch {here.branch}", "choose another name")
        self.holder = holder
        self.here = here


class Names:
    """Made before the link is opened; its tasks end when it is closed."""

    def __init__(
        self,
        link: Link,
        fleet: Fleet,
        branch: str,
        *,
        branches: Callable[[], int],
        missing: Callable[[], Sequence[str]],
        doubt: Callable[[], str],
    ) -> None:
        """`branch`: the name of this one. `branches`: how many are known, this one too.

        `missing`: the names of those known ones that are not connected now. `doubt`: why nothing may be concluded
        from absence, or "".
        """
        self.tasks = Tasks("names")
        self._link = link
        self._fleet = fleet
        self._branch = branch
        self._branches = branches
        self._missing = missing
        self._doubt = doubt
        self._bound: set[str] = set()  #: at this connection
        self._taking: set[Key] = set()
        self._moving: set[Key] = set()  #: instances here whose replacements are being started elsewhere
        self._given_up: dict[Key, str] = {}  #: whose name is another one's while they still stop here; by which request
        self._dirty: set[Key] = set()  #: whose keys may be bound otherwise than they should be
        self._work = asyncio.Event()
        self._connections = 0
        self._ready = False  #: all that was here when it connected is bound
        self._quiet_until = 0.0
        self._begun = False  #: there was a connection
        link.serve(WhereIs, self._where_is)
        link.hear(Knock, lambda _, __: None)  # that it arrives is all
        link.on_state(self._state)
        fleet.watchers.append(self.look)

    # What this branch stands for

    def here(self, key: Key) -> Here | None:
        """What this branch says when it is asked for the instance; None where it is not its to answer."""
        supervisor = self._fleet.find(key)
        if supervisor is None or self._gave_up(supervisor):
            return None
        record = supervisor.record
        if record.placed is None:
            return Here(self._branch, "", "", record.created_at)
        placed = record.placed
        moving, origin = key in self._moving or placed.waiting, self._fleet.outcomes.origin(placed.request)
        return Here(self._branch, placed.request, placed.digest, placed.accepted_at, moving, origin)

    def look(self, key: Key) -> None:
        """Something of this instance changed."""
        supervisor = self._fleet.find(key)
        if supervisor is None:
            self._moving.discard(key)
            self._given_up.pop(key, None)
        elif supervisor.record.deleting and key in self._moving:
            self._stop_standing_for(supervisor)  # its replacement does
        self._dirty.add(key)
        self._work.set()

    def _route(self, key: Key) -> str | None:
        """What should be bound for it."""
        if key in self._taking:
            return placed_key(key)
        supervisor = self._fleet.find(key)
        if supervisor is None or self._gave_up(supervisor):
            return None
        placed = supervisor.record.placed
        if placed is None:
            return pinned_key(key)
        return None if placed.waiting else placed_key(key)

    async def bind(self, key: Key) -> None:
        """At once, where that is possible; else it is done with the next connection."""
        route, connection = placed_key(key), self._connections
        self._bound.add(route)  # first: what look() began would bind it a second time
        try:
            await self._link.bind(route)
        except Unavailable:
            if connection == self._connections:
                self._bound.discard(route)
                self.look(key)

    async def give_up(self, supervisor: Supervisor) -> None:
        """This branch does not stand for the name any more, though the instance still stops here."""
        self._stop_standing_for(supervisor)
        await self._unbind(supervisor.key)

    def _stop_standing_for(self, supervisor: Supervisor) -> None:
        if supervisor.record.placed is not None:
            self._given_up[supervisor.key] = supervisor.record.placed.request

    def _gave_up(self, supervisor: Supervisor) -> bool:
        """A later instance of the same name is another request's, and not meant."""
        placed = supervisor.record.placed
        return placed is not None and self._given_up.get(supervisor.key) == placed.request

    def moves(self, key: Key) -> None:
        """From now on this branch says so of the name; once it is being deleted then, its replacement has the name."""
        self._moving.add(key)

    def stays(self, key: Key) -> None:
        """It moves no more; its replacement may have got the name already."""
        self._moving.discard(key)
        self._fleet.later(self._contest(key))

    async def _unbind(self, key: Key) -> None:
        self._bound.discard(placed_key(key))
        with contextlib.suppress(Unavailable):
            await self._link.unbind(placed_key(key))

    # Taking a name

    def doubt(self) -> str:
        """Why no name can be taken now; empty when one can."""
        if not self._link.connected:
            return f"the broker is not connected: {self._link.state.why}"
        if not self._ready:
            return "this branch has just connected and still binds the names that it has"
        left = self._quiet_until - self._fleet.world.clock()
        if left > 0:
            return f"others may not be connected again yet; try again in {left:.0f} seconds"
        return self._doubt()

    @contextlib.asynccontextmanager
    async def take(self, key: Key) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """The name is this branch's within the block, and stays so where the fleet has the instance at its end.

        Yields what must be awaited after the commit and before anything is started: it raises Unavailable where the
        name may have been taken by another one as well. Taken; Unavailable.
        """
        if doubt := self.doubt():
            raise Unavailable(doubt)
        if key in self._taking:
            raise Unavailable(f"{key} is being taken")
        self._taking.add(key)
        try:
            try:
                claim = await self._link.claim(str(key))
            except Conflict as conflict:
                raise Unavailable(conflict.detail) from None
            async with self._claimed(key, claim) as sure:
                yield sure
        finally:
            self._taking.discard(key)
            self.look(key)

    @contextlib.asynccontextmanager
    async def _claimed(self, key: Key, claim: Claim) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        connection, released = self._connections, False

        async def sure() -> None:
            nonlocal released
            await claim.release()
            released = True
            if connection != self._connections:
                raise Unavailable("the connection to the broker was lost while the name was taken")

        try:
            with contextlib.suppress(NoRoute):
                raise Taken(key, *await self._ask(key, claim))
            await self._link.bind(placed_key(key))
            if connection == self._connections:
                self._bound.add(placed_key(key))
            yield sure
        finally:
            if self._fleet.find(key) is None:
                await self._unbind(key)  # before the claim ends, so that the next one finds the name free
            if not released:
                with contextlib.suppress(Unavailable):
                    await claim.release()
        if not self._link.definite:
            self._fleet.later(self._compare(key))  # two may have asked at one time

    async def _ask(self, key: Key, claim: Claim | None = None) -> tuple[Address, Here]:
        """Who has it placed. NoRoute where nobody has, NoAnswer, Unavailable."""
        question = WhereIs(key.app, key.name)
        try:
            holder, here = await self._link.ask_key(placed_key(key), question, ANSWER_WITHIN, claim)
        except NoAnswer:
            raise NoAnswer(f"the branch that has {key} does not answer") from None
        if not isinstance(here, Here):
            raise Unavailable(f"the branch that has {key} answers something else")
        return holder, here

    # Each connection

    def _state(self, state: BusState) -> None:
        self._connections += 1
        self._bound.clear()
        self._ready = False
        self.tasks.cancel()
        if self._begun:
            self._quiet_until = self._fleet.world.clock() + QUIET
        if state.connected:
            self._begun = True
            self._dirty.update(supervisor.key for supervisor in self._fleet.all())
            self._work.set()
            self.tasks.repeat(self._live, lambda: AGAIN)

    async def _live(self) -> None:
        """Binds all that is here, then asks after each named one; and binds what comes and goes meanwhile."""
        await self._work.wait()
        await self._flush()
        if not self._ready:
            self._ready = True
            self.tasks.begin(self._settle())

    async def _flush(self) -> None:
        self._work.clear()
        while self._dirty:
            batch = [self._dirty.pop() for _ in range(min(BATCH, len(self._dirty)))]
            try:
                wanted = {route for key in batch if (route := self._route(key)) is not None}
                unwanted = {route for key in batch for route in (placed_key(key), pinned_key(key))} - wanted
                if bind := wanted - self._bound:
                    await self._link.bind(*bind)
                    self._bound |= bind
                if unbind := unwanted & self._bound:
                    await self._link.unbind(*unbind)
                    self._bound -= unbind
            except Exception:
                self._dirty.update(batch)
                self._work.set()
                raise

    # Two holders of one name

    async def _settle(self) -> None:
        for _ in range(ROUNDS):
            for supervisor in self._fleet.all():
                if supervisor.record.placed is not None and supervisor.record.placed.named:
                    await asyncio.sleep(1 / asks_per_second(self._branches()))
                    self._fleet.later(self._compare(supervisor.key, told=True))

    async def _contest(self, key: Key) -> None:
        """Until one of two has the name: a lost message must not leave it to both."""
        alone = 0
        while alone < ROUNDS and (mine := self.here(key)) is not None and not mine.moving:
            alone = alone + 1 if await self._alone(key, told=True) else 0
            await asyncio.sleep(AGAIN)

    async def _compare(self, key: Key, *, told: bool = False) -> None:
        await self._alone(key, told)

    async def _alone(self, key: Key, told: bool) -> bool:
        """Asks who else holds the name, and gives it up to one who had it earlier. `told`: they are to ask as well.

        Whether this branch answers and no other. The answers decide and no question does: those are for who holds the
        key, so that an old one may be replayed.
        """
        mine = self.here(key)
        if mine is None or not mine.request:
            return False
        try:
            answers = await self._link.gather(placed_key(key), WhereIs(key.app, key.name, held=told))
        except Unavailable as error:
            log.debug("name not compared", instance=str(key), reason=error.detail)
            return False
        for holder, here in answers:
            if isinstance(here, Here):
                self._meet(key, holder, here)
        return {holder.id for holder, _ in answers} == {self._link.me.id}

    def _meet(self, key: Key, holder: Address, theirs: Here) -> None:
        mine, supervisor = self.here(key), self._fleet.find(key)
        if holder.id == self._link.me.id or mine is None or supervisor is None:
            return
        if not mine.request or not theirs.request or mine.moving or theirs.moving:
            return
        if _holding(mine, self._link.me) < _holding(theirs, holder):
            return
        self._stop_standing_for(supervisor)
        self._fleet.later(self._lose(key, mine.request, theirs.branch))

    async def _lose(self, key: Key, request: str, winner: str) -> None:
        """The instance of that request stops here, by its stop plan, and is no more."""
        log.warning("two of one name", instance=str(key), stays_at=winner)
        await self._unbind(key)
        while True:
            try:
                async with self._fleet.lock(key.app):
                    found = self._fleet.find(key)
                    if found is not None and found.record.placed is not None and found.record.placed.request == request:
                        told: Told = ("instance.conflict", key.app, key.name, {"stays_at": winner})
                        await self._fleet.begin_delete(found, events=[told])
                return
            except StorageFailed as failure:
                log.warning("loser not stopped yet", instance=str(key), reason=failure.detail)
                await asyncio.sleep(AGAIN)

    # Where something is

    async def _where_is(self, sender: Address, question: WhereIs) -> Here | None:
        key = Key(question.app, question.name)
        here = self.here(key)
        if here is not None and question.held and sender.id != self._link.me.id:
            self._fleet.later(self._compare(key))
        return here

    async def locate(self, app: str, name: str) -> tuple[Address, Here]:
        """Which branch has it. NotFound, Conflict where several have it pinned, Unavailable where it cannot be told."""
        key = Key(app, name)
        supervisor = self._fleet.find(key)
        waiting = supervisor is not None and supervisor.waiting
        mine = None if waiting else self.here(key)
        if mine is not None and (mine.request or not self._link.connected):
            return self._link.me, mine
        if not self._link.connected:
            raise Unavailable(f"{key} is not on this branch, and no other can be asked: {self._link.state.why}")
        with contextlib.suppress(NoRoute):
            return await self._ask(key)
        found = {} if mine is None else {self._link.me: mine}
        answers = await self._link.gather(pinned_key(key), WhereIs(app, name))
        found |= {holder: here for holder, here in answers if isinstance(here, Here)}
        return self._one(key, found)

    def _one(self, key: Key, found: dict[Address, Here]) -> tuple[Address, Here]:
        if len(found) > 1:
            candidates = ", ".join(sorted(f"{here.branch}/{key}" for here in found.values()))
            raise Conflict(f"{key} is on {len(found)} branches", f"say which: {candidates}")
        if found:
            return next(iter(found.items()))
        if missing := self._missing():
            raise Unavailable(f"no connected branch has {key}; not connected: {', '.join(sorted(missing))}")
        raise NotFound(f"no branch has {key}", f"branchctl ps '{key.app}:*' lists its instances")


def _holding(here: Here, at: Address) -> Holding:
    return Holding(here.accepted_at, here.request, at.id)
