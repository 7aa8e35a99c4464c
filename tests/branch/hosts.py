"""Branches that take placed instances, over a broker and fakes in memory, for tests that run in virtual time."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from branchd.branch.adoption import resume
from branchd.branch.events import EventLog
from branchd.branch.fleet import Fleet
from branchd.branch.journal import Journal
from branchd.branch.layers import app_entry
from branchd.branch.mesh.hosting import Hosting
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.names import Names
from branchd.branch.mesh.replacing import Replacing
from branchd.branch.mesh.sharing import Sharing
from branchd.branch.records import AppRecord, AuthoredRecord, Change, EventRecord, InstanceRecord, Put
from branchd.branch.world import Policies, World
from branchd.core.admission import Refusal
from branchd.core.capacity import Capacity
from branchd.core.definitions import digest
from branchd.core.peers import Address
from branchd.core.spec import Kind
from branchd.core.stamps import Stamp, at
from branchd.core.values import Key
from branchd.drivers.command import CommandDriver
from branchd.wire.mesh import Accepted, Offer
from tests.api.conftest import FakeHost
from tests.fakes.bus import MemoryBroker
from tests.fakes.channel import FakeChannel
from tests.fakes.hooks import FakeTeller
from tests.fakes.logs import MemoryLogs
from tests.fakes.probes import FakeProber
from tests.fakes.process import FakeProcesses
from tests.fakes.seal import ClearSeal
from tests.fakes.store import MemoryStore
from tests.simulation.loop import EPOCH, WallClock
from tests.waiting import until

#: the fakes' programs know no other end than KILL
APP = {"kind": "command", "command": ["serve"], "user": "worker", "stop": [{"signal": "KILL", "patience": 1}]}

#: the neighbourhood's definition of the app `web`
WEB = app_entry(AppRecord("web", APP), Stamp(at(EPOCH), "0" * 32))

#: how long a commit takes
DISK = 0.005

_requests = count(1)


def offer(name: str = "a", request: str | None = None, **more: Any) -> Offer:
    given: dict[str, Any] = {"digest": "d", "app": "web", "named": True, "spec": {}, "principal": "test"}
    given |= {"entries": (WEB,)} | more
    return Offer(request=f"request-{next(_requests)}" if request is None else request, name=name, **given)


class SlowStore:
    """The store as one daemon has it. Others get their turn while it commits; a dead daemon's does nothing more."""

    def __init__(self, kept: MemoryStore) -> None:
        self.kept = kept
        self.dead = False
        self.hung = False  #: new instances are committed, and that is never told
        self.broken: Callable[[tuple[Change, ...]], bool] = lambda changes: False  #: as if full for these
        self.load, self.events, self.first_event = kept.load, kept.events, kept.first_event
        self.event_before = kept.event_before

    def begin_write(self, *changes: Change) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.write(*changes, durable=False))

    async def write(self, *changes: Change, durable: bool = True) -> None:
        await asyncio.sleep(DISK)
        if not self.dead:
            self.kept.full = self.broken(changes)
            await self.kept.write(*changes)
        new = any(isinstance(change, Put) and isinstance(change.record, InstanceRecord) for change in changes)
        if self.dead or (self.hung and new):
            await asyncio.Event().wait()


class Figures(FakeHost):
    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, float] = {"load_per_core": 0.5}

    def load(self) -> dict[str, float]:
        return self.figures


class Host:
    """One branch: crash() is kill -9, again() the next daemon of the same machine."""

    def __init__(self, broker: MemoryBroker, number: int, before: "Host | None" = None, **policies: Any) -> None:
        self.broker, self.number = broker, number
        self.id, self.name = f"{number:032}", f"b{number}"
        self.boot = before.boot + 1 if before else 1
        self.store = SlowStore(before.store.kept if before else MemoryStore(self.id))
        self.processes = before.processes if before else FakeProcesses(lambda: asyncio.get_running_loop().time())
        self.figures = Figures()
        self.draining = False
        self.known = 2
        self.missing: list[str] = []
        self.doubt = ""
        world = World(
            processes=self.processes,
            logs=MemoryLogs(),
            store=self.store,
            channel=FakeChannel(),
            host=self.figures,
            prober=FakeProber(),
            teller=FakeTeller(),
            drivers={Kind.COMMAND: CommandDriver()},
            clock=lambda: asyncio.get_running_loop().time(),
            wall=WallClock(),
            chance=lambda: 0.5,
        )
        given: dict[str, Any] = {"labels": {}, "slots": 10, "default_user": None, "allow_users": None}
        self.policies = Policies(name=self.name, node_name="{app}:{name}@{branch}", **(given | policies))
        self.given = policies
        snapshot = self.store.load()
        journal = Journal(self.store, EventLog(self.store, snapshot.last_event), world.wall)
        self.fleet = Fleet(world, self.policies, snapshot, journal)
        self.me = Address(self.id, f"{self.boot:032}")
        self.bus = broker.bus(self.id)
        self.link = Link(self.bus, ClearSeal(self.me), self.me)
        self.names = Names(
            self.link,
            self.fleet,
            self.name,
            branches=lambda: self.known,
            missing=lambda: self.missing,
            doubt=lambda: self.doubt,
        )
        sharing = Sharing(self.link, self.fleet, lambda: 0.0)
        self.hosting = Hosting(
            self.link, self.fleet, self.names, self.policies, merge=sharing.merge, draining=lambda: self.draining
        )
        self.replacing = Replacing(self.link, self.fleet, self.names, self.hosting)

    async def begin(self) -> "Host":
        await resume(self.fleet)
        await self.link.open()
        self.replacing.begin()
        return await self.settled()

    async def settled(self) -> "Host":
        """Connected, and all bound."""
        await until(lambda: not any(words in self.names.doubt() for words in ("is not connected", "just connected")))
        return self

    async def author(self, spec: dict[str, Any] = APP) -> None:
        """As an operator here, the neighbourhood's definition of the app `web`."""
        entry = app_entry(AppRecord("web", spec), Stamp(at(EPOCH) + 1, self.id))
        changes = Put(entry), Put(AuthoredRecord("web", digest(spec)))
        await self.store.write(*changes)
        self.fleet.definitions.apply(*changes)

    async def crash(self) -> None:
        self.store.dead = True
        self.processes.crash()
        self.bus.crash()
        await self.replacing.tasks.end()
        await self.names.tasks.end()

    async def again(self) -> "Host":
        return await Host(self.broker, self.number, self, **self.given).begin()

    async def ask(self, other: "Host", question: Offer) -> Accepted | Refusal:
        """Over the broker."""
        answer = await self.link.ask(other.me, question, 30)
        assert isinstance(answer, Accepted | Refusal)
        return answer

    @property
    def running(self) -> list[str]:
        return sorted(process.key.name for process in self.processes.running.values())

    @property
    def capacity(self) -> Capacity:
        return self.hosting.capacity

    def stored(self) -> list[Key]:
        return [instance.key for instance in self.store.load().instances]

    async def events(self, kind: str) -> list[EventRecord]:
        return [event for event in await self.store.events(0, 10_000) if event.type == kind]

    async def delete(self, name: str) -> None:
        async with self.fleet.lock("web"):
            await self.fleet.begin_delete(self.fleet.get("web", name))

    async def gone(self, name: str) -> None:
        await until(lambda: self.fleet.find(Key("web", name)) is None)


class Hosts:
    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker()

    async def join(self, number: int, **policies: Any) -> list[Host]:
        hosts = [Host(self.broker, one, **policies) for one in range(1, number + 1)]
        for host in hosts:
            host.known = number
            await host.begin()
        return hosts
