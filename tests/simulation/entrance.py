"""The one place of the simulation that knows how a branch with its mesh is put together and spoken to.

Everything else looks at stores and processes, from the outside.
"""

from collections.abc import Mapping
from typing import Any

from branchd.branch.mesh.link import Link
from branchd.branch.ports import Bus
from branchd.branch.service import Service
from branchd.core.access import Principal, Scope
from branchd.core.peers import Address
from branchd.wire.sealing import Seal

#: who asks for everything here
OPERATOR = Principal("operator", Scope.ADMIN)


class Entrance:
    """One branch in one life. What it raises is what the operation raises; without a bus it is in local mode."""

    def __init__(self, service: Service, bus: Bus | None, seal: Seal, me: Address) -> None:
        self.service = service
        self._link = Link(bus, seal, me) if bus is not None else None

    async def begin(self) -> None:
        await self.service.begin()
        if self._link is not None:
            await self._link.open()

    async def end(self) -> None:
        await self.service.end()
        if self._link is not None:
            await self._link.close()

    async def create(self, app: str, body: Mapping[str, Any], key: str | None) -> tuple[str, bool]:
        """The instance's name, and whether this call made it."""
        made, new = await self.service.instances.create(OPERATOR, app, dict(body), key)
        return made.name, new

    async def create_pinned(self, app: str, body: Mapping[str, Any]) -> str:
        made, _ = await self.service.instances.create(OPERATOR, app, dict(body))
        return made.name

    async def delete(self, app: str, name: str) -> None:
        """Wherever it is; it has begun when this returns."""
        await self.service.instances.delete(app, name)

    async def put_app(self, app: str, spec: Mapping[str, Any]) -> None:
        await self.service.apps.put(app, dict(spec))

    async def delete_app(self, app: str, cascade: bool) -> None:
        await self.service.apps.delete(app, cascade)

    async def drain(self) -> None:
        raise NotImplementedError("the mesh is not there yet")

    def incarnations(self) -> Mapping[str, int]:
        """The highest that this branch has seen of each, by id."""
        return {}

    def believed(self) -> frozenset[str]:
        """Ids of the branches that this one holds for up, its own included."""
        return frozenset({self.service.id})
