"""What a part of the daemon does in the background: begun, looked after, and ended with it.

Nothing that fails here ends anything else, and nothing ends without a word: what nobody expected is logged, and counted
for the doctor. What is done is the part's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from branchd.core.diagnosis import Failures
from branchd.core.errors import NoRoute, Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Tasks:
    def __init__(self, part: str) -> None:
        """`part`: whose they are, in a word for operators."""
        self.failures = Failures(part)
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Goes on by itself."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def repeat(self, step: Callable[[], Awaitable[None]], pause: Callable[[], float]) -> None:
        """For ever: step after step, each of which waits for its time; `pause` seconds after one that fails."""

        async def run() -> None:
            while True:
                try:
                    await step()
                except Exception as error:  # noqa: BLE001 - a loop that ends is missed by nobody, until it is needed
                    log.info("tried again", part=self.failures.part, error=f"{type(error).__name__}: {error}")
                    self.report(error)
                    await asyncio.sleep(pause())

        self.begin(run())

    def cancel(self) -> None:
        """All of them; end() does, and waits."""
        for task in self._tasks:
            task.cancel()

    async def end(self) -> None:
        """Returns when they have ended; more may be begun afterwards."""
        self.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def report(self, error: Exception) -> None:
        """That a branch does not answer, or this one has no connection or no disk, is told where it matters."""
        if isinstance(error, NoRoute | Unavailable):
            log.debug("not done", part=self.failures.part, reason=error.detail)
        else:
            log.error("failed in the background", part=self.failures.part, exc_info=error)
            self.failures = self.failures.one_more(error)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self.report(error)


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """For what must not be done by half: where this is cancelled, the work ends first. What it raises goes before."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
