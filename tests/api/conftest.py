"""A branch with fakes at its ports, its API on loopback and on a unix socket, and a client that keeps whole answers."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from multidict import CIMultiDictProxy
from yarl import URL

from branchd.api.server import Server
from branchd.api.settings import HttpSettings
from branchd.branch.ending import Ending
from branchd.branch.file_definitions import Read
from branchd.branch.files import nothing
from branchd.branch.mesh.mesh import Membership
from branchd.branch.service import Service
from branchd.branch.world import Policies, World
from branchd.core.access import Scope
from branchd.core.errors import Conflict, SpawnFailed
from branchd.core.spec import Kind
from branchd.core.values import Identity
from branchd.drivers.celery import CeleryDriver
from branchd.drivers.command import CommandDriver
from tests.fakes.channel import FakeChannel
from tests.fakes.hooks import FakeTeller
from tests.fakes.logs import MemoryLogs
from tests.fakes.probes import FakeProber
from tests.fakes.process import BOOT, FakeProcesses
from tests.fakes.store import MemoryStore

if TYPE_CHECKING:
    from tests.api.neighbourhood import Neighbourhood

ADMIN = "the-admin-token-of-the-tests"

#: a program that a KILL ends at once: the fakes know no other end
COMMAND = {"kind": "command", "command": ["sleep", "1000"], "stop": [{"signal": "KILL", "patience": 1}]}


class FakeHost:
    boot = BOOT
    cpus = 4

    resident = 4096  #: bytes that every tree holds
    missing: frozenset[str] = frozenset()  #: accounts

    def load(self) -> Mapping[str, float]:
        return {"load_per_core": 0.5}

    def account(self, user: str | None) -> tuple[str, str]:
        return "/nonexistent", user or "root"

    def hard_limits(self) -> Mapping[str, int]:
        return {"open_files": 65536, "core": 0}

    def uid(self, user: str | None) -> int:
        if user in self.missing:
            raise SpawnFailed(f"user {user!r} does not exist on this machine")
        return 0 if user in (None, "root") else 1000

    def environment(self, path: str) -> Mapping[str, str]:
        if path == "/absent":
            raise SpawnFailed("/absent cannot be read: No such file or directory")
        return {"OF_FILE": "of-file", "BOTH": "of-file"}

    def memory(self, identity: Identity) -> int:
        return self.resident

    def usage(self, identity: Identity) -> Mapping[str, float] | None:
        return {"rss": 4096.0, "cpu_seconds": 0.25, "processes": 1.0, "threads": 2.0, "open_files": 3.0}


@dataclass
class House:
    """The branch, and what its fakes know."""

    store: MemoryStore = field(default_factory=MemoryStore)
    processes: FakeProcesses = field(default_factory=FakeProcesses)
    logs: MemoryLogs = field(default_factory=MemoryLogs)
    channel: FakeChannel = field(default_factory=FakeChannel)
    prober: FakeProber = field(default_factory=FakeProber)
    teller: FakeTeller = field(default_factory=FakeTeller)
    host: FakeHost = field(default_factory=FakeHost)

    def service(
        self,
        default_user: str | None = None,
        allow_users: tuple[str, ...] | None = None,
        name: str = "here",
        peer_scope: Scope = Scope.OPERATE,
        membership: Membership | None = None,
        read_files: Read = nothing,
    ) -> Service:
        world = World(
            processes=self.processes,
            logs=self.logs,
            store=self.store,
            channel=self.channel,
            host=self.host,
            prober=self.prober,
            teller=self.teller,
            drivers={Kind.CELERY: CeleryDriver("/agent", "/agent.sock", "python3", 4), Kind.COMMAND: CommandDriver()},
            clock=lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
            wall=time.time,
            chance=lambda: 0.5,
        )
        policies = Policies(name, {}, None, "{app}:{name}@{branch}", default_user, allow_users, peer_scope)
        return Service(world, policies, self.store.load(), ADMIN, "0.0.0", membership, read_files)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        """Of a problem."""
        assert self.headers["Content-Type"].startswith("application/problem+json"), (self.status, self.body)
        assert self.json["status"] == self.status
        prefix, _, slug = str(self.json["type"]).rpartition(":")
        assert prefix == "urn:branchd:problem"
        return slug

    @property
    def pointers(self) -> list[str]:
        return [error["pointer"] for error in self.json["errors"]]


class Api:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def __call__(
        self, method: str, path: str, body: Any = None, token: str | None = ADMIN, **more: Any
    ) -> Answer:
        async with self.open(method, path, body, token, **more) as response:
            return Answer(response.status, response.headers, await response.read())

    def open(self, method: str, path: str, body: Any = None, token: str | None = ADMIN, **more: Any) -> Any:
        """The answer as it comes, for streams."""
        headers = dict(more.pop("headers", {}))
        if token is not None:
            headers.setdefault("Authorization", f"Bearer {token}")
        if body is not None:
            more["data"] = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        # The path is sent as it stands here, escapes and all.
        return self.session.request(method, URL(self.url + path, encoded=True), headers=headers, **more)


@pytest.fixture
def house() -> House:
    return House()


async def refuse_reloads(service: Service) -> None:
    """As the composition root does where the new code does not start; here there is none to take its place."""
    while await service.endings.next() is Ending.RELOAD:
        service.endings.refuse(Conflict("the new code does not start"))


@pytest.fixture
async def branch(house: House) -> AsyncIterator[Service]:
    service = house.service()
    await service.begin()
    reloads = asyncio.create_task(refuse_reloads(service))
    yield service
    reloads.cancel()
    service.kill()
    await service.end()
    await house.logs.close()


@pytest.fixture
async def server(branch: Service, tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(branch, HttpSettings(listen=("127.0.0.1:0", f"unix:{tmp_path}/api.sock"), allowed_hosts=("here",)))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield Api(server.addresses[0], session)


@pytest.fixture
async def tokens(branch: Service) -> dict[Scope, str]:
    """One of each scope."""
    return {scope: (await branch.tokens.create(f"of-{scope}", scope, None))[1] for scope in Scope}


@pytest.fixture
async def shop(api: Api) -> Api:
    """With an app `shop` whose instances are commands."""
    assert (await api("PUT", "/v1/apps/shop", COMMAND)).status == 201
    return api


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator["Neighbourhood"]:
    """Branches a, b and c, each with the app `shop`; b has web."""
    from tests.api.neighbourhood import furnish, neighbourhood

    async with neighbourhood(tmp_path, "a", "b", "c") as everybody:
        await furnish(everybody)
        yield everybody
