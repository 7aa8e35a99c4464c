"""The definitions that a neighbourhood shares: a map that every branch has, and that converges without a master.

The last writer wins, by its stamp. Which branch learns what, and when, is the mesh's business; what a definition means
for instances is branchd/branch/definitions.py's.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from branchd.core.digests import BUCKETS, Digests, bucket
from branchd.core.stamps import Entry, EntryKind

#: Deletions that are remembered, 100 bytes each, so that no branch that was away brings back what was deleted. Beyond
#: it the oldest are forgotten: only one that missed this many deletions could still do so.
MOST_TOMBSTONES = 100_000

EntryKey = tuple[EntryKind, str, str]


def key(entry: Entry) -> EntryKey:
    return entry.kind, entry.app, entry.name


def digest(spec: Mapping[str, Any]) -> str:
    """Of what a spec says, types and all."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def beats(entry: Entry, other: Entry | None) -> bool:
    """Whether it is to stand in the other's place. Of all entries of one key the same one stays, in whatever order."""
    if other is None or entry.stamp != other.stamp:
        return other is None or entry.stamp > other.stamp
    return _content(entry) > _content(other)


def _content(entry: Entry) -> tuple[bool, bool, str]:
    """Decides between what one branch wrote twice at one time: one that lost its memory; what is gone stays gone."""
    return entry.value is None, entry.cascade, json.dumps(entry.value, sort_keys=True)


def merge(*maps: Iterable[Entry]) -> dict[EntryKey, Entry]:
    """What stays of all of them: commutative, associative and idempotent."""
    merged: dict[EntryKey, Entry] = {}
    for entry in (entry for entries in maps for entry in entries):
        if beats(entry, merged.get(key(entry))):
            merged[key(entry)] = entry
    return merged


class Shared:
    """The map as one branch knows it, with what is asked of it often."""

    def __init__(self, entries: Iterable[Entry] = (), most_tombstones: int = MOST_TOMBSTONES) -> None:
        self.apps: dict[str, Entry] = {}  #: those that are not deleted
        self.digests = Digests()
        self._entries: dict[EntryKey, Entry] = {}
        self._buckets: list[set[EntryKey]] = [set() for _ in range(BUCKETS)]
        self._queues: dict[str, dict[str, Entry]] = {}  #: of each app, by name; those that are not deleted
        self._tombstones: set[EntryKey] = set()
        self._most_tombstones = most_tombstones
        self.take(entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, key: EntryKey) -> Entry | None:
        """Tombstones too."""
        return self._entries.get(key)

    def queues(self, app: str) -> Mapping[str, Entry]:
        """Those of a deleted app too, which nobody sees."""
        return self._queues.get(app, {})

    def within(self, buckets: Iterable[int]) -> tuple[Entry, ...]:
        """Those whose keys fall into these buckets of the digests."""
        return tuple(self._entries[key] for at in buckets for key in sorted(self._buckets[at]))

    @property
    def latest(self) -> int:
        """The highest time of a stamp; 0 where there is none."""
        return max((entry.stamp.time for entry in self), default=0)

    def news(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        """What take() would take of these."""
        return tuple(entry for key, entry in merge(entries).items() if beats(entry, self._entries.get(key)))

    def take(self, entries: Iterable[Entry]) -> None:
        for entry in self.news(entries):
            self._change(key(entry), entry)

    def excess(self) -> tuple[EntryKey, ...]:
        """The tombstones that are to be forgotten."""
        excess = max(0, len(self._tombstones) - self._most_tombstones)
        return tuple(heapq.nsmallest(excess, self._tombstones, key=lambda key: self._entries[key].stamp))

    def forget(self, key: EntryKey) -> None:
        self._change(key, None)

    def _change(self, key: EntryKey, entry: Entry | None) -> None:
        kind, app, name = key
        text = " ".join(key)
        before = self._entries.pop(key, None)
        self.digests = self.digests.replace(text, _told(before), _told(entry))
        self._buckets[bucket(text)].discard(key)
        self._tombstones.discard(key)
        alive, place = (self.apps, app) if kind is EntryKind.APP else (self._queues.setdefault(app, {}), name)
        alive.pop(place, None)
        if entry is None:
            return
        self._entries[key] = entry
        self._buckets[bucket(text)].add(key)
        if entry.value is None:
            self._tombstones.add(key)
        else:
            alive[place] = entry


def _told(entry: Entry | None) -> str | None:
    """For the digest: with the content, so that what one branch wrote twice at one time is told apart."""
    return None if entry is None else f"{entry.stamp.time} {entry.stamp.branch} {_content(entry)}"
