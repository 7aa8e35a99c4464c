"""Branches with real APIs and real meshes over a bus in memory; beneath them are fakes."""

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any

import aiohttp

from branchd.api.server import Server
from branchd.api.settings import HttpSettings
from branchd.branch.mesh.mesh import Membership, Mesh
from branchd.branch.service import Service
from branchd.cli.loopback import Loopback
from branchd.core.access import Principal, Scope
from branchd.core.peers import Address
from tests.api.conftest import COMMAND, Api, House
from tests.fakes.bus import MemoryBroker
from tests.fakes.seal import ClearSeal
from tests.fakes.store import MemoryStore
from tests.waiting import until


@dataclass(frozen=True)
class Branch:
    name: str
    house: House
    service: Service
    api: Api
    socket: Path

    @property
    def mesh(self) -> Mesh:
        assert self.service.mesh is not None
        return self.service.mesh

    @property
    def runs(self) -> list[str]:
        return sorted(process.key.name for process in self.house.processes.running.values())


Branches = Mapping[str, Branch]


@asynccontextmanager
async def meshes(tmp_path: Path, *names: str, peer_scope: Scope = Scope.OPERATE) -> AsyncIterator[Branches]:
    """All of them know each other, and share the app `shop`."""
    broker = MemoryBroker()
    branches: dict[str, Branch] = {}
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        for name in names:
            branches[name] = await _open(stack, broker, name, tmp_path / f"{name}.sock", session, peer_scope)
        await until(lambda: all(len(one.mesh.others()) == len(names) - 1 for one in branches.values()), 30)
        assert (await branches[names[0]].api("PUT", "/v1/apps/shop", {**COMMAND, "user": "www"})).status == 201
        await until(lambda: all(one.service.apps.list() for one in branches.values()))
        yield branches


async def _open(
    stack: AsyncExitStack, broker: MemoryBroker, name: str, path: Path, session: aiohttp.ClientSession, scope: Scope
) -> Branch:
    house = House(store=MemoryStore(random.Random(name).randbytes(16).hex()))
    server: Server

    async def connect(principal: Principal) -> socket:
        return await server.connect(principal)

    me = Address(house.store.load().branch_id, "boot")
    membership = Membership(broker.bus(me.id), ClearSeal(me), me, Loopback(connect), "", "")
    service = house.service(None, None, name, scope, membership)
    server = Server(service, HttpSettings(listen=("127.0.0.1:0", f"unix:{path}")))
    await server.start()
    await service.begin()
    branch = Branch(name, house, service, Api(server.addresses[0], session), path)
    stack.push_async_callback(_close, branch, server)
    return branch


async def _close(branch: Branch, server: Server) -> None:
    await server.stop()
    branch.service.kill()
    await branch.service.end()
    await branch.house.logs.close()


async def created(by: Branch, name: str, **spec: Any) -> str:
    """The name of the branch that has it now."""
    made = await by.api("POST", "/v1/apps/shop/instances?wait=5s", {"name": name, **spec})
    assert made.status == 201, made.body
    return str(made.json["branch"])
