"""What two branches know, made equal: a joiner learns everything so, and what was lost on the way is made up for.

One sends the digests of both its maps, the other answers with what it has in the buckets that differ, and is sent what
is newer at the first. All in portions: buckets that were exchanged are skipped in the next round, until none differs.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol

import structlog

from branchd.branch.mesh.link import Link
from branchd.branch.mesh.presence import Presence
from branchd.core.digests import BUCKETS, SKIP, differing
from branchd.core.errors import NoRoute, Unavailable
from branchd.core.peers import Address, Announcement, Down
from branchd.core.presence import COMPARE_EVERY
from branchd.core.stamps import Entry
from branchd.wire import json
from branchd.wire.decode import encode
from branchd.wire.mesh import Compare, Differences, Fill, Wrote

log = structlog.get_logger(__name__)

#: bytes of entries in one message, unless a single one is longer: far below the longest message, and coded in 10 ms
PORTION = 256 << 10

#: seconds within which a peer answers a comparison
ANSWER_WITHIN = 5.0

Item = Announcement | Down | Entry


class Definitions(Protocol):
    """The shared definitions, as far as gossip goes."""

    def digests(self) -> tuple[str, ...]:
        """One a bucket, as core/digests.py makes them."""

    def entries(self, buckets: Collection[int]) -> Sequence[Entry]: ...

    async def merge(self, entries: Sequence[Entry]) -> object:
        """Takes what is newer. Unavailable."""


class Gossip:
    def __init__(self, link: Link, presence: Presence, definitions: Definitions, chance: Callable[[], float]) -> None:
        self._link = link
        self._presence = presence
        self._definitions = definitions
        self._chance = chance
        self._running: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        link.serve(Compare, self._compared)
        link.hear(Fill, self._filled)

    def begin(self) -> None:
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        tasks = [*self._tasks, *([self._running] if self._running else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def exchange(self, peer: Address, fan_out: bool) -> None:
        """Until both know the same; NoRoute, NoAnswer, Unavailable. fan_out: all hear of definitions newer here."""
        roster: set[int] = set()
        definitions: set[int] = set()
        while True:
            compare = Compare(
                _skipping(self._presence.digests(), roster), _skipping(self._definitions.digests(), definitions)
            )
            answer = await self._link.ask(peer, compare, ANSWER_WITHIN)
            if not isinstance(answer, Differences):
                return
            fresh = _fresh(answer.roster, roster), _fresh(answer.definitions, definitions)
            if not any(fresh):
                return
            await self._take(answer)
            theirs = {_text(item) for item in _items(answer)}
            mine = [*self._presence.entries(fresh[0]), *self._entries(fresh[1])]
            for portion in _portions([item for item in mine if _text(item) not in theirs]):
                await self._give(peer, portion, fan_out)
            roster |= fresh[0]
            definitions |= fresh[1]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(COMPARE_EVERY * (0.9 + 0.2 * self._chance()))
            others = self._presence.others()
            if not others or not self._link.connected or not self._presence.joined:
                continue
            try:
                await self.exchange(others[int(self._chance() * len(others))].peer, fan_out=False)
            except (NoRoute, Unavailable) as error:
                log.debug("not compared", error=error.detail)
            except Exception:  # what one peer made impossible may be possible with the next
                log.exception("not compared")

    async def _compared(self, _: Address, theirs: Compare) -> Differences:
        """Whole buckets as long as they fit; of one that alone does not fit any part, and the rest another time."""
        room = PORTION
        known: list[Item] = []
        taken: tuple[list[int], list[int]] = [], []
        buckets = [(0, number) for number in differing(self._presence.digests(), theirs.roster)]
        buckets += [(1, number) for number in differing(self._definitions.digests(), theirs.definitions)]
        for which, number in buckets:
            items = self._presence.entries([number]) if which == 0 else self._entries([number])
            size = sum(len(_text(item)) for item in items)
            if size > room:
                if known:
                    break
                start = int(self._chance() * len(items))
                items = next(_portions([*items[start:], *items[:start]]))
            room -= size
            known += items
            taken[which].append(number)
        announcements, downs, entries = _sorted(known)
        return Differences(announcements, downs, entries, tuple(taken[0]), tuple(taken[1]))

    def _filled(self, _: Address, fill: Fill) -> None:
        async def take() -> None:
            try:
                await self._take(fill)
            except Unavailable as error:
                log.warning("definitions not taken", error=error.detail)

        task = asyncio.get_running_loop().create_task(take())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, told: Differences | Fill) -> None:
        self._presence.believe([*told.announcements, *told.downs])
        if told.entries:
            await self._definitions.merge(told.entries)

    async def _give(self, peer: Address, portion: Sequence[Item], fan_out: bool) -> None:
        announcements, downs, entries = _sorted(portion)
        if fan_out and entries:
            self._link.broadcast(Wrote(entries))
            entries = ()
        if announcements or downs or entries:
            await self._link.tell(peer, Fill(announcements, downs, entries))

    def _entries(self, buckets: Collection[int]) -> list[Item]:
        return list(self._definitions.entries(buckets))


def _skipping(digests: Sequence[str], done: Collection[int]) -> tuple[str, ...]:
    return tuple(SKIP if number in done else text for number, text in enumerate(digests))


def _fresh(buckets: Iterable[int], done: Collection[int]) -> set[int]:
    return {number for number in buckets if 0 <= number < BUCKETS and number not in done}


def _items(told: Differences | Fill) -> list[Item]:
    return [*told.announcements, *told.downs, *told.entries]


def _text(item: Item) -> bytes:
    return json.dumps(encode(item))


def _sorted(items: Iterable[Item]) -> tuple[tuple[Announcement, ...], tuple[Down, ...], tuple[Entry, ...]]:
    items = list(items)
    return (
        tuple(item for item in items if isinstance(item, Announcement)),
        tuple(item for item in items if isinstance(item, Down)),
        tuple(item for item in items if isinstance(item, Entry)),
    )


def _portions(items: Sequence[Item]) -> Iterator[list[Item]]:
    portion, room = list[Item](), PORTION
    for item in items:
        size = len(_text(item))
        if size > room and portion:
            yield portion
            portion, room = [], PORTION
        room -= size
        portion.append(item)
    if portion:
        yield portion
