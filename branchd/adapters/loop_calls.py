"""From a thread to the loop: calls in order, many for one wakeup; and the futures that the loop waits with."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

#: what one turn of the loop takes, so that a flood does not starve everything else
TURN = 500

T = TypeVar("T")


class LoopCalls:
    """Made in the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...], int]] = deque()
        self._woken = False
        self._given = 0  #: bytes; written in the thread only
        self._done = 0  #: bytes; written in the loop only

    def __len__(self) -> int:
        """Calls that wait for the loop."""
        return len(self._calls)

    @property
    def size(self) -> int:
        """Bytes of the calls that wait for the loop."""
        return self._given - self._done

    def give(self, what: Callable[..., object], *arguments: Any, size: int = 0) -> None:
        """In the thread: has the loop call it. `size`: bytes that it keeps. RuntimeError where the loop is closed."""
        self._given += size
        self._calls.append((what, arguments, size))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._woken = False  # first: what is given from now on wakes again, or is taken below
        for what, arguments, size in taken(self._calls, TURN):
            self._done += size
            try:
                what(*arguments)
            except Exception as error:  # noqa: BLE001 - one bad call must not take the others with it
                self._loop.call_exception_handler({"message": f"{what} failed", "exception": error})
        if self._calls and not self._woken:
            self._woken = True
            self._loop.call_soon(self._take)


def taken(queue: deque[T], most: int | None = None) -> Iterator[T]:
    """Takes from the left until it is empty, or so many."""
    while most != 0:
        try:
            item = queue.popleft()
        except IndexError:
            return
        yield item
        most = None if most is None else most - 1


def settle(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # where nobody waits any more, it is not to be reported
