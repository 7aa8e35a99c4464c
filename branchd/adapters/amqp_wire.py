"""The two connections of a branch to its broker, each with the thread that serves it; no decision to reconnect.

What the loop wants done waits in queues of the wire, and one write to its bell wakes the thread for all of it; what
the thread has for the loop comes back by loop_calls.py in the same way. So many messages cost a few wakeups. py-amqp's
callbacks only put things into these queues.
"""

import asyncio
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar

from branchd.adapters.amqp_connection import ANSWER_LIMIT, Connection, why
from branchd.adapters.loop_calls import LoopCalls, fail, settle, taken
from branchd.core.brokers import Broker
from branchd.core.errors import BranchdError, Unavailable
from branchd.core.value import Value

#: seconds between two looks at what is due: heartbeats, time-outs
TICK = 0.5

#: seconds that the broker is given for a goodbye, for each of two answers
FAREWELL = 0.7

#: seconds until a thread that still waits for the broker has its socket closed under it, then until it is left behind
PATIENCE = 2.0
ABANDON = 1.0

#: messages, and bytes of them, that wait for the loop before no more are read: they wait at the broker, which drops
#: the oldest
MOST_WAITING = 20_000
MOST_BYTES_WAITING = 64 << 20

T = TypeVar("T")


class Names(Value):
    """On the broker, of one branch in one neighbourhood."""

    neighbourhood: str
    branch: str

    @property
    def everyone(self) -> str:
        return f"branchd.{self.neighbourhood}.all"

    @property
    def direct(self) -> str:
        return f"branchd.{self.neighbourhood}.direct"

    @property
    def inbox(self) -> str:
        return f"branchd.{self.neighbourhood}.inbox.{self.branch}"

    def claim(self, name: str) -> str:
        return f"branchd.{self.neighbourhood}.claim.{name}"


class Wire:
    """One connection, from connecting to its end, and its thread. Everything public is called in the loop."""

    purpose = ""

    def __init__(self, broker: Broker, names: Names, heartbeat: int) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[BaseException | None] = loop.create_future()  #: with the reason
        self._ready: asyncio.Future[None] = loop.create_future()
        self._broker = broker
        self._names = names
        self._name = f"branchd {names.branch} {self.purpose}"
        self._connection = Connection(broker, self._name, heartbeat)
        self._work: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self._loop = LoopCalls()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._rung = False
        self._leaving = False
        self._over = False

    async def open(self) -> None:
        """Once. What was in the way is raised as it came: branchd.adapters.amqp_connection.why() has words for it."""
        Thread(target=self._run, name=self._name, daemon=True).start()
        await self._ready

    @property
    def cluster(self) -> str:
        return self._connection.cluster

    async def close(self) -> None:
        """Ends the connection and its thread; within a few seconds also where the broker hangs."""
        self._leaving = True
        self._ring()
        for patience in (PATIENCE, ABANDON):
            await asyncio.wait([self.ended], timeout=patience)
            if self.ended.done():
                return
            self._connection.abort()

    async def call(self, work: Callable[[], T]) -> T:
        """Does it in the thread. Conflict, Unavailable; what is given up waiting for is done nevertheless."""
        self._check()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._work.append((future, work))
        self._ring()
        try:
            return await asyncio.wait_for(asyncio.shield(future), ANSWER_LIMIT)
        except TimeoutError:
            raise Unavailable("the broker does not answer in time") from None
        finally:
            future.cancel()

    def _check(self) -> None:
        if self._over:
            raise Unavailable("the connection to the broker was lost")

    def _ring(self) -> None:
        if not self._rung and not self._over:
            self._rung = True
            os.eventfd_write(self._bell, 1)

    def _finish(self, error: BaseException | None) -> None:
        self._over = True
        os.close(self._bell)
        lost = Unavailable("the connection to the broker was lost")
        for future in self._unanswered():
            fail(future, lost)
        fail(self._ready, error or lost)
        self.ended.set_result(error)

    def _unanswered(self) -> Iterator[asyncio.Future[Any]]:
        return (future for future, _ in self._work)

    # In the thread

    def _run(self) -> None:
        failed: BaseException | None = None
        try:
            self._connection.connect()
            self._set_up()
            self._loop.give(settle, self._ready, None)
            self._serve()
            self._leave()
        except Exception as error:  # noqa: BLE001 - py-amqp raises whatever its broken state leads to
            failed = error
        self._connection.collect()
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.give(self._finish, failed)

    def _serve(self) -> None:
        connection, transport = self._connection, self._connection.transport
        poll, only_bell = select.poll(), select.poll()
        for each in (poll, only_bell):
            each.register(self._bell, select.POLLIN)
        poll.register(transport.sock, select.POLLIN)
        checked = 0.0
        while not self._leaving:
            transport.flush()
            full = len(self._loop) > MOST_WAITING or self._loop.size > MOST_BYTES_WAITING
            patience = 0 if transport.has_frame() else 0.01 if full else TICK
            for descriptor, _ in (only_bell if full else poll).poll(patience * 1000):
                if descriptor == self._bell:
                    os.eventfd_read(self._bell)
                    self._rung = False
                else:
                    transport.fill()
            while transport.has_frame():
                connection.on_inbound_frame(transport.read_frame())
            self._turn()
            if time.monotonic() - checked >= TICK:
                checked = time.monotonic()
                connection.heartbeat_tick()
                self._tick(checked)

    def _do_work(self) -> None:
        for future, work in taken(self._work):
            try:
                self._loop.give(settle, future, work())
            except BranchdError as error:
                self._loop.give(fail, future, error)
            except Exception as error:
                self._loop.give(fail, future, Unavailable(why(error, self._broker)))
                raise

    def _leave(self) -> None:
        self._connection.limit(FAREWELL)
        self._say_goodbye()
        self._connection.close()

    def _set_up(self) -> None:
        """Makes it ready; every connection declares both exchanges, for publishing to a missing one costs a channel."""
        channel = self._connection.channel()
        channel.exchange_declare(self._names.everyone, "fanout", durable=True, auto_delete=False)
        channel.exchange_declare(self._names.direct, "direct", durable=True, auto_delete=False)
        channel.close()

    def _turn(self) -> None:
        self._do_work()

    def _tick(self, now: float) -> None: ...

    def _say_goodbye(self) -> None: ...
