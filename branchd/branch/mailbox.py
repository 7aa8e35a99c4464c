"""What one instance has still to handle: events, one after the other, and the one that its timer will bring.

There is a task only while there are events, and a timer only while there is a deadline. What an event means, and what a
failure of ours leads to, is the supervisor's.
"""

import asyncio
from collections.abc import Awaitable, Callable

from branchd.core.lifecycle import Event, Symbol


class Mailbox:
    def __init__(
        self,
        clock: Callable[[], float],
        handle: Callable[[Event], Awaitable[None]],
        failed: Callable[[Exception], None],
        emptied: Callable[[], None],
    ) -> None:
        """`failed` is called where `handle` raised: what still waited is dropped. `emptied`: when nothing waits."""
        self._clock = clock
        self._handle = handle
        self._failed = failed
        self._emptied = emptied
        self._events: list[Event] = []  #: seldom more than two; an empty deque takes 760 bytes
        self._draining: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Something is handled, or waits for that."""
        return self._draining is not None

    @property
    def more(self) -> bool:
        """Something waits, besides what is handled."""
        return bool(self._events)

    def post(self, event: Event) -> None:
        self._events.append(event)
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    def answer(self, event: Event) -> None:
        """While one is handled: this comes of it, and before whatever waits."""
        self._events.insert(0, event)

    async def idle(self) -> None:
        """Returns when what was posted so far is handled."""
        if self._draining is not None:
            await asyncio.wait([self._draining])

    def wake(self, deadline: float | None) -> None:
        """The timer's event comes then, in seconds since boot, and not when it was to come before; None: never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            delay = max(0.0, deadline - self._clock())
            # A little late, so that a timer never comes before its time by the difference of two clocks.
            self._timer = asyncio.get_running_loop().call_later(delay + 0.001, self.post, Event(Symbol.TIMER))

    async def _drain(self) -> None:
        try:
            while self._events:
                await self._handle(self._events.pop(0))
        except Exception as error:  # noqa: BLE001  # a bug of ours, whatever it is: the supervisor logs it
            self._events.clear()
            self._failed(error)
        finally:
            self._draining = None
        self._emptied()
