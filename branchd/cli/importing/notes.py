"""What became of what a configuration says: the values of the report. How it is shown stands in report.py."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from branchd.core.value import Value


class Verdict(StrEnum):
    CARRIED = "carried"
    CHANGED = "changed"  #: carried over, and it means something else here, or stands somewhere else
    DROPPED = "dropped"  #: means nothing here, and nothing is lost
    UNSUPPORTED = "unsupported"  #: something is lost
    INVALID = "invalid"  #: cannot be imported as it stands
    LINT = "lint"  #: a trap, whether it was one already or becomes one


#: what keeps an import from being whole
INCOMPLETE = frozenset({Verdict.UNSUPPORTED, Verdict.INVALID})


class Note(Value):
    verdict: Verdict
    keys: tuple[str, ...]  #: of the section; none: it is about the section as a whole
    text: str = ""
    cure: str = ""  #: what to do


class Entry(Value):
    """What became of one section of a configuration, or of one command line."""

    title: str  #: such as "[program:web]"
    file: str
    instances: tuple[str, ...]  #: APP:NAME of each that came of it
    notes: tuple[Note, ...]


class Imported(Value):
    apps: Mapping[str, Mapping[str, Any]]  #: name -> its spec, with `instances` and `queues`
    entries: tuple[Entry, ...]
    started: tuple[str, ...]  #: APP:NAME of those that the source starts by itself, in its order

    @property
    def incomplete(self) -> int:
        """How many things could not be carried over."""
        return sum(note.verdict in INCOMPLETE for entry in self.entries for note in entry.notes)


def once(notes: Iterable[Note]) -> tuple[Note, ...]:
    """Each of them once, those of several keys that say the same as one: a section's processes are much alike."""
    keys: dict[tuple[Verdict, str, str], dict[str, None]] = {}
    for note in notes:
        keys.setdefault((note.verdict, note.text, note.cure), {}).update(dict.fromkeys(note.keys))
    return tuple(Note(verdict, tuple(named), text, cure) for (verdict, text, cure), named in keys.items())
