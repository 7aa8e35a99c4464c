"""Waiting for a condition with a deadline: what tests do instead of sleeping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

#: seconds between two looks at a condition
PAUSE = 0.01


async def until(condition: Callable[[], T | Awaitable[T]], seconds: float = 30, what: str = "") -> T:
    """Waits till condition() (or what it awaits to) is truthy and returns that; AssertionError at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}; last value {value!r}")
        await asyncio.sleep(PAUSE)


def until_sync(condition: Callable[[], T], seconds: float = 30, what: str = "") -> T:
    """The same for tests without a loop."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}; last value {value!r}")
        time.sleep(PAUSE)
    return value
