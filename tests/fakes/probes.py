"""A Prober in memory, for tests of who uses the port: passes tests/adapters/conformance_prober.py."""

import asyncio
from collections.abc import Callable

from branchd.core.errors import Unavailable
from branchd.core.spec import Probe
from branchd.core.values import Launch

#: what a program that never answers is known by
SILENT = "silent"


class FakeProber:
    """Every probe succeeds, but those in `failing`."""

    def __init__(self) -> None:
        self.asked: list[tuple[Probe, Launch | None]] = []
        self.failing: dict[Probe, str] = {}  #: why; SILENT: it does not answer
        self.unavailable = False  #: nothing can be asked
        self.turn = asyncio.Event()  #: of who is asked
        self.turn.set()

    async def ask(self, probe: Probe, launch: Launch | None, begins: Callable[[], None]) -> str | None:
        await self.turn.wait()
        begins()
        self.asked.append((probe, launch))
        await asyncio.sleep(0)
        if self.unavailable:
            raise Unavailable("too many open files")
        failure = self.failing.get(probe)
        if failure == SILENT:
            await asyncio.sleep(probe.timeout)
            return f"no answer within {probe.timeout:g} s"
        return failure
