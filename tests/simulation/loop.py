"""An asyncio loop in virtual time: where nothing is ready the clock jumps to the next timer, so hours pass in moments.

`run(main())` or `@simulate` above a test; in it `asyncio.get_running_loop().time` is the clock of all, and a WallClock
that of one branch. Everything that runs there stays in one thread: what is for another one is done at once, and whoever
waits for what nobody will ever do is told so as a Deadlock.
"""

import asyncio
import functools
import io
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, ParamSpec, TypeVar

from tests.simulation.life import life_of

T = TypeVar("T")
P = ParamSpec("P")

#: seconds since boot at which every simulation begins
BEGIN = 1000.0

#: seconds since 1970 at that time, by a clock that is right
EPOCH = 1_800_000_000.0


class Deadlock(BaseException):
    """Nothing is ready and no timer is set; says where each task waits. BaseException, so that no task catches it."""


class SimulationLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now = BEGIN
        super().__init__(_Selector(self))
        self.set_task_factory(_enlist)

    def time(self) -> float:
        return self._now

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds since boot."""
        return self.time

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if life := life_of(context):
            return super().call_at(when, life.unless_over, callback, *args, context=context)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(self, _executor: object, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(work(*args))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for who waits
            done.set_exception(error)
        return done

    def advance(self, seconds: float | None) -> None:
        if seconds is None:
            raise Deadlock(_stacks(self))
        self._now += seconds


def _enlist(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], context: Context | None = None
) -> asyncio.Task[T]:
    task = asyncio.Task(coroutine, loop=loop, context=context)
    if life := life_of(context):
        life.enlist(task)
    return task


class WallClock:
    """Seconds since 1970 as one branch sees them; `offset` is how far it is ahead, and may be changed at any time."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def __call__(self) -> float:
        return EPOCH - BEGIN + asyncio.get_running_loop().time() + self.offset


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=SimulationLoop) as runner:
        return runner.run(main)


def simulate(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """A test, with its fixtures and hypothesis' arguments, in a virtual time of its own."""

    @functools.wraps(test)
    def simulated(*arguments: P.args, **named: P.kwargs) -> T:
        return run(test(*arguments, **named))

    return simulated


class _Selector(selectors.DefaultSelector):
    """Files are looked at, and never waited for: time passes instead."""

    def __init__(self, loop: SimulationLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0:
            self._loop.advance(timeout)
        return ready


def _stacks(loop: asyncio.AbstractEventLoop) -> str:
    text = io.StringIO("nothing is ready and no timer is set\n")
    text.seek(0, io.SEEK_END)
    for task in asyncio.all_tasks(loop):
        task.print_stack(file=text)
    return text.getvalue()
