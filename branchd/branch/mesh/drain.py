"""Draining: every placed instance of this branch moves to another one, and nothing new comes.

A move starts the replacement first: it is offered elsewhere as `moving`, gets ready there, takes the name's messages
over, and only then the old one is stopped, by its stop plan. Both may run for a while; their node names differ.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog
from msgspec.structs import replace

from branchd.branch.fleet import Fleet
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.replicas import MARK
from branchd.branch.operations import Operations, Progress
from branchd.branch.records import InstanceRecord, Put, Remember, RemoveOutcome
from branchd.branch.supervisor import Supervisor
from branchd.branch.tasks import whole
from branchd.core.access import Principal, Scope
from branchd.core.errors import BranchdError, Conflict, NoRoute, Unavailable
from branchd.core.peers import Address
from branchd.core.spec import Wanted
from branchd.core.values import Key
from branchd.wire.mesh import Cancel, Cancelled, Handover, Here
from branchd.wire.resources import Operation, StepState

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: the fact that is remembered, and what it says: whether pinned instances are stopped too, and the drain's number
DRAINING = "draining"
PINNED = "pinned"
PLACED = "placed"

#: who goes on with it after a start
BY_ITSELF = Principal("branchd", Scope.ADMIN)

#: instances that move at one time: each one costs both branches a start
AT_ONCE = 4

#: seconds that a replacement has to get ready; after that it is taken back, and the old one stays
READY_WITHIN = 120.0

#: seconds for one message of a move
ANSWER_WITHIN = 5.0

#: seconds between the tries to take a replacement back: an hour in all
TRIED_AGAIN = tuple(min(2.0**number, 300.0) for number in range(1, 20))

#: seconds between two looks, after a start, for others to move to
LOOK_EVERY = 1.0


class Draining:
    def __init__(
        self,
        fleet: Fleet,
        link: Link,
        operations: Operations,
        *,
        drained: str,
        changed: Callable[[], None],
        others: Callable[[], bool],
        again: Callable[[Address], Address],
        offer: Callable[[Supervisor, str], Awaitable[Address]],
        ready: Callable[[Address, Key, float], Awaitable[str]],
        moves: Callable[[Key], None],
        stays: Callable[[Key], None],
    ) -> None:
        """`drained`: what was remembered, "" for nothing. `changed`: the neighbours are to hear of it.

        `others`: whether other branches are known and can be asked.
        `again(owner)`: the address of that branch now: its daemon may have been started anew since it accepted.
        `offer(old, request)`: places a replacement anywhere else; NoCapacity and all that a create raises.
        `ready(owner, key, seconds)`: waits for it there; why it is not, or "". `moves` and `stays`: told to those who
        ask for the name.
        """
        self.active = bool(drained)
        what, _, self._number = drained.partition(" ")
        self._pinned = what == PINNED
        self._fleet = fleet
        self._link = link
        self._operations = operations
        self._changed = changed
        self._others = others
        self._again = again
        self._offer = offer
        self._ready = ready
        self._moves = moves
        self._stays = stays

    async def begin(self, principal: Principal, *, pinned: bool) -> Operation:
        """The operation; the one that is under way where there is one. `pinned`: those are stopped at the end."""
        running = self._operations.running("drain")
        number = self._number if running else secrets.token_hex(16)
        await self._fleet.world.store.write(Remember(DRAINING, f"{PINNED if pinned else PLACED} {number}"))
        self._pinned, self._number = pinned, number
        if not self.active:
            self.active = True
            self._changed()
        return self._operations.running("drain") or self._operations.begin("drain", principal, self._work)

    def holds(self, supervisor: Supervisor) -> bool:
        """Whether it is not to run as long as this branch is drained, though it is wanted up."""
        return self.active and self._pinned and supervisor.record.placed is None

    def resume(self) -> None:
        """After a start: what was not done is gone on with."""
        self._operations.begin("drain", BY_ITSELF, self._go_on)

    async def end(self) -> None:
        """What has not moved stays, what was stopped starts again, and new instances may come."""
        await self._fleet.world.store.write(Remember(DRAINING, ""))
        if running := self._operations.running("drain"):
            await self._operations.cancel(running.id)
        if self.active:
            self.active = False
            self._changed()
        for supervisor in self._fleet.all():
            if supervisor.spec.wanted is not supervisor.machine.wanted:
                supervisor.want(supervisor.spec.wanted)

    async def _go_on(self, progress: Progress) -> None:
        while self._placed() and not self._others():
            progress.detail = "waiting for other branches"
            await asyncio.sleep(LOOK_EVERY)
        progress.detail = ""
        await self._work(progress)

    async def _work(self, progress: Progress) -> None:
        turn = asyncio.Semaphore(AT_ONCE)
        while placed := self._left(progress, self._placed()):  # one may have been accepted just before the drain
            progress.plan([str(one.key) for one in (*placed, *self._fixed())])
            async with asyncio.TaskGroup() as group:
                for supervisor in placed:
                    group.create_task(self._step(progress, supervisor, turn))
        for supervisor in self._fixed():
            await self._stop(progress, supervisor)

    def _placed(self) -> list[Supervisor]:
        return [one for one in self._fleet.all() if one.record.placed is not None and not one.record.deleting]

    def _fixed(self) -> list[Supervisor]:
        """Those that are to be stopped at the end."""
        return [one for one in self._fleet.all() if self.holds(one) and one.spec.wanted is Wanted.UP]

    def _left(self, progress: Progress, supervisors: list[Supervisor]) -> list[Supervisor]:
        return [one for one in supervisors if str(one.key) not in progress.steps]

    async def _step(self, progress: Progress, supervisor: Supervisor, turn: asyncio.Semaphore) -> None:
        name = str(supervisor.key)
        async with turn:
            progress.step(name, StepState.RUNNING)
            try:
                owner = await self._move(supervisor)
            except BranchdError as error:
                progress.step(name, StepState.FAILED, f"{error.detail}; it stays here")
            else:
                progress.step(name, StepState.DONE, f"moved to {owner}")

    async def _move(self, supervisor: Supervisor) -> str:
        """The name of the branch that has it now."""
        key, request = supervisor.key, self._request(supervisor.record)
        await whole(self._mark_named(supervisor))
        self._moves(key)
        offering = asyncio.ensure_future(self._offer(supervisor, request))
        try:
            owner = await asyncio.shield(offering)
            if supervisor.spec.wanted is Wanted.UP and (why := await self._ready(owner, key, READY_WITHIN)):
                raise Conflict(f"its replacement is not ready: {why}")
            return await _to_its_end(self._hand_over(supervisor, owner))
        except BaseException:
            await asyncio.shield(self._take_back(offering, request))
            self._stays(key)
            raise

    async def _mark_named(self, supervisor: Supervisor) -> None:
        """Commits that its name is asked for after each connection, as its replacement's is. StorageFailed.

        Where a hand-over's answer is lost, two have the name, and only who connects last finds the other one.
        """
        async with self._fleet.lock(supervisor.key.app):
            record = supervisor.record
            if record.placed is None or record.placed.named or record.deleting:
                return
            named = replace(record, placed=replace(record.placed, named=True))
            await self._fleet.journal.commit(Put(named))
            spec = supervisor.spec
            supervisor.redefine(named, spec, self._fleet.definitions.declarations(record.key.app, spec))

    def _request(self, old: InstanceRecord) -> str:
        """The same after the daemon's crash: what was placed before it is found again. A replica's is one's too."""
        assert old.placed is not None
        digest = hashlib.sha256(f"{self._number}\0{old.key}\0{old.placed.request}".encode()).hexdigest()
        return f"{MARK}{digest}" if old.placed.request.startswith(MARK) else digest

    async def _hand_over(self, supervisor: Supervisor, owner: Address) -> str:
        key = supervisor.key
        if not supervisor.record.deleting:
            here = await self._link.ask(self._again(owner), Handover(key.app, key.name), ANSWER_WITHIN)
            if not isinstance(here, Here):
                raise Unavailable("its replacement did not take the name")
            async with self._fleet.lock(key.app):
                if not supervisor.record.deleting:
                    placed = supervisor.record.placed
                    assert placed is not None
                    # Who asks again after what the request made is told by the branch that has it now.
                    forgotten = RemoveOutcome(placed.request)
                    await self._fleet.begin_delete(supervisor, forgotten, by={"moved_to": here.branch})
                    self._fleet.outcomes.remove(placed.request)
                    return here.branch
        raise Conflict("it is being deleted")  # by a person: then its replacement must not live either

    async def _take_back(self, offering: "asyncio.Future[Address]", request: str) -> None:
        """Nothing is left of the replacement; where that cannot be told now, it is tried again behind the drain."""
        await asyncio.wait([offering])  # it may just have been accepted
        if offering.cancelled() or offering.exception() is not None:
            return
        if not await self._cancelled(offering.result(), request):
            self._fleet.later(self._cancel_later(offering.result(), request))

    async def _cancelled(self, owner: Address, request: str) -> bool:
        try:
            return isinstance(await self._link.ask(self._again(owner), Cancel(request), ANSWER_WITHIN), Cancelled)
        except (NoRoute, Unavailable) as error:
            log.warning("replacement not taken back yet", request=request, reason=error.detail)
            return False

    async def _cancel_later(self, owner: Address, request: str) -> None:
        """Two of one name settle it themselves; but of one that a person deleted nothing may be left."""
        for pause in TRIED_AGAIN:
            await asyncio.sleep(pause)
            if await self._cancelled(owner, request):
                return

    async def _stop(self, progress: Progress, supervisor: Supervisor) -> None:
        """Its wanted state stays, so that it starts again with the daemon once the branch is not drained any more."""
        name = str(supervisor.key)
        progress.step(name, StepState.RUNNING)
        supervisor.stop()
        while not supervisor.settled:
            await supervisor.changed()
        progress.step(name, StepState.DONE, "stopped")


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What it comes to, also where it is cancelled meanwhile: half of it must not be done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        return await task
