"""Looks after every process whose driver wants to be asked from time to time; none of them, no timer."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from branchd.core.health import PERIOD

log = structlog.get_logger(__name__)


class Watched(Protocol):
    def tick(self, now: float) -> None: ...

    def forget(self, now: float) -> None: ...


class Watch:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def add(self, watched: Watched) -> None:
        self._watched.add(watched)
        if self._timer is None:
            self._arm()

    def discard(self, watched: Watched) -> None:
        self._watched.discard(watched)
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._due = self._clock() + PERIOD
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self._tick)

    def _tick(self) -> None:
        now = self._clock()
        # A tick that comes a whole period late means that the daemon itself was stopped, or the machine slept: the
        # reports that are missing then are those that nobody was there to read.
        paused = now - self._due > PERIOD
        for watched in list(self._watched):
            try:
                if paused:
                    watched.forget(now)
                else:
                    watched.tick(now)
            except Exception:
                log.exception("a bug in looking after one process; the others go on")
        self._timer = None
        if self._watched:
            self._arm()
