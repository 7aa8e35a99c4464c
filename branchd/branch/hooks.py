"""Hooks: commands and URLs that are told that an instance's process ended, or that the instance was given up.

They are told what the event log was told, after it was committed: no instance ever waits for a hook. Each event is told
at most once; what waits, or is under way, when the daemon ends without warning is not told again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import structlog
from msgspec.structs import replace

from branchd.branch.events import EventLog, Reset
from branchd.branch.journal import Journal
from branchd.branch.ports import Teller
from branchd.branch.records import EventRecord
from branchd.branch.supervisor import Supervisor
from branchd.branch.view import render_event
from branchd.core.errors import BranchdError, StorageFailed
from branchd.core.lifecycle import State
from branchd.core.spec import Hook, Hooks
from branchd.core.value import Value
from branchd.core.values import Key
from branchd.wire import json

log = structlog.get_logger(__name__)

#: seconds that a hook may take
TIMEOUT = 30.0

#: hooks that are told at a time, and that wait for their turn; more than these fail
AT_ONCE = 8
MOST_WAITING = 1000

#: seconds until the events are read again where the store failed
AGAIN = 5.0

#: seconds that the end of the daemon waits for hooks that are under way
END_PATIENCE = 5.0


class _Telling(Value):
    name: str
    hook: Hook
    event: EventRecord
    supervisor: Supervisor


class HookRunner:
    def __init__(
        self, teller: Teller, events: EventLog, journal: Journal, find: Callable[[Key], Supervisor | None]
    ) -> None:
        self._teller = teller
        self._events = events
        self._journal = journal
        self._find = find
        self._waiting: deque[_Telling] = deque()
        self._telling: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """What happens from now on is told."""
        self._listening = asyncio.get_running_loop().create_task(self._listen(self._events.last))

    async def end(self) -> None:
        """After the event log was closed: waits a little for what is under way, and gives up the rest."""
        if self._waiting:
            log.warning("hooks not told", number=len(self._waiting), reason="the daemon ends")
            self._waiting.clear()
        if self._telling:
            await asyncio.wait(self._telling, timeout=END_PATIENCE)
        self.close()

    def close(self) -> None:
        self._waiting.clear()
        for task in (*self._telling, *([self._listening] if self._listening is not None else [])):
            task.cancel()

    async def _listen(self, last: int) -> None:
        # A reader that lags is let go, and goes on from what it has seen.
        while not self._events.closed:
            try:
                async with aclosing(self._events.subscribe(last)) as items:
                    async for item in items:
                        if isinstance(item, Reset):
                            last = item.last
                        else:
                            last = item.id
                            self._heard(item)
            except StorageFailed as failure:  # or nobody would be told of anything any more
                log.error("hooks wait for the store", reason=failure.detail)
                await asyncio.sleep(AGAIN)

    def _heard(self, event: EventRecord) -> None:
        if event.type != "instance.state" or event.app is None or event.instance is None:
            return
        supervisor = self._find(Key(event.app, event.instance))
        if supervisor is None:
            return
        for name, hook in due(supervisor.spec.hooks, event.data):
            telling = _Telling(name, hook, event, supervisor)
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(telling)
            else:
                self._start(self._failed(telling, f"{MOST_WAITING} others wait already"))
        self._next()

    def _next(self) -> None:
        while self._waiting and len(self._telling) < AT_ONCE:
            self._start(self._tell(self._waiting.popleft()))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._telling.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._telling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("hook", exc_info=error)
        self._next()

    async def _tell(self, telling: _Telling) -> None:
        event, hook = telling.event, telling.hook
        body = json.dumps(render_event(event)) + b"\n"
        try:
            launch = None
            if hook.command:
                launch = telling.supervisor.launch_beside(hook.command)
                added = {"BRANCHD_EVENT": telling.name, "BRANCHD_INSTANCE": f"{event.app}:{event.instance}"}
                launch = replace(launch, env={**launch.env, **added})
            failure = await self._teller.tell(hook, launch, body, TIMEOUT)
        except BranchdError as error:
            failure = error.detail
        if failure is not None:
            await self._failed(telling, failure)

    async def _failed(self, telling: _Telling, reason: str) -> None:
        event = telling.event
        log.warning(
            "hook failed", instance=f"{event.app}:{event.instance}", hook=telling.name, event_id=event.id, reason=reason
        )
        data = {"hook": telling.name, "event": event.id, "reason": reason}
        try:
            await self._journal.commit(events=[("hook.failed", event.app, event.instance, data)])
        except StorageFailed as failure:
            log.warning("not saved", reason=failure.detail)


def due(hooks: Hooks, data: Mapping[str, Any]) -> Iterator[tuple[str, Hook]]:
    """Which hooks a change of state concerns, by its event's data.

    A process that ends while its stop plan runs was to end; but for one that was late to be ready, which nobody asked
    to: that one has a reason.
    """
    if hooks.on_exit is not None and "exit" in data and (data["from"] != State.STOPPING or data["reason"]):
        yield "on_exit", hooks.on_exit
    if hooks.on_fatal is not None and data["to"] == State.FATAL != data["from"]:
        yield "on_fatal", hooks.on_fatal
