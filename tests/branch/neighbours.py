"""Links of several branches over a broker in memory, for tests that run in virtual time."""

import asyncio

from branchd.branch.mesh.link import Link
from branchd.core.peers import Address, inbox
from branchd.wire.mesh import Cancel, Cancelled, HangUp, Here, Knock, Ping, Pong, WhereIs
from branchd.wire.sealing import Path
from tests.fakes.bus import MemoryBroker
from tests.fakes.seal import ClearSeal

KEY = "i.web:one"
WHERE = WhereIs("web", "one")


class Neighbours:
    """Links of some branches; each answers pings with its number and hears hang-ups."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker()
        self.heard: list[tuple[str, str, str]] = []  #: who heard it, of whom, which stream

    async def join(self, count: int) -> list[Link]:
        links = [self.link(f"{number:032}", number) for number in range(count)]
        for link in links:
            await link.open()
        await asyncio.sleep(1)
        assert all(link.connected for link in links)
        return links

    def link(self, branch: str, number: int = 0) -> Link:
        me = Address(branch, "boot")
        link = Link(self.broker.bus(branch), ClearSeal(me), me)

        async def pong(_: Address, __: Ping) -> Pong:
            return Pong()

        async def here(_: Address, __: WhereIs) -> Here:
            return Here(branch, "", "", float(number))

        link.serve(Ping, pong)
        link.serve(WhereIs, here)
        link.hear(HangUp, lambda sender, message: self.heard.append((branch, sender.id, message.stream)))
        link.hear(Knock, lambda _, __: None)
        return link

    async def forge(self, to: Link, body: bytes) -> None:
        """A message that opens and is no message; nobody fails for it."""
        mallory = Address("m" * 32, "boot")
        bus = self.broker.bus(mallory.id)
        await bus.open(lambda _, __: None, lambda _: None)
        await asyncio.sleep(0.01)
        seal = ClearSeal(mallory)
        await bus.send(inbox(to.me.id), seal.seal(Path.SEND, f"{to.me.id}/{to.me.boot}", body))
        await bus.close()
        await asyncio.sleep(0.01)


def serve_slowly(link: Link, seconds: float) -> list[str]:
    """Cancel is answered after so long; what began and what ended, in order."""
    seen = []

    async def cancelled(_: Address, __: Cancel) -> Cancelled:
        seen.append("begun")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            seen.append("stopped")
            raise
        seen.append("done")
        return Cancelled()

    link.serve(Cancel, cancelled)
    return seen
