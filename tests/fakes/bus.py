"""A broker in memory and the branches' connections to it, with the faults of real ones at the will of a test.

It behaves as RabbitMQ was measured to: see Bus in branchd/branch/ports.py and tests/adapters/conformance_bus.py, which
it passes. Nothing here is done at once: each step takes the broker's latency on the running loop, which may be one of
virtual time (tests/simulation/loop.py). All chance comes from one seed.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from branchd.branch.ports import BusState
from branchd.core.errors import Conflict, Unavailable
from branchd.core.peers import inbox
from tests.fakes.connection import Connection

WHERE = "memory://"

T = TypeVar("T")


@dataclass
class Faults:
    """Of messages on their way from the broker to a branch: shares between 0 and 1, and seconds."""

    latency: float = 0.001  #: of each way to and from the broker
    jitter: float = 0.0  #: up to so much more; messages of one path stay in order
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0  #: comes later than others that were sent after it
    late: float = 1.0  #: up to so much later


class MemoryBroker:
    """One broker and one neighbourhood."""

    def __init__(self, seed: int = 0, *, definite: bool = True, retry: float = 1.0) -> None:
        self.faults = Faults()
        self.definite = definite  #: False: as kombu's filesystem transport, without returns, exclusive inboxes, claims
        self.retry = retry  #: seconds between two tries to connect
        self.delivered: Counter[str] = Counter()  #: messages by branch
        self.listeners: list[Callable[[str, str, bytes], None]] = []  #: told of each: the branch, the key, the body
        self.chance = Random(seed)
        self.context = copy_context()  #: what is on its way is the broker's business, whoever has sent it
        self._up = True
        self.paused = False
        self._partitioned: set[str] = set()
        self._connections: list[Connection] = []
        self._bound: dict[str, list[Connection]] = defaultdict(list)
        self._claims: dict[str, Connection] = {}

    def bus(self, branch: str) -> "MemoryBus":
        return MemoryBus(self, branch)

    # Faults

    def partition(self, *branches: str, at_once: bool = False) -> None:
        """Cuts them from the broker: both ends see that by missed heartbeats, or at once."""
        self._partitioned.update(branches)
        for connection in self._of(*branches):
            if at_once:
                connection.end("the connection was reset")
            else:
                connection.cut()

    def heal(self, *branches: str) -> None:
        """Lets these reach the broker again, all when none is named; what waited in a living connection arrives."""
        self._partitioned.difference_update(branches or self._partitioned.copy())
        self._mend()

    def pause(self) -> None:
        """The broker does nothing and takes nothing, and its machine keeps its connections."""
        self.paused = True
        for connection in list(self._connections):
            connection.cut()

    def resume(self) -> None:
        self.paused = False
        self._mend()

    def stop(self) -> None:
        """Ends at once, with every connection, inbox, binding and claim."""
        self._up = False
        for connection in list(self._connections):
            connection.end("the broker closed the connection")

    def start(self) -> None:
        self._up = True

    # What a test may look at

    def held(self, key: str) -> list[str]:
        """The branches that hold the key."""
        return [connection.branch for connection in self._bound.get(key, ())]

    def keys(self, branch: str) -> set[str]:
        return {key for connection in self._of(branch) for key in connection.keys}

    # For buses and connections

    def connect(self, bus: "MemoryBus") -> Connection | str:
        """The connection, or why there is none."""
        if not self._up:
            return "the broker refuses connections: start it"
        if not self._reachable(bus.branch):
            return "the broker does not answer: look at the network"
        if self.definite and self._of(bus.branch):
            return f"another branch with the id {bus.branch} is connected: give one of them a new id"
        connection = Connection(self, bus)
        self._connections.append(connection)
        self.bind(connection, [inbox(bus.branch)])
        return connection

    def bind(self, connection: Connection, keys: Collection[str]) -> None:
        for key in keys:
            if key not in connection.keys:
                connection.keys.add(key)
                self._bound[key].append(connection)

    def unbind(self, connection: Connection, keys: Collection[str]) -> None:
        for key in keys:
            if key in connection.keys:
                connection.keys.remove(key)
                self._bound[key].remove(connection)
                if not self._bound[key]:
                    del self._bound[key]

    def claim(self, connection: Connection, name: str) -> bool:
        return not self.definite or self._claims.setdefault(name, connection) is connection

    def release(self, connection: Connection, name: str) -> None:
        if self._claims.get(name) is connection:
            del self._claims[name]

    def forget(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self.unbind(connection, list(connection.keys))
            self._claims = {name: holder for name, holder in self._claims.items() if holder is not connection}

    def fan_out(self, body: bytes) -> None:
        for connection in list(self._connections):
            self._deliver(connection, "", body)

    def route(self, key: str, body: bytes) -> bool:
        holders = list(self._bound.get(key, ()))
        for connection in holders:
            self._deliver(connection, key, body)
        return bool(holders) or not self.definite

    def latency(self) -> float:
        return self.faults.latency + self.faults.jitter * self.chance.random()

    def _deliver(self, connection: Connection, key: str, body: bytes) -> None:
        def arrive() -> None:
            self.delivered[connection.branch] += 1
            for listener in self.listeners:
                listener(connection.branch, key, body)
            connection.bus.take(key, body)

        faults = self.faults
        for _ in range(1 + (self.chance.random() < faults.duplication)):
            if self.chance.random() >= faults.loss:
                late = faults.late * self.chance.random() if self.chance.random() < faults.reordering else 0.0
                connection.pipe("deliveries").push(arrive, late)

    def _mend(self) -> None:
        for connection in list(self._connections):
            if self._reachable(connection.branch):
                connection.mend()
            else:
                connection.cut()

    def _reachable(self, branch: str) -> bool:
        return not self.paused and branch not in self._partitioned

    def _of(self, *branches: str) -> list[Connection]:
        return [connection for connection in self._connections if connection.branch in branches]


class MemoryBus:
    """Implements branchd.branch.ports.Bus."""

    def __init__(self, broker: MemoryBroker, branch: str) -> None:
        self.branch = branch
        self.definite = broker.definite
        self._broker = broker
        self._state = BusState(False, WHERE, "not opened")
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> BusState:
        return self._state

    async def open(self, on_message: Callable[[str, bytes], None], on_state: Callable[[BusState], None]) -> None:
        self._on_message = on_message
        self._on_state = on_state
        self._context = copy_context()  # it calls back as the one who opened it
        self._task = asyncio.create_task(self._keep_connected())

    async def close(self) -> None:
        with suppress(Unavailable):  # what was sent before is on its way before it leaves
            await asyncio.gather(*(self._trip(path, lambda: None) for path in ("publish", "claim")))
        self.crash()

    def crash(self, *, power: bool = False) -> None:
        """The branch is no more, and hears nothing; power: its machine neither, so that the broker must find out."""
        if self._task is not None:
            self._task.cancel()
        self._on_message = lambda _, __: None
        self._on_state = lambda _: None
        if self._connection is not None:
            if power:
                self._connection.cut(forever=True)
            self._connection.abandon("closed")

    def broadcast(self, body: bytes) -> None:
        if self._connection is not None:
            self._connection.pipe("publish").push(lambda: self._broker.fan_out(body))

    async def send(self, key: str, body: bytes) -> bool:
        return await self._trip("publish", lambda: self._broker.route(key, body))

    async def bind(self, keys: Collection[str]) -> None:
        keys, connection = list(keys), self._connected()
        await self._trip("bind", lambda: self._broker.bind(connection, keys))

    async def unbind(self, keys: Collection[str]) -> None:
        keys = list(keys)
        with suppress(Unavailable):  # it is gone with the connection, then
            connection = self._connected()
            await self._trip("bind", lambda: self._broker.unbind(connection, keys))

    async def claim(self, name: str) -> "MemoryClaim":
        connection = self._connected()
        if not await connection.trip("claim", lambda: self._broker.claim(connection, name)):
            raise Conflict(f"somebody else is claiming {name}")
        return MemoryClaim(self._broker, connection, name)

    # For connections

    def take(self, key: str, body: bytes) -> None:
        self._context.copy().run(self._on_message, key, body)

    def lost(self, why: str) -> None:
        self._connection = None
        self._change(BusState(False, WHERE, why))

    async def _keep_connected(self) -> None:
        while True:
            await asyncio.sleep(self._broker.latency())
            connection = self._broker.connect(self)
            if isinstance(connection, Connection):
                self._connection = connection
                self._change(BusState(True, WHERE, cluster="memory"))
                await connection.lost.wait()
            else:
                self._change(BusState(False, WHERE, connection))
            await asyncio.sleep(self._broker.retry * (0.5 + self._broker.chance.random()))

    def _change(self, state: BusState) -> None:
        if state != self._state:
            self._state = state
            self._context.copy().run(self._on_state, state)

    def _connected(self) -> Connection:
        if self._connection is None:
            raise Unavailable(f"the broker is not connected: {self._state.why}")
        return self._connection

    async def _trip(self, path: str, action: Callable[[], T]) -> T:
        return await self._connected().trip(path, action)


class MemoryClaim:
    """Implements branchd.branch.ports.Claim."""

    def __init__(self, broker: MemoryBroker, connection: Connection, name: str) -> None:
        self._broker = broker
        self._connection = connection
        self._name = name

    async def send(self, key: str, body: bytes) -> bool:
        return await self._connection.trip("claim", lambda: self._broker.route(key, body))

    async def release(self) -> None:
        await self._connection.trip("claim", lambda: self._broker.release(self._connection, self._name))
