"""The connection by which a branch receives: its inbox and what is bound to it."""

import asyncio
from collections.abc import Callable, Collection
from itertools import islice

import amqp

from branchd.adapters.amqp_wire import Wire
from branchd.core.peers import inbox
from branchd.wire.portions import LONGEST_MESSAGE

#: bindings in one go: about 40 ms, so that neither time-outs nor messages suffer
BINDINGS = 200

#: of an inbox; what a branch could not take in this time is of no use to it any more
INBOX = {"x-max-length": 10_000, "x-max-length-bytes": 64 << 20, "x-message-ttl": 30_000}


class Consuming(Wire):
    """Holds the inbox, which is also the proof that no other branch of this id is connected, and its bindings."""

    purpose = "consumes"

    async def bind(self, keys: Collection[str]) -> None:
        await self._in_pieces(keys, self._bind)

    async def unbind(self, keys: Collection[str]) -> None:
        await self._in_pieces(keys, self._unbind)

    def consume(self, on_message: Callable[[str, bytes | None], None]) -> None:
        """Messages come from now on, as Bus.open() says."""

        def work() -> None:
            def take(message: amqp.Message) -> None:
                about = message.delivery_info
                key = "" if about["exchange"] == self._names.everyone else about["routing_key"]
                body = message.body or b""
                if len(body) > LONGEST_MESSAGE:
                    self._loop.give(on_message, key, None)
                else:
                    self._loop.give(on_message, key, body, size=len(body))

            # Not waiting for the answer, behind which the first messages would find no callback.
            self._inbox.basic_consume(self._names.inbox, "inbox", no_ack=True, nowait=True, callback=take)

        self._work.append((asyncio.get_running_loop().create_future(), work))
        self._ring()

    async def _in_pieces(self, keys: Collection[str], what: Callable[[list[str]], None]) -> None:
        rest = iter(keys)
        while piece := list(islice(rest, BINDINGS)):
            await self.call(lambda piece=piece: what(piece))  # type: ignore[misc]

    # In the thread

    def _set_up(self) -> None:
        super()._set_up()
        names = self._names
        self._inbox = self._connection.channel()
        self._inbox.auto_decode = False
        self._bindings = self._connection.channel()
        self._inbox.queue_declare(names.inbox, exclusive=True, auto_delete=False, arguments=INBOX)
        self._inbox.queue_bind(names.inbox, names.everyone)
        self._inbox.queue_bind(names.inbox, names.direct, inbox(names.branch))

    def _bind(self, keys: list[str]) -> None:
        for key in keys:
            self._bindings.queue_bind(self._names.inbox, self._names.direct, key, nowait=True)
        self._until_done()

    def _unbind(self, keys: list[str]) -> None:
        # The protocol has no unbind without an answer; py-amqp ignores answers that nobody waits for.
        for key in keys:
            self._bindings.queue_unbind(self._names.inbox, self._names.direct, key, nowait=True)
        self._until_done()

    def _until_done(self) -> None:
        """A channel's methods are done in order: one answer says that all before are done."""
        self._bindings.exchange_declare(self._names.direct, "direct", passive=True)

    def _say_goodbye(self) -> None:
        self._inbox.queue_delete(self._names.inbox)
