"""What `systemctl status` shows of the daemon in one line, kept true while things change."""

import asyncio
from contextlib import aclosing

from branchd.adapters.systemd import Notifier
from branchd.branch.service import Service

#: seconds between two of them: a start of 500 instances is told once, not 500 times
EVERY = 1.0


class StatusLine:
    def __init__(self, service: Service, notifier: Notifier) -> None:
        self._service = service
        self._notifier = notifier
        self._note = ""
        self._told = ""

    def note(self, text: str) -> None:
        """Something to be said beside it, until "" is."""
        self._note = text
        self.tell()

    def tell(self) -> None:
        line = self._line()
        if line != self._told:
            self._told = line
            self._notifier.status(line)

    async def follow(self) -> None:
        """Tells of changes till the branch's events end."""
        going = True
        while going:
            self.tell()
            going = False
            async with aclosing(self._service.events.subscribe()) as events:
                async for _ in events:
                    going = True
                    break
            await asyncio.sleep(EVERY)

    def _line(self) -> str:
        number, down = self._service.instances.tally()
        parts = [
            f"branch {self._service.name}: {number} instances",
            f"{down} not running" if down else "",
            self._note,
        ]
        return ", ".join(filter(None, parts))
