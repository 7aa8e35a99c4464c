"""Restarts what uses more memory than its `max_memory`: one timer for all who ask for that, and none where nobody does.

The kernel's own limit, which kills, is `limits.memory`, and nothing of this.
"""

import asyncio
from typing import Protocol

from branchd.branch.ports import Host, Process
from branchd.core.lifecycle import State
from branchd.core.spec import Spec, size_in_bytes
from branchd.core.values import Key

#: seconds between two looks
PERIOD = 5.0

#: instances that are looked at in one turn of the loop: each takes some tenths of a millisecond
AT_ONCE = 20


class Bounded(Protocol):
    """A supervisor."""

    @property
    def key(self) -> Key: ...
    @property
    def spec(self) -> Spec: ...
    @property
    def state(self) -> State: ...
    @property
    def process(self) -> Process | None: ...

    def renew(self, reason: str) -> None:
        """Restarts it by its stop plan."""


class MemoryWatch:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._watched: dict[Key, Bounded] = {}
        self._round: asyncio.Task[None] | None = None

    def look(self, instance: Bounded) -> None:
        """It may have changed."""
        if _bounded(instance):
            self._watched[instance.key] = instance
            if self._round is None:
                self._round = asyncio.get_running_loop().create_task(self._rounds())

    def close(self) -> None:
        if self._round is not None:
            self._round.cancel()
            self._round = None

    async def _rounds(self) -> None:
        while self._watched:
            await asyncio.sleep(PERIOD)
            for number, (key, instance) in enumerate(list(self._watched.items()), 1):
                if not _bounded(instance):
                    self._watched.pop(key, None)
                    continue
                self._check(instance)
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
        self._round = None

    def _check(self, instance: Bounded) -> None:
        limit, process = instance.spec.max_memory, instance.process
        if limit is None or process is None or instance.state not in (State.STARTING, State.RUNNING):
            return
        used = self._host.memory(process.identity)
        if used > size_in_bytes(limit):
            reason = f"uses {used / 2**20:.0f} MiB, max_memory is {size_in_bytes(limit) / 2**20:.0f} MiB"
            instance.renew(reason)


def _bounded(instance: Bounded) -> bool:
    return instance.spec.max_memory is not None and instance.process is not None
