"""A Teller in memory, for tests of who uses the port: passes tests/adapters/conformance_teller.py."""

import asyncio

from branchd.core.spec import Hook
from branchd.core.values import Launch


class FakeTeller:
    """Everything is taken, but what is in `failing`."""

    def __init__(self) -> None:
        self.told: list[tuple[Hook, Launch | None, bytes]] = []
        self.failing: dict[Hook, str] = {}  #: why
        self.silent: set[Hook] = set()  #: these take all the time that there is
        self.under_way = 0

    async def tell(self, hook: Hook, launch: Launch | None, event: bytes, timeout: float) -> str | None:
        self.told.append((hook, launch, event))
        self.under_way += 1
        try:
            await asyncio.sleep(timeout if hook in self.silent else 0)
        finally:
            self.under_way -= 1
        return f"no answer within {timeout:g} s" if hook in self.silent else self.failing.get(hook)
