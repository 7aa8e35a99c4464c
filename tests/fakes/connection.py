"""A branch's connection to the broker in memory (bus.py): what is on its way, what is lost, and who knows when."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from branchd.core.errors import Unavailable

if TYPE_CHECKING:
    from tests.fakes.bus import MemoryBroker, MemoryBus

#: seconds after which both ends give up a connection from which nothing came: two heartbeats
HEARTBEATS = 20.0

#: seconds that a branch waits for the broker's word; then it closes the connection
PATIENCE = 5.0

T = TypeVar("T")

Action = Callable[[], None]


class Connection:
    """Two ends, the branch's and the broker's, that may learn of its death at different times."""

    def __init__(self, broker: "MemoryBroker", bus: "MemoryBus") -> None:
        self.branch = bus.branch
        self.bus = bus
        self.keys: set[str] = set()
        self.lost = asyncio.Event()  #: at the branch's end
        self.stuck = False  #: nothing gets through
        self._broker = broker
        self._pipes = {name: _Pipe(self, broker) for name in ("publish", "bind", "claim", "confirms", "deliveries")}
        self._waiting: set[asyncio.Future[Any]] = set()
        self._forever = False

    def pipe(self, name: str) -> "_Pipe":
        return self._pipes[name]

    async def trip(self, path: str, action: Callable[[], T]) -> T:
        """What the action, done at the broker, gives."""
        if self.lost.is_set():
            raise Unavailable("the connection to the broker was lost")
        confirmed: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def arrive() -> None:
            value = action()
            self._pipes["confirms"].push(lambda: None if confirmed.done() else confirmed.set_result(value))

        self._waiting.add(confirmed)
        self._pipes[path].push(arrive)
        try:
            async with asyncio.timeout(PATIENCE):
                return await confirmed
        except TimeoutError:
            self.abandon("the broker did not answer in time")
            raise Unavailable("the broker did not answer in time") from None
        finally:
            self._waiting.discard(confirmed)

    def cut(self, *, forever: bool = False) -> None:
        self._forever = self._forever or forever
        if not self.stuck:
            self.stuck = True
            self._to_abandon = self._later(self.abandon, "the broker's heartbeats are missing")
            self._to_expire = self._later(self._expire)

    def mend(self) -> None:
        if not self.stuck or self._forever:
            return
        self._to_abandon.cancel()
        self._to_expire.cancel()
        self.stuck = False
        if self.lost.is_set():
            # What the kernel still held of a closed connection may reach the broker before its end does.
            if self._broker.chance.random() < 0.5:
                for name in ("publish", "bind", "claim"):
                    self._pipes[name].flow()
            self._close()
        else:
            for pipe in self._pipes.values():
                pipe.flow()

    def end(self, why: str) -> None:
        """Both ends know."""
        self._close()
        self.abandon(why)

    def abandon(self, why: str) -> None:
        """The branch's end is closed; the broker's too, as soon as it can hear of that."""
        if not self.lost.is_set():
            self.lost.set()
            for confirmed in self._waiting:
                if not confirmed.done():
                    confirmed.set_exception(Unavailable(f"the connection to the broker was lost: {why}"))
            self.bus.lost(why)
        if not self.stuck:
            self._close()

    def _expire(self) -> None:
        if self._broker.paused:
            self._to_expire = self._later(self._expire)
        else:
            self._close()

    def _later(self, what: Callable[..., None], *arguments: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(HEARTBEATS, what, *arguments, context=self._broker.context)

    def _close(self) -> None:
        """The broker's end."""
        self._broker.forget(self)
        for pipe in self._pipes.values():
            pipe.clear()


class _Pipe:
    """One way through a connection; what comes late lets others pass, all else stays in order."""

    def __init__(self, connection: Connection, broker: "MemoryBroker") -> None:
        self._connection = connection
        self._broker = broker
        self._last = 0.0
        self._number = count()
        self._waiting: list[tuple[float, int, Action]] = []

    def push(self, action: Action, late: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        at = max(self._last, loop.time() + self._broker.latency())
        if late:
            at += late
        else:
            self._last = at
        heapq.heappush(self._waiting, (at, next(self._number), action))
        loop.call_at(at, self.flow, context=self._broker.context)

    def flow(self) -> None:
        now = asyncio.get_running_loop().time() + 1e-6  # a loop calls a little before the time
        while self._waiting and self._waiting[0][0] <= now and not self._connection.stuck:
            heapq.heappop(self._waiting)[2]()

    def clear(self) -> None:
        self._waiting.clear()
