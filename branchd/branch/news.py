"""Waiting until something happens again. It happens often, and somebody waits seldom: until then there is nothing."""

import asyncio


class News:
    def __init__(self) -> None:
        self._next: asyncio.Event | None = None  #: while somebody waits

    def tell(self) -> None:
        """It has happened; whoever waits goes on."""
        if self._next is not None:
            self._next.set()
            self._next = None

    async def wait(self) -> None:
        """Returns when it happens the next time."""
        if self._next is None:
            self._next = asyncio.Event()
        await self._next.wait()
