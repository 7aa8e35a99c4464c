"""The one place of the simulation that knows how a branch with its mesh is put together and spoken to.

Everything else looks at stores and processes, from the outside.
"""

from collections.abc import Mapping
from typing import Any

from branchd.branch.mesh.mesh import Membership, Mesh
from branchd.branch.ports import Bus
from branchd.branch.records import Snapshot
from branchd.branch.service import Service
from branchd.branch.world import Policies, World
from branchd.core.access import Principal, Scope
from branchd.core.errors import BranchdError, NotFound, OutcomeUnknown
from branchd.core.peers import Address, BranchState
from branchd.core.roster import Roster
from branchd.wire.sealing import Seal
from tests.simulation.door import SimulatedDoor

#: who asks for everything here
OPERATOR = Principal("operator", Scope.ADMIN)


class Entrance:
    """One branch in one life. What it raises is what the operation raises; without a bus it is in local mode."""

    def __init__(
        self, world: World, policies: Policies, snapshot: Snapshot, bus: Bus | None, seal: Seal, me: Address
    ) -> None:
        self._roster: Roster | None = None
        self._incarnations: Mapping[str, int] = {}
        door = SimulatedDoor()
        membership = None if bus is None else Membership(bus, seal, me, door, "", "")
        self.service = door.service = Service(world, policies, snapshot, "", "0.0.0", membership)

    @property
    def mesh(self) -> Mesh | None:
        return self.service.mesh

    async def begin(self) -> None:
        await self.service.begin()

    async def end(self) -> None:
        await self.service.end()

    async def create(self, app: str, body: Mapping[str, Any], key: str | None) -> tuple[str, bool]:
        """The instance's name, and whether this call made it."""
        if self.mesh is None:
            made, new = await self.service.instances.create(OPERATOR, app, dict(body), key)
            return made.name, new
        [placed] = await self.mesh.create(OPERATOR, app, dict(body), [key])
        if isinstance(placed, BranchdError):
            raise placed
        return placed.instance["name"], placed.made

    async def create_pinned(self, app: str, body: Mapping[str, Any]) -> str:
        made, _ = await self.service.instances.create(OPERATOR, app, dict(body))
        return made.name

    async def delete(self, app: str, name: str) -> None:
        """Wherever it is; it has begun when this returns."""
        if self.mesh is None or self.service.instances.stands_for(app, name):
            await self.service.instances.delete(app, name)
        else:
            await self._delete_there(self.mesh, app, name)

    async def _delete_there(self, mesh: Mesh, app: str, name: str) -> None:
        owner = await mesh.locate(app, name)
        async with mesh.carrier.carry(owner, OPERATOR, "DELETE", f"/v1/apps/{app}/instances/{name}", {}) as served:
            if served.status == 404:
                raise NotFound("it is not there any more")
            if served.status >= 300:
                raise OutcomeUnknown(f"it answered {served.status}")

    async def put_app(self, app: str, spec: Mapping[str, Any]) -> None:
        await self.service.apps.put(app, dict(spec))

    async def delete_app(self, app: str, cascade: bool) -> None:
        await self.service.apps.delete(app, cascade)

    async def drain(self) -> None:
        assert self.mesh is not None
        await self.mesh.draining.begin(OPERATOR, pinned=False)

    async def undrain(self) -> None:
        assert self.mesh is not None
        await self.mesh.draining.end()

    def incarnations(self) -> Mapping[str, int]:
        """The highest that this branch has seen of each, by id; the same object as long as nothing changed."""
        roster = None if self.mesh is None else self.mesh.presence.roster
        if roster is not self._roster:
            self._roster, self._incarnations = roster, {member.id: member.incarnation for member in roster or ()}
        return self._incarnations

    def told(self) -> Mapping[str, tuple[int, BranchState]]:
        """Of each branch that this one holds for up, its own included: its incarnation, and what it said of itself."""
        assert self.mesh is not None
        live = (member for member in self.mesh.presence.roster if member.live)
        return {member.id: (member.announcement.incarnation, member.state) for member in live}

    def draining(self) -> bool:
        return self.mesh is not None and self.mesh.draining.active

    def believed(self) -> frozenset[str]:
        """Ids of the branches that this one holds for up, its own included."""
        others = () if self.mesh is None else self.mesh.presence.others()
        return frozenset({self.service.id, *(member.id for member in others)})
