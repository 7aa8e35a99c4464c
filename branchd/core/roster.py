"""What a branch believes of the others: their last announcements, and which of them were found ended.

A value: observing gives another roster. In whatever order two branches hear the same things, and however often, they
believe the same: the later announcement by (incarnation, sequence) counts, and against it a down of the same or a
higher incarnation. No sender's clock decides. When which branch is watched and accused stands in presence.py.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from msgspec import field
from msgspec.structs import replace

from branchd.core.digests import BUCKETS, Digests, bucket
from branchd.core.peers import Address, Announcement, BranchState, Down
from branchd.core.value import Value

#: seconds that an ended branch is shown, for who asks in the morning what was lost at night. For as long again its
#: incarnation is kept, so that what a straggler says of it does not bring it back for another day.
LINGER = 24 * 3600.0

_LIVE = (BranchState.UP, BranchState.DRAINING)
_NOBODY: Mapping[str, "Member"] = MappingProxyType({})


class Member(Value):
    announcement: Announcement  #: the latest
    since: float  #: when it was first seen in this state, seconds since boot of whose roster this is
    down: Down | None = None  #: of the announcement's incarnation or a higher one

    @property
    def id(self) -> str:
        return self.announcement.id

    @property
    def name(self) -> str:
        return self.announcement.name

    @property
    def peer(self) -> Address:
        return self.announcement.peer

    @property
    def state(self) -> BranchState:
        """What a branch says of its own end is not put in doubt by who then misses it."""
        return self.announcement.state if self.down is None or self.said_goodbye else self.down.state

    @property
    def said_goodbye(self) -> bool:
        """Whether its latest life said that it goes."""
        return self.announcement.state is BranchState.CLOSED and self.announcement.incarnation == self.incarnation

    @property
    def live(self) -> bool:
        return self.state in _LIVE

    @property
    def incarnation(self) -> int:
        """The highest that was seen of it."""
        return max(self.announcement.incarnation, self.down.incarnation if self.down else 0)

    @property
    def essence(self) -> str:
        """What two branches must agree on."""
        known, down = self.announcement, self.down
        return f"{known.incarnation}.{known.sequence}.{known.boot} {down and (down.incarnation, down.state.value)}"


class Ended(Value):
    """A branch of which no more is known than that it ended."""

    down: Down
    since: float


class Roster(Value):
    buckets: tuple[Mapping[str, Member], ...] = (_NOBODY,) * BUCKETS  #: by id; so that a change copies one in 256
    ended: Mapping[str, Ended] = field(default_factory=dict)
    digests: Digests = field(default_factory=Digests)
    live: int = 0  #: members that are up or draining

    def __iter__(self) -> Iterator[Member]:
        for members in self.buckets:
            yield from members.values()

    def get(self, id: str) -> Member | None:
        return self.buckets[bucket(id)].get(id)

    def incarnation(self, id: str) -> int:
        """The highest that was seen of that branch; 0 where it is not known."""
        member, ended = self.get(id), self.ended.get(id)
        return max(member.incarnation if member else 0, ended.down.incarnation if ended else 0)

    def observe(self, said: Announcement | Down, at: float) -> "Roster":
        """What is believed after that; this very roster where it is nothing new.

        `at`: since when it is so, seconds since boot, which may be long ago where it was learned from a peer.
        """
        return self._announced(said, at) if isinstance(said, Announcement) else self._ended(said, at)

    def sweep(self, now: float) -> "Roster":
        """Without those that ended long ago."""
        roster, ended = self, dict(self.ended)
        for member in self:
            if _past(member, now):
                down = member.down or Down(member.id, member.incarnation, BranchState.CLOSED)
                ended[member.id] = Ended(down, member.since)
                roster = roster._put(member.id, member, None)
        kept = {id: one for id, one in ended.items() if one.since + 2 * LINGER > now}
        return roster if kept == self.ended else replace(roster, ended=kept)

    def entries(self, buckets: Collection[int], now: float) -> list[Member]:
        """Without those that ended long ago, though they wait for the next sweep."""
        return [member for number in buckets for member in self.buckets[number].values() if not _past(member, now)]

    def namesakes(self) -> Mapping[str, tuple[str, ...]]:
        """Names that more than one live branch has, with their ids."""
        names: dict[str, list[str]] = defaultdict(list)
        for member in self:
            if member.live:
                names[member.name].append(member.id)
        return {name: tuple(sorted(ids)) for name, ids in names.items() if len(ids) > 1}

    def _announced(self, said: Announcement, at: float) -> "Roster":
        before, ended, rest = self.get(said.id), self.ended.get(said.id), self.ended
        if before is not None and _order(said) <= _order(before.announcement):
            return self
        down = before.down if before is not None else ended and ended.down
        after = Member(said, at, down if down and down.incarnation >= said.incarnation else None)
        if before is not None and before.state is after.state:
            after = replace(after, since=before.since)
        if ended is not None:
            rest = {id: one for id, one in rest.items() if id != said.id}
            after = after if after.down is None else replace(after, since=ended.since)
        return replace(self, ended=rest)._put(said.id, before, after)

    def _ended(self, said: Down, at: float) -> "Roster":
        before = self.get(said.id)
        if before is None:
            known = self.ended.get(said.id)
            if known is not None and not _worse(said, known.down):
                return self
            return replace(self, ended={**self.ended, said.id: Ended(said, known.since if known else at)})
        if said.incarnation < before.announcement.incarnation or (before.down and not _worse(said, before.down)):
            return self
        after = replace(before, down=said)
        return self._put(said.id, before, after if after.state is before.state else replace(after, since=at))

    def _put(self, id: str, before: Member | None, after: Member | None) -> "Roster":
        number = bucket(id)
        members = {known: member for known, member in self.buckets[number].items() if known != id}
        if after is not None:
            members[id] = after
        buckets = (*self.buckets[:number], members, *self.buckets[number + 1 :])
        return replace(
            self,
            buckets=buckets,
            digests=self.digests.replace(id, before.essence if before else None, after.essence if after else None),
            live=self.live + (after is not None and after.live) - (before is not None and before.live),
        )


def _past(member: Member, now: float) -> bool:
    return not member.live and member.since + LINGER <= now


def _order(said: Announcement) -> tuple[int, int, str]:
    """The boot decides between two daemons with one id and one incarnation: any way, but everywhere the same."""
    return (*said.order, said.boot)


def _worse(one: Down, other: Down) -> bool:
    """Whether it is news after the other: closed is definite, silent is not."""
    return (one.incarnation, one.state is BranchState.CLOSED) > (other.incarnation, other.state is BranchState.CLOSED)
