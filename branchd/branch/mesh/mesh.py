"""A branch in its neighbourhood: the parts of this package put together, and what the API asks of them."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from branchd.branch.fleet import Fleet
from branchd.branch.mesh.carrying import Carrier
from branchd.branch.mesh.creating import Creating
from branchd.branch.mesh.drain import DRAINING, Draining
from branchd.branch.mesh.gossip import Gossip
from branchd.branch.mesh.hosting import Hosting
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.names import Names
from branchd.branch.mesh.neighbours import ANSWER_WITHIN, Made
from branchd.branch.mesh.placing import Placing
from branchd.branch.mesh.presence import Presence, Self
from branchd.branch.mesh.replacing import Replacing
from branchd.branch.mesh.replicas import Replicas
from branchd.branch.mesh.sharing import Sharing
from branchd.branch.operations import Operations
from branchd.branch.ports import Bus, Door
from branchd.branch.records import Remember
from branchd.branch.world import Policies
from branchd.core.access import Principal, Scope
from branchd.core.capacity import Capacity
from branchd.core.diagnosis import MeshFacts
from branchd.core.errors import BranchdError, NoAnswer, NoRoute, NotFound, Unavailable
from branchd.core.lifecycle import State
from branchd.core.peers import Address, Announcement, BranchState, placed_key
from branchd.core.roster import Member
from branchd.core.value import Value
from branchd.core.values import Key, Truth
from branchd.wire import json
from branchd.wire.mesh import Knock, WhereIs
from branchd.wire.resources import ConditionType, Explanation
from branchd.wire.sealing import Seal

#: the fact that is remembered
INCARNATION = "incarnation"

#: restarts after which a replacement that crashes is given up
CRASHES = 3

#: seconds of one look at how an instance elsewhere comes up
SLICE = 10.0

#: seconds that branches have to say whether they have instances of an app
TOLD_WITHIN = 2.0

#: who asks where nobody outside does
OURSELVES = Principal("branchd", Scope.READ)


class Membership(Value):
    """What a branch needs to belong to a neighbourhood."""

    bus: Bus
    seal: Seal
    me: Address
    door: Door
    user: str  #: at the broker, for the doctor
    vhost: str


class Mesh:
    """Satisfies branchd.branch.mesh.neighbours.Neighbours. Made before begin() of its service, which begins it."""

    def __init__(
        self,
        membership: Membership,
        fleet: Fleet,
        policies: Policies,
        operations: Operations,
        facts: Mapping[str, str],
        version: str,
        address: Callable[[], str | None],
        happened: Callable[[str, str | None, str | None, Mapping[str, Any]], None],
    ) -> None:
        """`facts`: what was remembered. `address`: of this branch's API. `happened`: type, app, instance, data."""
        self._membership = membership
        self._fleet = fleet
        self._policies = policies
        self._version = version
        self._address = address
        world = fleet.world
        self._first_cluster = ""
        self._neighbours: tuple[object, tuple[Announcement, ...]] = (None, ())
        self.link = Link(membership.bus, membership.seal, membership.me)
        self.link.on_state(lambda state: self._remember_cluster(state.cluster))
        self.presence = Presence(
            self.link,
            world.clock,
            world.wall,
            world.chance,
            self._myself,
            int(facts.get(INCARNATION, "0")),
            self._remember_incarnation,
            lambda kind, data: happened(kind, None, None, data),
        )
        self.sharing = Sharing(self.link, fleet, lambda: self.presence.offset)
        self._gossip = Gossip(self.link, self.presence, self.sharing, world.chance)
        self._names = Names(
            self.link,
            fleet,
            policies.name,
            branches=lambda: len(self.presence.others()) + 1,
            missing=self._missing,
            doubt=lambda: self.presence.absence_doubted,
        )
        self._hosting = Hosting(
            self.link,
            fleet,
            self._names,
            policies,
            merge=self.sharing.merge,
            draining=lambda: self.draining.active,
        )
        self._replacing = Replacing(self.link, fleet, self._names, self._hosting)
        self._placing = Placing(
            self.link, self._hosting, self._announcement(), self.presence.others, world.chance, world.wall
        )
        self._creating = Creating(fleet, self.link, self._placing, lambda: self.presence.absence_doubted)
        self.draining = Draining(
            fleet,
            self.link,
            operations,
            drained=facts.get(DRAINING, ""),
            changed=self.presence.changed,
            others=lambda: self.link.connected and self.presence.joined and bool(self.presence.others()),
            again=self._again,
            offer=self._creating.move,
            ready=self._ready_there,
            moves=self._names.moves,
            stays=self._names.stays,
        )
        self.carrier = Carrier(self.link, membership.door, policies.peer_scope, self.name_of)
        self.replicas = Replicas(
            fleet,
            membership.me.id,
            lambda: [membership.me.id, *(member.id for member in self.presence.others())],
            lambda: self.presence.absence_doubted,
            self._held,
            self._creating.replace,
            happened,
        )
        fleet.watchers.append(lambda _: self.presence.changed())
        self.sharing.on_written.append(lambda app: fleet.later(self.replicas.changed(app)))

    # Life

    async def begin(self) -> None:
        await self.sharing.begin()
        await self.link.open()
        self.presence.begin(self._gossip.exchange)
        self._gossip.begin()
        self.replicas.begin()
        self._replacing.begin()
        if self.draining.active:
            self.draining.resume()

    async def end(self, *, quietly: bool = False) -> None:
        """Leaves; unless `quietly`, the others hear of it. What runs goes on."""
        await self.replicas.tasks.end()
        await self._replacing.tasks.end()
        await self._gossip.tasks.end()
        await self.presence.end(quietly=quietly)
        self.carrier.close()
        await self.link.close()
        await self._names.tasks.end()

    # Who is there

    @property
    def capacity(self) -> Capacity:
        return self._hosting.capacity

    @property
    def state(self) -> BranchState:
        return BranchState.DRAINING if self.draining.active else BranchState.UP

    def others(self) -> Sequence[Announcement]:
        """The other branches, those found silent too, as they announced themselves; `state` is what is believed."""
        roster = self.presence.roster
        if self._neighbours[0] is not roster:
            silent = (member for member in self.presence.missing() if member.state is BranchState.SILENT)
            self._neighbours = roster, _said((*self.presence.others(), *silent))
        return self._neighbours[1]

    def lost(self) -> Sequence[Announcement]:
        """The branches that ended lately, and did not say that they go."""
        return _said(member for member in self.presence.missing() if member.state is BranchState.CLOSED)

    def find(self, branch: str) -> Address | None:
        """Conflict where several have the name."""
        found = self.presence.find(branch)
        return None if found is None else found.peer

    def name_of(self, branch: str) -> str:
        """Of the branch with that id; the id where it is not known any more."""
        member = self.presence.roster.get(branch)
        return branch if member is None else member.name

    async def locate(self, app: str, name: str) -> Address:
        """Of the instance's owner. NotFound when that is sure, else Unavailable; Conflict where several have it."""
        try:
            return (await self._names.locate(app, name))[0]
        except NotFound:
            if doubt := self.presence.absence_doubted:
                raise Unavailable(f"no connected branch has {app}:{name}, and others may have it: {doubt}") from None
            raise

    def facts(self) -> MeshFacts:
        state = self.link.state
        guarding = state.connected and self.presence.joined
        parts = (
            self.presence, self.presence.watching, self._gossip, self._names, self.replicas, self._replacing, self.link,
        )  # fmt: skip
        return MeshFacts(
            connected=state.connected,
            where=state.where,
            why=state.why,
            definite=self.link.definite,
            user=self._membership.user,
            vhost=self._membership.vhost,
            cluster=state.cluster,
            first_cluster=self._first_cluster,
            twin=self.presence.twin is not None,
            guarding=self.presence.absence_doubted if guarding else "",
            guarding_for=self.presence.doubt_lasts,
            missing=tuple(self._missing()),
            clock_offset=self.presence.offset if self.others() else None,
            dropped=self.link.dropped + self.sharing.dropped,
            failures=tuple(part.tasks.failures for part in parts),
        )

    async def instances_elsewhere(self, app: str) -> tuple[int, Sequence[str]]:
        """On how many other branches there are any, and the names of those that did not say."""
        others = self.others()
        answers = await asyncio.gather(*(self._has_any(other, app) for other in others))
        silent = [other.name for other, answer in zip(others, answers, strict=True) if answer is None]
        silent += [other.name for other in self.lost()]
        if not self.link.connected:
            silent.append("all that this branch cannot reach without its broker")
        return answers.count(True), silent

    async def _has_any(self, other: Announcement, app: str) -> bool | None:
        target = f"/v1/instances?local=1&limit=1&app={app}"
        try:
            return bool((await self._read(other.peer, target, TOLD_WITHIN))["items"])
        except (NoRoute, Unavailable):
            return None

    # Placement

    async def create(
        self, principal: Principal, app: str, body: Any, keys: Sequence[str | None]
    ) -> Sequence[Made | BranchdError]:
        """A placed instance for each Idempotency-Key, None being one of its own. Invalid, NotFound, Conflict."""
        return await self._creating.create(principal, app, body, keys)

    def explain(self, app: str, name: str) -> Explanation | None:
        """The last placement of that name that was asked of this branch."""
        return self._placing.explain(app, name)

    # Replicas and moves

    async def _held(self, app: str, name: str) -> bool:
        key = placed_key(Key(app, name))
        if self.link.definite:
            return await self.link.routed(key, Knock())
        return bool(await self.link.gather(key, WhereIs(app, name)))

    async def _ready_there(self, owner: Address, key: Key, seconds: float) -> str:
        """Waits until it is ready there; why it is not, or ""."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            target = f"/v1/apps/{key.app}/instances/{key.name}?local=1&wait={min(left, SLICE):.3f}s"
            try:
                seen = await self._read(self._again(owner), target, SLICE + ANSWER_WITHIN)
            except NoAnswer:
                continue  # its daemon may be started anew
            status = seen["status"]
            truths = {condition["type"]: condition["status"] for condition in status["conditions"]}
            if status["state"] == State.RUNNING and truths.get(ConditionType.READY) == Truth.TRUE:
                return ""
            crashing = status["state"] == State.BACKOFF and status["restarts"] >= CRASHES
            if crashing or status["state"] in (State.FATAL, State.EXITED):
                return f"it is {status['state']} at branch {seen['branch']}: {status['reason'] or 'it has ended'}"
        return f"not within {seconds:g} s"

    def _again(self, owner: Address) -> Address:
        member = self.presence.roster.get(owner.id)
        return owner if member is None else member.peer

    async def _read(self, to: Address, target: str, within: float) -> Any:
        """What another branch's API answers to a GET. NotFound, NoRoute, Unavailable."""
        async with self.carrier.carry(to, OURSELVES, "GET", target, {}, b"", within) as served:
            body = b"".join([piece async for piece in served.body])
        if served.status == 404:
            raise NotFound(f"{target} is not there")
        if served.status != 200:
            raise Unavailable(f"branch {self.name_of(to.id)} answered {served.status}")
        return json.loads(body)

    # What the parts ask

    def _myself(self) -> Self:
        room = self.capacity
        return Self(
            name=self._policies.name,
            state=self.state,
            slots=room.slots,
            reserved=room.reserved,
            version=self._version,
            labels=self._policies.labels,
            address=self._address(),
        )

    def _announcement(self) -> Announcement:
        """As the others see it while it takes instances; as much of it as a placement looks at."""
        me = self._membership.me
        return Announcement(
            id=me.id,
            boot=me.boot,
            name=self._policies.name,
            incarnation=0,
            sequence=0,
            state=BranchState.UP,
            at=0.0,
            slots=self.capacity.slots,
            reserved=0,
            version=self._version,
            labels=self._policies.labels,
        )

    async def _remember_incarnation(self, incarnation: int) -> None:
        await self._fleet.world.store.write(Remember(INCARNATION, str(incarnation)))

    def _remember_cluster(self, cluster: str) -> None:
        self._first_cluster = self._first_cluster or cluster

    def _missing(self) -> list[str]:
        return sorted(member.name for member in self.presence.missing())


def _said(members: Iterable[Member]) -> tuple[Announcement, ...]:
    said = (replace(member.announcement, state=member.state) for member in members)
    return tuple(sorted(said, key=lambda one: (one.name, one.id)))
