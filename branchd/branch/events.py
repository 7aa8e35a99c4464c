"""The event log: what happened, in order, with ids that never go back, kept in the store and told to subscribers.

Ids are given here and committed with the change that they tell of, so a reader that resumes after an id misses nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any

from msgspec import Struct, field

from branchd.branch.ports import Store
from branchd.branch.records import EventRecord
from branchd.core.value import Value

#: events that one subscriber may lag behind; one that does not read is let go
BACKLOG = 1000

#: events read from the store at a time
CHUNK = 500

#: events that the store keeps: of type `request`, and as many others
KEPT = 10_000


class Reset(Value):
    """What was asked for is no longer kept, or never was: read the present state, and go on from here."""

    last: int


class _Subscriber(Struct, eq=False):
    queue: asyncio.Queue[EventRecord | None] = field(default_factory=lambda: asyncio.Queue(BACKLOG + 1))
    lost: bool = False


class EventLog:
    def __init__(self, store: Store, last: int) -> None:
        self._store = store
        self._given = last  #: highest id given so far
        self.last = last  #: highest id told so far: what is up to it is in the store
        self._subscribers: set[_Subscriber] = set()
        self.closed = False  #: every subscription has ended

    def number(
        self, at: float, type: str, app: str | None, instance: str | None, data: Mapping[str, Any]
    ) -> EventRecord:
        """The event with its id; to be committed, then published."""
        self._given += 1
        return EventRecord(self._given, at, type, app, instance, data)

    def publish(self, events: list[EventRecord]) -> None:
        self.last = max([self.last, *(event.id for event in events)])
        for subscriber in list(self._subscribers):
            for event in events:
                if subscriber.queue.qsize() >= BACKLOG:
                    subscriber.lost = True
                    self._end(subscriber)
                    break
                subscriber.queue.put_nowait(event)

    def close(self) -> None:
        """Ends every subscription."""
        self.closed = True
        for subscriber in list(self._subscribers):
            self._end(subscriber)

    def _end(self, subscriber: _Subscriber) -> None:
        self._subscribers.discard(subscriber)
        with suppress(asyncio.QueueFull):
            subscriber.queue.put_nowait(None)

    def subscribe(
        self, after: int | None = None, *, tail: int = 0, follow: bool = True
    ) -> AsyncGenerator[EventRecord | Reset, None]:
        """Events with an id above `after` (None: the last `tail`, then those from this call on), as they come.

        Reset comes first when `after` is too old or from another log. Ends at shutdown, for a reader that lags more
        than BACKLOG events behind, and without `follow` when all up to this call was told.
        """
        return self._tell(after, self.last, tail, follow)

    async def _tell(
        self, after: int | None, start: int, tail: int, follow: bool
    ) -> AsyncGenerator[EventRecord | Reset, None]:
        subscriber = _Subscriber()
        if self.closed:
            return
        self._subscribers.add(subscriber)
        try:
            told, now = start, self.last
            if tail:
                told = await self._store.event_before(start, tail)
            if after is not None:
                told = after
                first = await self._store.first_event()
                if after > now or first > after + 1:
                    yield Reset(now)
                    told = now
            while told < now and (chunk := await self._store.events(told, CHUNK)):
                for event in chunk:
                    yield event
                told = chunk[-1].id
            while follow and (fresh := await subscriber.queue.get()) is not None:
                if fresh.id > told:
                    yield fresh
        finally:
            self._subscribers.discard(subscriber)
