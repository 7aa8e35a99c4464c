"""One machine of a simulated neighbourhood: what outlives its daemon (disk, processes, logs, clock), and the daemon."""

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from branchd.branch.ports import BusState
from branchd.branch.records import Change, Snapshot
from branchd.branch.world import Policies, World
from branchd.core.access import Scope
from branchd.core.peers import Address
from branchd.core.spec import Kind
from branchd.core.values import Key
from branchd.drivers.command import CommandDriver
from tests.api.conftest import FakeHost
from tests.fakes.bus import MemoryBroker, MemoryBus
from tests.fakes.channel import FakeChannel
from tests.fakes.hooks import FakeTeller
from tests.fakes.logs import MemoryLogs
from tests.fakes.probes import FakeProber
from tests.fakes.process import FakeProcesses
from tests.fakes.seal import ClearSeal
from tests.fakes.store import MemoryStore
from tests.simulation.entrance import Entrance
from tests.simulation.life import Crashed, Life, Mortal
from tests.simulation.loop import WallClock

T = TypeVar("T")

#: seconds that a commit takes, at most; it is durable somewhere in between
COMMIT = 0.004

#: told of each commit: the machine, what it had before, and what was written
OnCommit = Callable[["Machine", Snapshot, tuple[Change, ...]], None]


class Disk:
    """Store that takes its time, in order; a crash meets a commit before or after it is durable."""

    def __init__(self, machine: "Machine", chance: Random) -> None:
        self._machine = machine
        self._chance = chance
        self._turn = asyncio.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine.store, name)

    def begin_write(self, *changes: Change) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.write(*changes, durable=False))

    async def write(self, *changes: Change, durable: bool = True) -> None:
        # Whoever waits for it may give up; the commit goes on.
        await asyncio.shield(asyncio.get_running_loop().create_task(self._commit(changes)))

    async def _commit(self, changes: tuple[Change, ...]) -> None:
        async with self._turn:
            durable, told = sorted((self._chance.uniform(0, COMMIT), self._chance.uniform(0, COMMIT)))
            await asyncio.sleep(durable)
            before = self._machine.store.load()
            await self._machine.store.write(*changes)
            for on_commit in self._machine.on_commit:
                on_commit(self._machine, before, changes)
            await asyncio.sleep(told - durable)


class Machine:
    def __init__(self, number: int, broker: MemoryBroker | None, slots: int, id: str = "") -> None:
        """`id`: of another machine, whose clone this is."""
        self.number = number
        self.id = id or f"{number:032x}"
        self.name = f"branch-{number}"
        self.slots = slots
        self.store = MemoryStore(self.id)
        self.wall = WallClock()
        self.on_commit: list[OnCommit] = []
        self.lives = 0
        self.stopping = False  #: in good order
        clock = asyncio.get_running_loop().time
        self.processes = FakeProcesses(clock)
        self._clock = clock
        self._logs = MemoryLogs()
        self._broker = broker
        self._chance = Random(f"{broker.chance.random() if broker else 0}/{number}")
        self._bus: MemoryBus | None = None
        self._life: Life | None = None
        self._entrance: Entrance | None = None
        self._kept, self._kept_at = self.store.load(), 0

    @property
    def up(self) -> bool:
        return self._life is not None

    @property
    def ready(self) -> bool:
        """Whether it can be spoken to."""
        return self._entrance is not None

    @property
    def connected(self) -> bool:
        return self.up and self._bus is not None and self._bus.state.connected

    @property
    def state(self) -> BusState | None:
        return self._bus.state if self._bus else None

    @property
    def entrance(self) -> Entrance:
        if self._entrance is None:
            raise Crashed
        return self._entrance

    def kept(self) -> Snapshot:
        """What is on its disk; the same object as long as nothing was written."""
        if self._kept_at != len(self.store.writes):
            self._kept_at, self._kept = len(self.store.writes), self.store.load()
        return self._kept

    def running(self) -> list[Key]:
        """Of every process on this machine, whose it is."""
        return [process.key for process in self.processes.running.values()]

    async def start(self) -> None:
        assert self._life is None, f"{self.name} runs"
        self._life = life = Life()
        self.lives += 1
        world = World(
            processes=Mortal(self.processes, life),
            logs=Mortal(self._logs, life),
            store=Mortal(Disk(self, self._chance), life),
            channel=Mortal(FakeChannel(), life),
            host=FakeHost(),
            prober=FakeProber(),
            teller=FakeTeller(),
            # An instance whose app was deleted while it went is of the default kind.
            drivers={kind: CommandDriver() for kind in Kind},
            clock=self._clock,
            wall=self.wall,
            chance=self._chance.random,
        )
        policies = Policies(self.name, {}, self.slots, "{app}:{name}@{branch}", None, None, Scope.ADMIN)
        me = Address(self.id, f"{self._chance.getrandbits(64):016x}")
        self._bus = self._broker.bus(self.id) if self._broker else None

        async def begin() -> Entrance:
            entrance = Entrance(world, policies, self.store.load(), self._bus, ClearSeal(me), me)
            await entrance.begin()
            return entrance

        self._entrance = await life.call(begin())

    async def crash(self, *, power: bool = False) -> None:
        """kill -9 of the daemon; power: of the machine, with all that ran on it."""
        life, self._life, self._entrance = self._life, None, None
        if life is None:
            return
        life.alive = False
        if self._bus is not None:
            self._bus.crash(power=power)
        self.processes.crash()
        if power:
            self.processes.running.clear()
        await life.end()

    async def stop(self) -> None:
        """The daemon's own end: it leaves the neighbourhood, and its instances are stopped."""
        self.stopping = True
        try:
            await self.call(lambda entrance: entrance.end())
            await self.crash()
        finally:
            self.stopping = False

    async def call(self, operation: Callable[[Entrance], Coroutine[Any, Any, T]]) -> T:
        """As a client of this branch. Crashed, and what the operation raises."""
        entrance = self.entrance
        assert self._life is not None
        return await self._life.call(operation(entrance))

    async def close(self) -> None:
        await self.crash()
        await self._logs.close()
