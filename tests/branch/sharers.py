"""Branches that share definitions over a broker in memory, each whole but for the rest of its mesh."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from branchd.branch.adoption import resume
from branchd.branch.apps import Apps, Elsewhere, Queues, nowhere
from branchd.branch.events import EventLog
from branchd.branch.fleet import Fleet
from branchd.branch.instances import Instances
from branchd.branch.journal import Journal
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.sharing import Sharing
from branchd.branch.records import AppRecord, AuthoredRecord, InstanceRecord, Placed, Put, QueueRecord
from branchd.branch.supervisor import Supervisor
from branchd.branch.world import Policies, World
from branchd.core.access import Scope
from branchd.core.definitions import digest
from branchd.core.digests import differing
from branchd.core.peers import Address
from branchd.core.spec import Kind
from branchd.core.stamps import Entry
from branchd.core.values import Key, QueueDeclaration
from branchd.drivers.command import CommandDriver
from branchd.wire.resources import ConditionType
from tests.api.conftest import FakeHost
from tests.branch.conftest import ADMIN
from tests.fakes.bus import MemoryBroker
from tests.fakes.channel import FakeChannel
from tests.fakes.hooks import FakeTeller
from tests.fakes.logs import MemoryLogs
from tests.fakes.probes import FakeProber
from tests.fakes.process import FakeProcesses
from tests.fakes.seal import ClearSeal
from tests.fakes.store import MemoryStore
from tests.simulation.loop import WallClock

#: a program of a user that other branches may use
WEB = {"kind": "command", "command": ["serve"], "user": "worker", "stop": [{"signal": "KILL", "patience": 1}]}

#: each life seals under a boot of its own
_LIVES = itertools.count()


class Branch:
    """One branch of a number; made again of the same store it is its next life."""

    def __init__(
        self, broker: MemoryBroker | None, number: int, store: MemoryStore | None = None, *,
        peer_scope: Scope = Scope.OPERATE, elsewhere: Elsewhere = nowhere, wall: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self.id = f"{number:032x}"
        self.broker = broker
        self.store = store or MemoryStore(self.id)
        self.wall = WallClock()  #: unless another is given
        self.offset = 0.0
        clock = asyncio.get_running_loop().time
        self.processes = FakeProcesses(clock)
        self._logs = MemoryLogs()
        world = World(
            processes=self.processes, logs=self._logs, store=self.store, channel=FakeChannel(), host=FakeHost(),
            prober=FakeProber(), teller=FakeTeller(),
            drivers={Kind.COMMAND: CommandDriver()}, clock=clock, wall=wall or self.wall,
            chance=lambda: number % 10 / 10,
        )  # fmt: skip
        policies = Policies(f"branch-{number}", {}, None, "{app}:{name}", None, None, peer_scope)
        snapshot = self.store.load()
        journal = Journal(world.store, EventLog(world.store, snapshot.last_event), world.wall)
        self.fleet = Fleet(world, policies, snapshot, journal)
        self.definitions = self.fleet.definitions
        self.link: Link | None = None
        self.sharing: Sharing | None = None
        if broker is not None:
            me = Address(self.id, f"boot-{next(_LIVES)}")
            self.link = Link(broker.bus(self.id), ClearSeal(me), me)
            self.sharing = Sharing(self.link, self.fleet, lambda: self.offset)
        self.apps = Apps(self.fleet, self.sharing, elsewhere)
        self.queues = Queues(self.fleet, self.sharing)
        self.instances = Instances(self.fleet)

    async def begin(self) -> "Branch":
        await resume(self.fleet)
        if self.link is not None and self.sharing is not None:
            await self.link.open()
            await asyncio.sleep(0.1)
            await self.sharing.begin()
        return self

    async def close(self) -> None:
        for supervisor in self.fleet.all():
            supervisor.retire()
        if self.link is not None:
            await self.link.close()
        await self._logs.close()

    async def pinned(self, app: str, name: str, **spec: Any) -> Supervisor:
        await self.instances.create(ADMIN, app, {"name": name, **spec})
        return self.fleet.get(app, name)

    async def placed(self, app: str, name: str) -> Supervisor:
        placed = Placed("request", "digest", True, self.wall())
        await self.fleet.add(InstanceRecord(Key(app, name), {}, 1, self.wall(), placed=placed))
        return self.fleet.get(app, name)

    def view(self) -> dict[str, Any]:
        """What a client sees of all definitions."""
        return {
            app.name: (app.spec, app.generation, app.created_at, self.apps.tag(app.name), self.queues.list(app.name))
            for app in self.apps.list()
        }

    def condition(self, app: str, kind: ConditionType) -> str | None:
        found = {one.type: one.status.value for one in self.apps.get(app).conditions}
        return found.get(kind)

    def events(self) -> list[str]:
        records = [change.record for write in self.store.writes for change in write if isinstance(change, Put)]
        return [record.type for record in records if hasattr(record, "type")]


async def own(store: MemoryStore, app: str, spec: dict[str, Any], *queues: str) -> MemoryStore:
    """As a daemon without a broker left it."""
    await store.write(
        Put(AppRecord(app, spec, 3, 1.0)),
        Put(AuthoredRecord(app, digest(spec))),
        *(Put(QueueRecord(app, QueueDeclaration(name))) for name in queues),
    )
    return store


async def exchange(one: Branch, two: Branch) -> tuple[Entry, ...]:
    """As gossip does; what was new to the first."""
    assert one.sharing is not None
    assert two.sharing is not None
    buckets = differing(one.sharing.digests(), two.sharing.digests())
    theirs, mine = two.sharing.entries(buckets), one.sharing.entries(buckets)
    await two.sharing.merge(mine)
    return await one.sharing.merge(theirs)
