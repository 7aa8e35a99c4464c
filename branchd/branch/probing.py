"""Asking one process whether it is ready and alive, for as long as it runs and its spec wants that.

When to ask and what the answers mean is decided in core/probes.py, how to ask is the port Prober's. No task and no
timer where nothing is asked for.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from msgspec.structs import replace

from branchd.branch.world import World
from branchd.core.errors import SpawnFailed, Unavailable
from branchd.core.lifecycle import Symbol
from branchd.core.probes import Late, Now, Row, Seen, Wait, missing, pause, readiness
from branchd.core.spec import Probe, Ready
from branchd.core.values import Key, Launch

log = structlog.get_logger(__name__)


class Probing:
    def __init__(
        self,
        world: World,
        key: Key,
        started: float,
        was_ready: bool,
        launch: Callable[[tuple[str, ...]], Launch],
        kind_doubts: Callable[[], str],
        post: Callable[[Symbol, str], None],
        on_change: Callable[[], None],
    ) -> None:
        """`started`: seconds since boot. `was_ready`: it was adopted, and had been ready before.

        `launch` says how a program is run as the instance is (SpawnFailed), `kind_doubts` why its kind does not take
        it as ready yet, as far as it can tell. `post` is called with READY, LATE and UNHEALTHY; `on_change` when
        doubt() says something new.
        """
        self._world = world
        self._key = key
        self._started = started
        self._ready = self._said = was_ready
        self._launch = launch
        self._kind_doubts = kind_doubts
        self._post = post
        self._on_change = on_change
        self._wants = Ready()
        self._alive: Probe | None = None
        self._row = Row()  #: of the ready probe
        self._waited = 0.0  #: seconds that questions of the ready probe have waited for their turns
        self._waits_since: float | None = None  #: the present one, by the clock
        self._programs = asyncio.Lock()  #: of the few that run at a time, one instance has one
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asking_alive: asyncio.Task[None] | None = None
        self._stopped = False

    def want(self, ready: Ready, alive: Probe | None) -> None:
        """From now on; first of all to begin. What an earlier probe was answered means nothing to another one."""
        if self._stopped:
            return
        if ready.probe != self._wants.probe:
            self._row = Row()
            self._asking = _ended(self._asking)
            self._waits_since = None
        if alive != self._alive:
            self._asking_alive = _ended(self._asking_alive)
        self._wants, self._alive = ready, alive
        self._decide()

    def said(self) -> None:
        """Its kind takes it as ready."""
        self._said = True
        if self._ready:
            self._post(Symbol.READY, "")  # once more, as its kind did
        self._decide()

    def stop(self) -> None:
        """It is being stopped, or gone: what it answers means nothing any more."""
        self._stopped = True
        self._disarm()
        self._asking, self._asking_alive = _ended(self._asking), _ended(self._asking_alive)

    def doubt(self) -> str:
        """Why it is not ready, as far as it is known here; empty where it is, or where only its kind can tell."""
        if self._stopped:
            return ""
        probe = self._wants.probe
        if self._ready:
            return self._row.words(probe) if probe is not None and self._row.fails(probe) else ""
        return missing(self._wants, self._seen()) if self._said else ""

    def _seen(self) -> Seen:
        doubt = "" if self._said else self._kind_doubts()
        age = self._world.clock() - self._started
        return Seen(age, self._said, doubt, self._row, self._waits_since is not None, self._waited)

    def _decide(self) -> None:
        if self._stopped:
            return
        self._disarm()
        if not self._ready:
            seen = self._seen()
            match readiness(self._wants, seen):
                case Now():
                    self._ready, self._row = True, Row()
                    self._post(Symbol.READY, "")
                case Late(reason):
                    self.stop()
                    self._post(Symbol.LATE, reason)
                    return
                case Wait(seconds) if seconds is not None:
                    # A little late, so that it never comes before its time by the difference of two clocks.
                    self._timer = asyncio.get_running_loop().call_later(seconds + 0.001, self._decide)
        if self._wants.probe is not None and self._asking is None:
            self._asking = self._begin(self._ask_ready(self._wants.probe))
        if self._alive is not None and self._asking_alive is None and self._due():
            self._asking_alive = self._begin(self._ask_alive(self._alive))
        self._on_change()

    def _due(self) -> bool:
        """Whether it may be asked already if it is alive: one that starts may not be able to answer."""
        up = self._wants.probe is None and self._world.clock() - self._started >= self._wants.after
        return self._ready or up

    async def _ask_ready(self, probe: Probe) -> None:
        while True:
            await asyncio.sleep(pause(probe, self._row, self._world.chance(), ready=self._ready))
            self._waits_since = self._world.clock()
            self._row = await self._answered(probe, self._row, self._begins)
            self._waits_since = None
            if self._ready:
                self._on_change()
            else:
                self._decide()

    def _begins(self) -> None:
        if self._waits_since is not None:
            self._waited += self._world.clock() - self._waits_since
            self._waits_since = None
        if not self._ready:
            self._decide()  # `within` goes on

    async def _ask_alive(self, probe: Probe) -> None:
        row = Row()
        while not row.fails(probe):
            await asyncio.sleep(pause(probe, row, self._world.chance(), ready=True))
            row = await self._answered(probe, row, lambda: None)
        self._post(Symbol.UNHEALTHY, f"not alive: {row.words(probe)}")

    async def _answered(self, probe: Probe, row: Row, begins: Callable[[], None]) -> Row:
        try:
            if not probe.exec:
                return row.then(await self._world.prober.ask(probe, None, begins))
            async with self._programs:
                launch = replace(self._launch(probe.exec), within=self._key)
                return row.then(await self._world.prober.ask(probe, launch, begins))
        except SpawnFailed as failure:
            if not failure.ours:
                return row.then(failure.detail)
            reason = failure.detail
        except Unavailable as failure:
            reason = failure.detail
        # That we cannot ask says nothing about who was to be asked; the next question waits as long as any other.
        log.warning("probe not asked", instance=str(self._key), reason=reason)
        return Row(row.asked + 1, row.failed, row.succeeded, row.why)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_tell_of_a_bug)
        return task

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _tell_of_a_bug(task: asyncio.Task[None]) -> None:
    """It is no reason to kill what may run well."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("probing ended", exc_info=error)


def _ended(task: asyncio.Task[None] | None) -> asyncio.Task[None] | None:
    """What stands where the task stood."""
    if task is not None:
        task.cancel()
    return None
