"""Draining: every placed instance of this branch moves to another one, and nothing new comes.

A move starts the replacement first: it is offered elsewhere as `moving`, gets ready there, takes the name's messages
over, and only then the old one is stopped, by its stop plan. Both may run for a while; their node names differ.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import structlog

from branchd.branch.fleet import Fleet
from branchd.branch.mesh.link import Link
from branchd.branch.operations import Operations, Progress
from branchd.branch.records import Remember
from branchd.branch.supervisor import Supervisor
from branchd.core.access import Principal, Scope
from branchd.core.errors import BranchdError, Conflict, NoRoute, Unavailable
from branchd.core.peers import Address
from branchd.core.spec import Wanted
from branchd.core.values import Key
from branchd.wire.mesh import Cancel, Handover, Here
from branchd.wire.resources import Operation, StepState

log = structlog.get_logger(__name__)

#: the fact that is remembered, and what it says: whether pinned instances are stopped too
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


class Draining:
    def __init__(
        self,
        fleet: Fleet,
        link: Link,
        operations: Operations,
        *,
        drained: str,
        changed: Callable[[], None],
        offer: Callable[[Supervisor, str], Awaitable[Address]],
        ready: Callable[[Address, Key, float], Awaitable[str]],
        release: Callable[[Key, bool], Awaitable[None]],
    ) -> None:
        """`drained`: what was remembered, "" for nothing. `changed`: the neighbours are to hear of it.

        `offer(old, request)`: places a replacement anywhere else; NoCapacity and all that a create raises.
        `ready(owner, key, seconds)`: waits for it there; why it is not, or "". `release(key, moving)`: while moving,
        this branch says so of the name; after it this branch answers for the name no more.
        """
        self.active = bool(drained)
        self._pinned = drained == PINNED
        self._fleet = fleet
        self._link = link
        self._operations = operations
        self._changed = changed
        self._offer = offer
        self._ready = ready
        self._release = release

    async def begin(self, principal: Principal, *, pinned: bool) -> Operation:
        """The operation; the one that is under way where there is one. `pinned`: those are stopped at the end."""
        await self._fleet.world.store.write(Remember(DRAINING, PINNED if pinned else PLACED))
        self._pinned = pinned
        if not self.active:
            self.active = True
            self._changed()
        running = self._operations.running("drain")
        return running or self._operations.begin("drain", principal, lambda progress: self._work(progress, pinned))

    def resume(self) -> None:
        """After a start: what was not done is gone on with."""
        self._operations.begin("drain", BY_ITSELF, lambda progress: self._work(progress, self._pinned))

    async def end(self) -> None:
        """What has not moved stays, and new instances may come again."""
        await self._fleet.world.store.write(Remember(DRAINING, ""))
        if running := self._operations.running("drain"):
            await self._operations.cancel(running.id)
        if self.active:
            self.active = False
            self._changed()

    async def _work(self, progress: Progress, pinned: bool) -> None:
        placed = [one for one in self._fleet.all() if one.record.placed is not None and not one.record.deleting]
        fixed = [one for one in self._fleet.all() if one.record.placed is None and one.spec.wanted is Wanted.UP]
        progress.plan([str(one.key) for one in placed])
        if pinned:
            progress.plan([str(one.key) for one in fixed])
        turn = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for supervisor in placed:
                group.create_task(self._step(progress, supervisor, turn))
        if pinned:
            for supervisor in fixed:
                await self._stop(progress, supervisor)

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
        key, request = supervisor.key, secrets.token_hex(16)
        await self._release(key, True)
        try:
            owner = await self._offer(supervisor, request)
            try:
                if supervisor.spec.wanted is Wanted.UP and (why := await self._ready(owner, key, READY_WITHIN)):
                    raise Conflict(f"its replacement is not ready: {why}")
                here = await self._link.ask(owner, Handover(key.app, key.name), ANSWER_WITHIN)
                if not isinstance(here, Here):
                    raise Unavailable("its replacement did not take the name")
            except BaseException:
                await asyncio.shield(self._take_back(owner, request))
                raise
        except BaseException:
            await self._release(key, False)
            raise
        async with self._fleet.lock(key.app):
            await self._fleet.begin_delete(supervisor)
        return here.branch

    async def _take_back(self, owner: Address, request: str) -> None:
        """Nothing is left of the replacement; where that cannot be told now, the two settle who stays later."""
        try:
            await self._link.ask(owner, Cancel(request), ANSWER_WITHIN)
        except (NoRoute, Unavailable) as error:
            log.warning("replacement not taken back", request=request, reason=error.detail)

    async def _stop(self, progress: Progress, supervisor: Supervisor) -> None:
        """Its wanted state stays, so that it starts again with the daemon once the branch is not drained any more."""
        name = str(supervisor.key)
        progress.step(name, StepState.RUNNING)
        supervisor.stop()
        while not supervisor.settled:
            await supervisor.changed()
        progress.step(name, StepState.DONE, "stopped")
