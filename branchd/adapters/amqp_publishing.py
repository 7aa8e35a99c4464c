"""The connection by which a branch sends, and takes names: what was sent, and which answer of the broker means which.

One channel has everything that is sent, in order; the exclusive queues of claims belong to the same connection, so
that one node of a cluster answers for both, and are declared on a channel of their own, for a refusal closes it.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import amqp
from amqp import spec
from amqp.exceptions import ResourceLocked
from msgspec import Struct

from branchd.adapters.amqp_connection import ANSWER_LIMIT, Refusal
from branchd.adapters.amqp_wire import Names, Wire
from branchd.adapters.loop_calls import fail, settle, taken
from branchd.core.brokers import Broker
from branchd.core.errors import Conflict, Unavailable


class _Sent(Struct):
    future: asyncio.Future[bool] | None  #: None: a broadcast
    key: str
    body: bytes
    at: float  #: by time.monotonic()


class Publishing(Wire):
    """Sends, each confirmed by the broker, without waiting for one confirm before the next message; claims names."""

    purpose = "publishes"

    def __init__(self, broker: Broker, names: Names, heartbeat: int) -> None:
        super().__init__(broker, names, heartbeat)
        self.blocked = False  #: the broker has no memory or disk left, and takes nothing from this connection
        self._outbox: deque[_Sent] = deque()
        self._unconfirmed: dict[int, _Sent] = {}  #: by the broker's number for it, oldest first
        self._number = 0
        self._held: set[str] = set()  #: names that are claimed

    async def send(self, key: str, body: bytes) -> bool:
        self._check()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._outbox.append(_Sent(future, key, body, time.monotonic()))
        self._ring()
        return await future

    def broadcast(self, body: bytes) -> None:
        if not self._over:
            self._outbox.append(_Sent(None, "", body, time.monotonic()))
            self._ring()

    async def claim(self, name: str) -> None:
        if self.blocked:
            raise Unavailable("the broker takes no messages now: its memory or disk is full")
        try:
            await self.call(lambda: self._claim(name))
        except (Unavailable, asyncio.CancelledError):
            self._work.append((asyncio.get_running_loop().create_future(), lambda: self._release(name)))
            raise

    async def release(self, name: str) -> None:
        await self.call(lambda: self._release(name))

    def _unanswered(self) -> Iterator[asyncio.Future[Any]]:
        yield from super()._unanswered()
        for sent in (*self._outbox, *self._unconfirmed.values()):
            if sent.future is not None:
                yield sent.future

    # In the thread

    def _set_up(self) -> None:
        self._connection.on_blocked = self._on_blocked
        self._connection.on_unblocked = self._on_unblocked
        super()._set_up()
        self._claims = self._connection.channel()
        self._channel = self._connection.channel()
        self._channel.auto_decode = False
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)
        self._prove_returns()

    def _prove_returns(self) -> None:
        """What nobody holds must come back, else "nobody has that name" would be a guess."""
        returned: list[str] = []

        def take(_: object, __: str, key: str, ___: object) -> None:
            returned.append(key)

        probe = f"probe.{os.urandom(8).hex()}"
        self._channel.events["basic_return"].add(take)
        self._publish(_Sent(None, probe, b"", time.monotonic()))
        while self._unconfirmed and not self.blocked:
            self._connection.drain_events()
        self._channel.events["basic_return"].discard(take)
        if self.blocked:
            raise Refusal("the broker takes no messages now, its memory or disk is full: look at its alarms")
        if returned != [probe]:
            raise Refusal(
                f"an alternate exchange swallows returns of {self._names.direct}, so that nobody could tell that a "
                "name is free: take the policy or argument 'alternate-exchange' from it"
            )

    def _turn(self) -> None:
        if not self.blocked:  # what is written then is not read, and after some of it writing waits too
            self._do_work()
            for sent in taken(self._outbox):
                self._publish(sent)

    def _publish(self, sent: _Sent) -> None:
        self._number += 1
        self._unconfirmed[self._number] = sent
        directed = bool(sent.key)
        message = amqp.Message(sent.body, delivery_mode=1)
        if directed:  # a return has no number of its own
            message.properties["message_id"] = str(self._number)
        exchange = self._names.direct if directed else self._names.everyone
        # Not basic_publish(), which reads from the socket before each message.
        self._channel.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, sent.key, directed, False), message)

    def _on_ack(self, number: int, multiple: bool) -> None:
        for sent in self._confirmed(number, multiple):
            if sent.future is not None:
                self._loop.give(settle, sent.future, True)

    def _on_nack(self, number: int, multiple: bool) -> None:
        for sent in self._confirmed(number, multiple):
            if sent.future is not None:
                self._loop.give(fail, sent.future, Unavailable("the broker refused the message"))

    def _on_return(self, _: object, __: str, ___: str, message: amqp.Message) -> None:
        """Comes before the confirm of the same message."""
        sent = self._unconfirmed.get(int(message.properties["message_id"]))
        if sent is not None and sent.future is not None:
            self._loop.give(settle, sent.future, False)
            sent.future = None

    def _confirmed(self, number: int, multiple: bool) -> Iterator[_Sent]:
        if not multiple:
            if (sent := self._unconfirmed.pop(number, None)) is not None:
                yield sent
            return
        while self._unconfirmed and (first := next(iter(self._unconfirmed))) <= number:
            yield self._unconfirmed.pop(first)

    def _on_blocked(self, _: str) -> None:
        self.blocked = True

    def _on_unblocked(self) -> None:
        now = time.monotonic()
        for sent in self._unconfirmed.values():
            sent.at = now
        self.blocked = False

    def _tick(self, now: float) -> None:
        if self.blocked:
            late = Unavailable("the broker takes no messages now: its memory or disk is full")
            while self._outbox and now - self._outbox[0].at > ANSWER_LIMIT:
                self._give_up(self._outbox.popleft(), late)
            for sent in self._unconfirmed.values():
                if now - sent.at > ANSWER_LIMIT:
                    self._give_up(sent, late)
        elif self._unconfirmed and now - next(iter(self._unconfirmed.values())).at > ANSWER_LIMIT:
            raise TimeoutError

    def _give_up(self, sent: _Sent, error: Unavailable) -> None:
        if sent.future is not None:
            self._loop.give(fail, sent.future, error)
            sent.future = None

    def _claim(self, name: str) -> None:
        taken = Conflict(f"somebody else is taking the name {name} now")
        if name in self._held:
            raise taken
        try:
            self._claims.queue_declare(self._names.claim(name), exclusive=True, auto_delete=False)
        except ResourceLocked:  # it closed the channel, and py-amqp opened it again
            raise taken from None
        self._held.add(name)

    def _release(self, name: str) -> None:
        if name in self._held:
            self._claims.queue_delete(self._names.claim(name))
            self._held.discard(name)

    def _say_goodbye(self) -> None:
        """What was sent before is at the broker before this leaves."""
        self._turn()
        while self._unconfirmed and not self.blocked:
            self._connection.drain_events()
