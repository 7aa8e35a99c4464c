"""Other branches, as values: who one is, and what it says of itself.

What is believed of them stands in roster.py, how they are watched in presence.py.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import field

from branchd.core.faults import NAME
from branchd.core.value import Value
from branchd.core.values import Key

#: incarnations, sequences and slots: what a store and a JSON reader can count
MOST = 1 << 53

#: incarnations of which somebody may say that they ended: enough are left above to say that they did not
MOST_ENDED = 1 << 52

#: labels of a branch, and characters of a text that it says of itself
MOST_LABELS, LONGEST = 100, 255


class Address(Value, order=True):
    """One life of one branch: its id stays, its boot is drawn at each start of its daemon."""

    id: str
    boot: str


def inbox(branch: str) -> str:
    """The routing key of what is for the branch with that id."""
    return f"b.{branch}"


def placed_key(key: Key) -> str:
    """The routing key that the one branch holds which has that placed instance."""
    return f"i.{key}"


def pinned_key(key: Key) -> str:
    """The routing key that every branch holds which has a pinned instance of that name."""
    return f"n.{key}"


class BranchState(StrEnum):
    UP = "up"
    DRAINING = "draining"  #: takes nothing new
    SILENT = "silent"  #: it should answer, and does not
    CLOSED = "closed"  #: it said that it goes, or nobody holds its inbox


class Announcement(Value):
    """What a branch says of itself. The later of two is the one with the higher (incarnation, sequence)."""

    id: str
    boot: str
    name: str
    incarnation: int  #: raised at each start and by refutation, never lowered
    sequence: int  #: of the announcement within the incarnation
    state: BranchState
    at: float  #: seconds since 1970, by its own clock
    slots: int
    reserved: int
    version: str  #: of branchd
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None  #: of its API

    @property
    def peer(self) -> Address:
        return Address(self.id, self.boot)

    @property
    def order(self) -> tuple[int, int]:
        return self.incarnation, self.sequence


class Down(Value):
    """A branch's life that somebody found ended; it refutes with a higher incarnation."""

    id: str
    incarnation: int
    state: BranchState  #: CLOSED or SILENT


def credible(said: Announcement | Down) -> bool:
    """Whether a branch can have said so: what has the key may lie, and what it says is kept, shown and counted on."""
    if isinstance(said, Down):
        ended = said.state in (BranchState.CLOSED, BranchState.SILENT)
        return ended and NAME.fullmatch(said.id) is not None and 0 <= said.incarnation < MOST_ENDED
    texts = (said.version, said.address or "", *said.labels.values())
    return (
        all(NAME.fullmatch(name) for name in (said.id, said.boot, said.name, *said.labels))
        and all(0 <= number < MOST for number in (said.incarnation, said.sequence, said.slots, said.reserved))
        and len(said.labels) <= MOST_LABELS
        and all(len(text) <= LONGEST and text.isprintable() for text in texts)
        and said.state is not BranchState.SILENT
    )
