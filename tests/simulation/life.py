"""The life of one daemon among many in one loop: its tasks and timers belong to it, and end with it as by kill -9."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

_LIFE: ContextVar["Life | None"] = ContextVar("life", default=None)


class Crashed(Exception):
    """The daemon ended before it answered."""


class Life:
    """What runs in it, and all that this starts, is of it."""

    def __init__(self) -> None:
        self.alive = True  #: False: whatever still runs reaches nothing outside
        self._over = False
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What a client of this daemon gets. Crashed."""
        context = copy_context()
        context.run(_LIFE.set, self)
        task = asyncio.get_running_loop().create_task(work, context=context)
        try:
            return await task
        except asyncio.CancelledError:
            if self.alive:
                raise
            raise Crashed from None

    async def end(self) -> None:
        """At once; tasks are cancelled, which no real kill does, but nothing that they then do gets out."""
        self.alive = False
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        self._over = True

    def enlist(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unless_over(self, callback: Callable[..., object], *arguments: Any) -> None:
        if not self._over:
            callback(*arguments)


def life_of(context: Context | None) -> Life | None:
    """That of a context, of what runs now without one."""
    return _LIFE.get() if context is None else context.get(_LIFE)


class Mortal:
    """A port as one life sees it: using it after its end is the end of whoever does."""

    def __init__(self, port: Any, life: Life) -> None:
        self._port = port
        self._life = life

    def __getattr__(self, name: str) -> Any:
        if not self._life.alive:
            raise asyncio.CancelledError
        return getattr(self._port, name)
