"""The bus over RabbitMQ: two connections that are one, kept up, with the reason in words while they are not.

What one connection does stands in amqp_wire.py, how it is opened and what its errors mean in amqp_connection.py.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from amqp.exceptions import ResourceLocked
from msgspec.structs import replace

from branchd.adapters.amqp_connection import Refusal, why
from branchd.adapters.amqp_consuming import Consuming
from branchd.adapters.amqp_publishing import Publishing
from branchd.adapters.amqp_wire import Names
from branchd.branch.ports import BusState
from branchd.core.brokers import Broker
from branchd.core.errors import Unavailable

#: seconds; the broker closes a connection that was silent for two
HEARTBEAT = 10

#: heartbeats that an inbox may stay locked by this branch's own last connection, of which the broker has not heard
LOCKED = 3

#: seconds between two tries to connect, doubled each time from the first to the second, then up to half less by chance
SHORTEST = 0.2
LONGEST = 5.0


class AmqpBus:
    """Implements branchd.branch.ports.Bus. `heartbeat` in whole seconds."""

    definite = True

    def __init__(self, brokers: Sequence[Broker], neighbourhood: str, branch: str, heartbeat: int = HEARTBEAT) -> None:
        self._brokers = brokers
        self._names = Names(neighbourhood, branch)
        self._heartbeat = heartbeat
        self._state = BusState(False, "; ".join(map(str, brokers)), "not connected yet")
        self._wires: tuple[Consuming, Publishing] | None = None
        self._failures: dict[Broker, str] = {}  #: of the last try with each
        self._locked_since: float | None = None
        self._first: tuple[Broker, str] | None = None  #: the first broker that was reached, and its cluster
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> BusState:
        return self._state

    async def open(self, on_message: Callable[[str, bytes | None], None], on_state: Callable[[BusState], None]) -> None:
        self._on_message = on_message
        self._on_state = on_state
        self._task = asyncio.create_task(self._keep_connected())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._state = replace(self._state, connected=False, why="closed")

    def broadcast(self, body: bytes) -> None:
        if self._wires is not None:
            self._wires[1].broadcast(body)

    async def send(self, key: str, body: bytes) -> bool:
        return await self._connected()[1].send(key, body)

    async def bind(self, keys: Collection[str]) -> None:
        await self._connected()[0].bind(keys)

    async def unbind(self, keys: Collection[str]) -> None:
        with suppress(Unavailable):  # it is gone with the connection, then
            await self._connected()[0].unbind(keys)

    async def claim(self, name: str) -> "AmqpClaim":
        publishing = self._connected()[1]
        await publishing.claim(name)
        return AmqpClaim(publishing, name)

    def _connected(self) -> tuple[Consuming, Publishing]:
        if self._wires is None:
            raise Unavailable(f"the broker is not connected: {self._state.why}")
        return self._wires

    def _take(self, key: str, body: bytes | None) -> None:
        if self._wires is not None:
            self._on_message(key, body)

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        pause, turn = SHORTEST, 0
        while True:
            broker = self._brokers[turn % len(self._brokers)]
            turn += 1
            began = loop.time()
            try:
                await self._connect(broker)
            except Exception as error:  # noqa: BLE001 - py-amqp raises whatever its broken state leads to
                self._failed(broker, error)
            if loop.time() - began > LONGEST:
                pause = SHORTEST
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the branches, hides nothing
            pause = min(2 * pause, LONGEST)

    async def _connect(self, broker: Broker) -> None:
        """Connects, and returns by raising what ended that."""
        opened: list[Consuming | Publishing] = []
        try:
            opened.append(consuming := Consuming(broker, self._names, self._heartbeat))
            await consuming.open()
            opened.append(publishing := Publishing(broker, self._names, self._heartbeat))
            await publishing.open()
            if consuming.cluster != publishing.cluster:
                raise Refusal("its name leads to brokers that are not one cluster: make them one")
            self._check_cluster(broker, consuming.cluster)
            self._locked_since = None
            self._failures.clear()
            self._wires = consuming, publishing
            self._change(BusState(True, str(broker), cluster=consuming.cluster))
            consuming.consume(self._take)
            await asyncio.wait([consuming.ended, publishing.ended], return_when=asyncio.FIRST_COMPLETED)
            ended = consuming.ended if consuming.ended.done() else publishing.ended
            error = ended.result() or ConnectionResetError()
            self._wires = None
            self._failed(broker, error)  # said before the other connection is closed, which may take seconds
            raise error
        finally:
            self._wires = None
            await asyncio.gather(*(wire.close() for wire in opened))

    def _check_cluster(self, broker: Broker, cluster: str) -> None:
        """Branches on brokers that are not one cluster would not see each other, and take each other's names."""
        first, of_first = self._first or (broker, cluster)
        if first != broker and of_first != cluster:
            raise Refusal(
                f"it belongs to the cluster {cluster!r} and {first} to {of_first!r}: make them one cluster, or name "
                "one only"
            )
        self._first = first, cluster

    def _failed(self, broker: Broker, error: BaseException) -> None:
        self._failures[broker] = self._locked() if isinstance(error, ResourceLocked) else why(error, broker)
        several = len(self._brokers) > 1
        reasons = "; ".join(f"{broker}: {said}" if several else said for broker, said in self._failures.items())
        self._change(replace(self._state, connected=False, why=reasons))

    def _locked(self) -> str:
        now = asyncio.get_running_loop().time()
        if self._locked_since is None:
            self._locked_since = now
        if now - self._locked_since < LOCKED * self._heartbeat:
            return (
                f"the broker still holds a connection of the branch id {self._names.branch}: waiting for it to end, "
                "for it may be this branch's own last one"
            )
        return (
            f"another branch with the id {self._names.branch} is connected to this broker, a copy of this one's state "
            "folder perhaps: start one of them with a new id"
        )

    def _change(self, state: BusState) -> None:
        if state != self._state:
            self._state = state
            self._on_state(state)


class AmqpClaim:
    """Implements branchd.branch.ports.Claim: an exclusive queue, which its own connection alone may touch."""

    def __init__(self, publishing: Publishing, name: str) -> None:
        self._publishing = publishing
        self._name = name

    async def send(self, key: str, body: bytes) -> bool:
        return await self._publishing.send(key, body)

    async def release(self) -> None:
        await self._publishing.release(self._name)
