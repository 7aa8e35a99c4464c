"""Branches with real APIs that carry requests to each other over a bus in memory; a fake knows who is where."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from msgspec.structs import replace

from branchd.api.server import Server
from branchd.api.settings import HttpSettings
from branchd.branch.mesh.carrying import Carrier
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.neighbours import Made
from branchd.branch.service import Service
from branchd.cli.loopback import Loopback
from branchd.core.access import Principal, Scope
from branchd.core.capacity import Capacity
from branchd.core.errors import BranchdError, Conflict, NotFound, Unavailable
from branchd.core.peers import Address, Announcement, BranchState, placed_key
from branchd.core.values import Key
from branchd.wire.decode import encode
from tests.api.conftest import COMMAND, Answer, Api, House
from tests.fakes.bus import MemoryBroker
from tests.fakes.seal import ClearSeal
from tests.fakes.store import MemoryStore
from tests.waiting import until


@dataclass
class Member:
    name: str
    house: House
    service: Service
    link: Link
    api: Api
    mesh: "Directory"

    @property
    def address(self) -> Address:
        return self.link.me

    async def place(self, app: str, name: str) -> None:
        """Its keys lead to the instance, as those of a placed one do."""
        await self.link.bind(placed_key(Key(app, name)))


@dataclass
class Neighbourhood:
    broker: MemoryBroker
    members: dict[str, Member] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)  #: killed, and not found elsewhere
    chosen: str = ""  #: where new instances are placed
    misled: list[str] = field(default_factory=list)  #: branches that locate() names first, whoever has it
    located: int = 0  #: how often it was asked

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def owners(self, app: str, name: str) -> list[Member]:
        found = []
        for member in self.members.values():
            try:
                member.service.instances.get(app, name)
            except NotFound:
                continue
            found.append(member)
        return found

    def name_of(self, branch: str) -> str:
        return next((member.name for member in self.members.values() if member.address.id == branch), branch)

    def cut(self, name: str) -> None:
        """It answers nobody any more, and its inbox is still there."""
        self.broker.partition(self[name].address.id)


class Directory:
    """Implements branchd.branch.mesh.neighbours.Neighbours."""

    def __init__(self, all_of_them: Neighbourhood, me: str, carrier: Carrier) -> None:
        self.carrier = carrier
        self.capacity = Capacity(16, 0)
        self.state = BranchState.UP
        self._all = all_of_them
        self._me = me

    def name_of(self, branch: str) -> str:
        return self._all.name_of(branch)

    def others(self) -> Sequence[Announcement]:
        return [one for one in self._known() if one.state is not BranchState.CLOSED]

    def lost(self) -> Sequence[Announcement]:
        return [one for one in self._known() if one.state is BranchState.CLOSED]

    def _known(self) -> list[Announcement]:
        return [
            Announcement(
                id=member.address.id,
                boot=member.address.boot,
                name=member.name,
                incarnation=1,
                sequence=1,
                state=self._state(member.name),
                at=1_700_000_000.0,
                slots=99,
                reserved=1,
                version="0.0.0",
            )
            for member in self._all.members.values()
            if member.name != self._me
        ]

    def _state(self, name: str) -> BranchState:
        if name in self._all.lost:
            return BranchState.CLOSED
        return BranchState.SILENT if name in self._all.silent else BranchState.UP

    def find(self, branch: str) -> Address | None:
        return next((other.peer for other in self.others() if branch in {other.name, other.id}), None)

    async def locate(self, app: str, name: str) -> Address:
        self._all.located += 1
        if self._all.misled:
            return Address(self._all.misled.pop(0), "boot")
        owners = [member for member in self._all.owners(app, name) if member.name not in self._all.silent]
        if len(owners) > 1:
            raise Conflict(f"{app}:{name} is on several branches", ", ".join(member.name for member in owners))
        if owners:
            return owners[0].address
        if self._all.silent:
            raise Unavailable(f"it may be on {', '.join(self._all.silent)}")
        raise NotFound(f"no branch has {app}:{name}")

    async def create(
        self, principal: Principal, app: str, body: Any, keys: Sequence[str | None]
    ) -> Sequence[Made | BranchdError]:
        member = self._all[self._all.chosen or self._me]
        results: list[Made | BranchdError] = []
        for key in keys:
            try:
                instance, made = await member.service.instances.create(principal, app, body, key)
            except BranchdError as error:
                results.append(error)
                continue
            results.append(Made(encode(replace(instance)), made, member.address))
        return results


@asynccontextmanager
async def neighbourhood(
    tmp_path: Path, *names: str, peer_scope: Scope = Scope.OPERATE, allow_users: tuple[str, ...] | None = None
) -> AsyncIterator[Neighbourhood]:
    everybody = Neighbourhood(MemoryBroker())
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        for name in names:
            house = House(store=MemoryStore(random.Random(name).randbytes(16).hex()))
            service = house.service(None, allow_users, name, peer_scope)
            await service.begin()
            server = Server(service, HttpSettings(listen=("127.0.0.1:0", f"unix:{tmp_path}/{name}.sock")))
            await server.start()
            me = Address(service.id, "boot")
            link = Link(everybody.broker.bus(me.id), ClearSeal(me), me)
            carrier = Carrier(link, Loopback(server.connect), peer_scope, everybody.name_of)
            mesh = Directory(everybody, name, carrier)
            service.mesh = mesh  # type: ignore[assignment]  # all that the API asks of one
            everybody.members[name] = Member(name, house, service, link, Api(server.addresses[0], session), mesh)
            await link.open()
            stack.push_async_callback(_close, service, house, server, link, carrier)
        await until(lambda: all(member.link.connected for member in everybody.members.values()))
        yield everybody


async def _close(service: Service, house: House, server: Server, link: Link, carrier: Carrier) -> None:
    carrier.close()
    await link.close()
    await server.stop()
    service.mesh = None
    service.kill()
    await service.end()
    await house.logs.close()


#: what `shop` is made of: other branches may define it too
USER = {**COMMAND, "user": "www"}
WEB = "/v1/apps/shop/instances/web"
NEW = "/v1/apps/shop/instances"


async def furnish(everybody: Neighbourhood) -> None:
    """Each branch has the app `shop`, and b has its web."""
    for member in everybody.members.values():
        assert (await member.api("PUT", "/v1/apps/shop", USER)).status == 201
    assert (await everybody["b"].api("PUT", f"{WEB}?local=1&wait=5s", {})).status == 201


def way(answer: Answer) -> tuple[int, str | None, str | None]:
    """Its status, who gave it, and who passed it on."""
    return answer.status, answer.headers.get("Branchd-Owner"), answer.headers.get("Branchd-Via")
