"""What two branches know, made equal: a joiner learns everything so, and what was lost on the way is made up for.

One sends the digests of both its maps, the other answers with what it has in the buckets that differ, and is sent what
is newer at the first. All in portions: buckets that were exchanged are skipped in the next round, until none differs.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from branchd.branch.mesh.link import Link
from branchd.branch.mesh.presence import Presence
from branchd.branch.tasks import Tasks
from branchd.core.digests import BUCKETS, SKIP, differing
from branchd.core.peers import Address, Announcement, Down
from branchd.core.presence import COMPARE_EVERY
from branchd.core.stamps import Entry
from branchd.wire.mesh import Compare, Differences, Fill, Wrote
from branchd.wire.portions import PORTION, portions, text

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
        self.tasks = Tasks("gossip")
        link.serve(Compare, self._compared)
        link.hear(Fill, self._filled)

    def begin(self) -> None:
        self.tasks.repeat(self._look, lambda: 0.0)  # each look waits by itself

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
            theirs = {text(item) for item in _items(answer)}
            mine = [*self._presence.entries(fresh[0]), *self._entries(fresh[1])]
            for portion in portions(item for item in mine if text(item) not in theirs):
                await self._give(peer, portion, fan_out)
            roster |= fresh[0]
            definitions |= fresh[1]

    async def _look(self) -> None:
        await asyncio.sleep(COMPARE_EVERY * (0.9 + 0.2 * self._chance()))
        others = self._presence.others()
        if others and self._link.connected and self._presence.joined:
            await self.exchange(others[int(self._chance() * len(others))].peer, fan_out=False)

    async def _compared(self, _: Address, theirs: Compare) -> Differences:
        """Whole buckets as long as they fit; of one that alone does not fit any part, and the rest another time."""
        room = PORTION
        known: list[Item] = []
        taken: tuple[list[int], list[int]] = [], []
        buckets = [(0, number) for number in differing(self._presence.digests(), theirs.roster)]
        buckets += [(1, number) for number in differing(self._definitions.digests(), theirs.definitions)]
        for which, number in buckets:
            items = self._presence.entries([number]) if which == 0 else self._entries([number])
            size = sum(len(text(item)) for item in items)
            if size > room:
                if known:
                    break
                start = int(self._chance() * len(items))
                items = list(next(portions([*items[start:], *items[:start]])))
            room -= size
            known += items
            taken[which].append(number)
        announcements, downs, entries = _sorted(known)
        ages = self._presence.ages((*announcements, *downs))
        return Differences(announcements, downs, entries, tuple(taken[0]), tuple(taken[1]), ages)

    def _filled(self, _: Address, fill: Fill) -> None:
        self.tasks.begin(self._take(fill))

    async def _take(self, told: Differences | Fill) -> None:
        # The downs first: who ended is not welcomed before.
        self._presence.believe([*told.downs, *told.announcements], told.ages)
        if told.entries:
            await self._definitions.merge(told.entries)

    async def _give(self, peer: Address, portion: Sequence[Item], fan_out: bool) -> None:
        announcements, downs, entries = _sorted(portion)
        if fan_out and entries:
            self._link.broadcast(Wrote(entries))
            entries = ()
        if announcements or downs or entries:
            ages = self._presence.ages((*announcements, *downs))
            await self._link.tell(peer, Fill(announcements, downs, entries, ages))

    def _entries(self, buckets: Collection[int]) -> list[Item]:
        return list(self._definitions.entries(buckets))


def _skipping(digests: Sequence[str], done: Collection[int]) -> tuple[str, ...]:
    return tuple(SKIP if number in done else text for number, text in enumerate(digests))


def _fresh(buckets: Iterable[int], done: Collection[int]) -> set[int]:
    return {number for number in buckets if 0 <= number < BUCKETS and number not in done}


def _items(told: Differences | Fill) -> list[Item]:
    return [*told.announcements, *told.downs, *told.entries]


def _sorted(items: Iterable[Item]) -> tuple[tuple[Announcement, ...], tuple[Down, ...], tuple[Entry, ...]]:
    items = list(items)
    return (
        tuple(item for item in items if isinstance(item, Announcement)),
        tuple(item for item in items if isinstance(item, Down)),
        tuple(item for item in items if isinstance(item, Entry)),
    )
