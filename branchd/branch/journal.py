"""Changes and the events that tell of them, committed together, then published."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from branchd.branch.events import EventLog
from branchd.branch.ports import Store
from branchd.branch.records import Change, Put

#: type, app, instance, data
Told = tuple[str, str | None, str | None, Mapping[str, Any]]


class Journal:
    def __init__(self, store: Store, events: EventLog, wall: Callable[[], float]) -> None:
        self._store = store
        self._events = events
        self._wall = wall

    async def commit(self, *changes: Change, events: Sequence[Told] = (), durable: bool = True) -> None:
        """StorageFailed, and then nothing is told. `durable`: as for the store."""
        told = [self._events.number(self._wall(), *event) for event in events]
        await self._store.write(*changes, *(Put(event) for event in told), durable=durable)
        self._events.publish(told)

    def begin(self, *changes: Change, events: Sequence[Told] = ()) -> asyncio.Future[None]:
        """Of what has happened, and is told whether or not the store takes it: what the future raises is StorageFailed.

        Asked for when this returns: before all that is committed later. That nobody was promised, so that it need not
        outlive the machine, and does not wait for the disk.
        """
        told = [self._events.number(self._wall(), *event) for event in events]
        done = self._store.begin_write(*changes, *(Put(event) for event in told))
        done.add_done_callback(lambda _: self._events.publish(told))
        return done
