"""The target's side of a placement: how much room there is, taking what is offered, and taking it back.

What is accepted is on disk before it is answered and before anything is started, and so is a cancellation; a refusal
is not remembered. Whether there is room is judged in core/admission.py, how a name is taken stands in names.py, and
whom to ask in placing.py.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

import structlog
from msgspec.structs import replace

from branchd.branch.fleet import Fleet
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.names import Names, Taken
from branchd.branch.records import InstanceRecord, OutcomeRecord, Placed, Put
from branchd.branch.supervisor import Supervisor
from branchd.branch.world import Policies
from branchd.core.access import Scope
from branchd.core.admission import Probe, Reason, Refusal, Room, Standing, admit, judge_room
from branchd.core.capacity import Capacity, capacity
from branchd.core.errors import Conflict, Fault, Invalid, NoRoute, StorageFailed, Unavailable
from branchd.core.faults import name_fault
from branchd.core.peers import Address
from branchd.core.spec import Spec
from branchd.core.stamps import Entry, EntryKind
from branchd.core.values import Key
from branchd.wire.decode import encode
from branchd.wire.mesh import Accepted, Cancel, Cancelled, Offer
from branchd.wire.resources import Instance
from branchd.wire.spec import accept

log = structlog.get_logger(__name__)

#: seconds that the host's figures are used for: each probe of many creates at one time would read them anew
FIGURES_FOR = 1.0

#: seconds that another branch has to say what an earlier offer of the same request came to there
ANSWER_WITHIN = 1.0


class _No(Exception):
    """It is not taken."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Hosting:
    """room(), offer() and cancel() are for what came to this branch's own API: the rule for peers does not bind it."""

    def __init__(
        self,
        link: Link,
        fleet: Fleet,
        names: Names,
        policies: Policies,
        *,
        merge: Callable[[Iterable[Entry]], Awaitable[object]],
        draining: Callable[[], bool],
    ) -> None:
        """`merge`: takes what is newer of the shared definitions; StorageFailed."""
        self._link = link
        self._fleet = fleet
        self._names = names
        self._policies = policies
        self._merge = merge
        self._draining = draining
        self._reserved: dict[str, tuple[Key, int]] = {}  #: slots, by the request that is being taken for them
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  #: of requests
        self._figures: Mapping[str, float] = {}
        self._figures_until = 0.0
        link.serve(Probe, self._peer_room)
        link.serve(Offer, lambda sender, offer: self._offer(offer, sender))
        link.serve(Cancel, self._peer_cancel)

    @property
    def capacity(self) -> Capacity:
        """What is being taken counts already."""
        being_taken = (weight for key, weight in self._reserved.values() if self._fleet.find(key) is None)
        return capacity(self._policies.slots, self._fleet.world.host.cpus, (self._fleet.weight, *being_taken))

    def room(self, probe: Probe) -> Room:
        return judge_room(probe, self._standing(probe.app, peer=False))

    async def offer(self, offer: Offer) -> Accepted | Refusal:
        """Unavailable where it cannot be told whether it was taken; the same offer again tells."""
        return await self._offer(offer, None)

    async def cancel(self, cancel: Cancel, peer: Address | None = None) -> Cancelled:
        """What the request made is being deleted, and it makes nothing any more. StorageFailed."""
        by = self._link.me.id if peer is None else peer.id
        async with self._lock(cancel.request):
            known = self._fleet.outcomes.get(cancel.request)
            if known is None:
                now = self._fleet.world.wall()
                await self._remember(OutcomeRecord(cancel.request, "", now, "", None, offerer=by))
            elif known.instance is not None:
                async with self._fleet.lock(known.app):
                    await self._undo(cancel.request, by)
        return Cancelled()

    # For other branches

    async def _peer_room(self, _: Address, probe: Probe) -> Room:
        return judge_room(probe, self._standing(probe.app, peer=True))

    async def _peer_cancel(self, sender: Address, cancel: Cancel) -> Cancelled | None:
        known = self._fleet.outcomes.get(cancel.request)
        lives = known is not None and known.instance is not None and not known.ended
        if known is not None and lives and (self._policies.peer_scope is Scope.READ or known.offerer != sender.id):
            why = "[auth] peer_scope is read" if known.offerer == sender.id else "another branch offered it"
            log.warning("not cancelled", reason=why, request=cancel.request, branch=sender.id)
            return None
        return await self.cancel(cancel, sender)

    def _standing(self, app: str, *, peer: bool) -> Standing:
        read_only = peer and self._policies.peer_scope is Scope.READ
        return Standing(
            capacity=self.capacity,
            siblings=self._fleet.count(app),
            load=self._load(),
            labels=self._policies.labels,
            guards=self._policies.guards,
            draining=self._draining(),
            stopping=self._fleet.stopping,
            policy="other branches may place nothing here: [auth] peer_scope is read" if read_only else "",
        )

    def _load(self) -> Mapping[str, float]:
        now = self._fleet.world.clock()
        if now >= self._figures_until:
            self._figures, self._figures_until = self._fleet.world.host.load(), now + FIGURES_FOR
        return self._figures

    # Taking

    async def _offer(self, offer: Offer, peer: Address | None) -> Accepted | Refusal:
        key = Key(offer.app, offer.name)
        try:
            async with self._lock(offer.request):
                made = self._known(offer)
                supervisor = made or await self._take(offer, key, peer)
        except _No as no:
            return Refusal(no.reason, no.detail)
        except Taken as taken:
            return await self._taken(offer, taken)
        if made is None:
            log.info("accepted", instance=str(key), by=offer.principal, request=offer.request,
                     branch=self._link.me.id if peer is None else peer.id)  # fmt: skip
            await supervisor.idle()
        return Accepted(_resource(supervisor.view()), made is None)

    def _known(self, offer: Offer) -> Supervisor | None:
        """What the request made here; None where it is new."""
        known = self._fleet.outcomes.find(offer.request)
        if known is None:
            return None
        if known.instance is None:
            raise _No(Reason.CANCELLED, "the request was cancelled")
        if known.digest != offer.digest:
            raise _No(Reason.MISMATCH, "another request came under the same id")
        found = self._fleet.find(Key(known.app, known.instance))
        if known.ended or found is None:
            raise _No(Reason.ENDED, f"the request made {known.app}:{known.instance}, which has been deleted since")
        return found

    async def _taken(self, offer: Offer, taken: Taken) -> Accepted | Refusal:
        """The name is another branch's: by an earlier try of the same request, perhaps, whose outcome it knows."""
        if offer.request in (taken.here.request, taken.here.origin):
            with contextlib.suppress(NoRoute, Unavailable):
                answer = await self._link.ask(taken.holder, offer, ANSWER_WITHIN)
                if isinstance(answer, Accepted):
                    return replace(answer, owner=taken.holder)
                if isinstance(answer, Refusal):
                    return answer
            return Refusal(Reason.UNSURE, f"branch {taken.here.branch} took it, and does not answer")
        return Refusal(Reason.NAME_TAKEN, taken.detail)

    async def _take(self, offer: Offer, key: Key, peer: Address | None) -> Supervisor:
        if faults := [fault for fault in (name_fault(key.app, "/app", "app name"),
                                          name_fault(key.name, "/name", "instance name")) if fault]:  # fmt: skip
            raise _No(Reason.INVALID, _told(faults))
        try:
            await self._merge(offer.entries)
        except StorageFailed as failure:
            raise _No(Reason.STORAGE, failure.detail) from None
        try:
            raw = accept(offer.spec, {})
        except Invalid as invalid:
            raise _No(Reason.INVALID, _told(invalid.faults)) from None
        spec = self._check(key, raw, peer)
        probe = Probe(key.app, spec.weight, spec.constraints, spec.spread)
        refusal = admit(probe, self._standing(key.app, peer=peer is not None))
        if refusal is not None:
            raise _No(refusal.reason, refusal.detail)
        with self._reserving(offer.request, key, spec.weight):  # no await since it was judged
            async with self._named(offer, key) as sure, self._fleet.lock(key.app):
                self._check(key, raw, peer)  # definitions, and who is here, may have changed meanwhile
                return await self._commit(offer, key, raw, peer or self._link.me, sure)

    def _check(self, key: Key, raw: dict[str, Any], peer: Address | None) -> Spec:
        """Everything but room and the name elsewhere."""
        definitions, found = self._fleet.definitions, self._fleet.find(key)
        entry = definitions.entries.get((EntryKind.APP, key.app, ""))
        if entry is not None and entry.value is None and not definitions.own(key.app):
            raise _No(Reason.TOMBSTONE, f"app {key.app} was deleted")
        app = None if definitions.bare(key.app) else definitions.find(key.app)
        if app is None:
            raise _No(Reason.INVALID, f"there is no app {key.app}")
        if definitions.conflict(key.app):
            raise _No(Reason.DEFINITION_CONFLICT, f"this branch has a definition of its own of app {key.app}")
        if found is not None and found.record.placed is None:
            raise _No(Reason.NAME_PINNED, f"a pinned instance {key} is here")
        if found is not None:
            raise _No(Reason.NAME_TAKEN, f"{key} exists already, here")
        try:
            self._fleet.check_room(key)
            spec = definitions.effective(app, raw)
        except Conflict as conflict:
            raise _No(Reason.NO_ROOM, conflict.detail) from None
        except Unavailable as unavailable:
            raise _No(Reason.STOPPING, unavailable.detail) from None
        except Invalid as invalid:
            raise _No(Reason.INVALID, _told(invalid.faults)) from None
        if peer is not None and (faults := definitions.peer_faults(spec)):
            raise _No(Reason.POLICY, _told(faults))
        return spec

    @contextlib.contextmanager
    def _reserving(self, request: str, key: Key, weight: int) -> Iterator[None]:
        self._reserved[request] = key, weight
        try:
            yield
        finally:
            del self._reserved[request]

    @contextlib.asynccontextmanager
    async def _named(self, offer: Offer, key: Key) -> AsyncIterator[Callable[[], Awaitable[None]] | None]:
        """The name is this branch's, once what is yielded was awaited."""
        if offer.moving:
            yield None
        elif offer.named:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    sure = await stack.enter_async_context(self._names.take(key))
                except Taken:
                    raise
                except Unavailable as doubt:
                    raise _No(Reason.UNSURE, doubt.detail) from None
                yield sure  # what is raised here says something else
        else:
            yield None  # unique by construction
            await self._names.bind(key)

    async def _commit(
        self, offer: Offer, key: Key, raw: dict[str, Any], by: Address, sure: Callable[[], Awaitable[None]] | None
    ) -> Supervisor:
        now = self._fleet.world.wall()
        placed = Placed(offer.request, offer.digest, offer.named, now, waiting=offer.moving)
        record = InstanceRecord(key, raw, 1, now, placed=placed)
        origin = offer.origin if offer.moving else ""
        outcome = OutcomeRecord(offer.request, offer.digest, now, key.app, key.name, offerer=by.id, origin=origin)
        try:
            return await self._fleet.add(record, outcome, sure, by={"principal": offer.principal, "branch": by.id})
        except Unavailable as failure:
            if self._fleet.find(key) is not None:
                raise  # it could not be taken back: no refusal is true
            reason = Reason.STORAGE if isinstance(failure, StorageFailed) else Reason.UNSURE
            raise _No(reason, failure.detail) from None

    # Taking back

    async def _undo(self, request: str, by: str) -> None:
        """The caller holds the app's lock, and what it made may have ended while it waited for that."""
        made = self._fleet.outcomes.get(request)
        if made is None or made.instance is None or made.ended:
            return
        cancelled = replace(made, instance=None, at=self._fleet.world.wall())
        found = self._fleet.find(Key(made.app, made.instance))
        if found is None or found.record.deleting:
            await self._remember(cancelled)
        else:
            asked = {"reason": "its creation was cancelled", "branch": by}
            await self._fleet.begin_delete(found, Put(cancelled), by=asked)
            self._fleet.outcomes.add(cancelled)
        if found is not None:
            await self._names.give_up(found)

    async def _remember(self, outcome: OutcomeRecord) -> None:
        await self._fleet.world.store.write(Put(outcome))
        self._fleet.outcomes.add(outcome)

    def _lock(self, request: str) -> asyncio.Lock:
        return self._locks.setdefault(request, asyncio.Lock())


def _told(faults: Iterable[Fault]) -> str:
    return "; ".join(f"{fault.pointer} {fault.detail}" for fault in faults)


def _resource(view: Instance) -> dict[str, object]:
    return dict(encode(view))
