"""Whether this is the state folder that the branch was made in, on the machine that it was made on.

A copy of it (a cloned image, a restored backup) has the id of the original and its placed instances. Two branches with
one id cannot live in one neighbourhood, so with a broker a branch that finds a difference does not start until a person
says which of the two it is. A branch without a broker starts, and says so: it meets nobody; but what it remembers stays
as it was, so that the question is asked when it joins.

What differs honestly: a fact that is missing on either side (containers have no machine id, users may not read the
hardware's) is no difference. What counts although it may be honest: the system was installed anew around the folder, or
the folder was moved by copying it. That is what --same-machine is for.

Pure decisions; the marks are read by adapters/identity.py.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum

from msgspec.structs import replace

from branchd.branch.records import Change, Put, Remember, RemoveInstance, Snapshot
from branchd.core.errors import Fatal

#: fact of the store: the branch's id, where it was drawn anew
BRANCH_ID = "branch-id"


class Mark(StrEnum):
    """What a state folder is known by; the values are names of facts in the store."""

    MACHINE = "mark.machine-id"
    HARDWARE = "mark.product-uuid"
    FILE_SYSTEM = "mark.file-system"
    FOLDER = "mark.inode"


_WORDS = {
    Mark.MACHINE: "the machine's id (/etc/machine-id)",
    Mark.HARDWARE: "the hardware's id (DMI product uuid)",
    Mark.FILE_SYSTEM: "the file system of the state folder",
    Mark.FOLDER: "the state folder's inode",
}


class Answer(StrEnum):
    """What a person says of a state folder that looks like a copy."""

    NEW_ID = "new-id"  #: the original lives on: this one becomes a branch of its own
    SAME_MACHINE = "same-machine"  #: this one is the original, or takes its place


def branch_id(snapshot: Snapshot) -> str:
    return snapshot.facts.get(BRANCH_ID, snapshot.branch_id)


def differences(facts: Mapping[str, str], marks: Mapping[Mark, str]) -> list[str]:
    """In words; facts that are missing on either side are none."""
    return [_WORDS[mark] for mark in Mark if facts.get(mark) and mark in marks and facts[mark] != marks[mark]]


def settle(
    snapshot: Snapshot, marks: Mapping[Mark, str], answer: Answer | None, joins: bool, new_id: str
) -> tuple[list[Change], str]:
    """What to write before anything is started, and a warning or "". `joins`: a broker is configured. Fatal."""
    changes: list[Change] = []
    different = differences(snapshot.facts, marks)
    if different and answer is None:
        what = f"this state folder is a copy, or its machine was replaced: {_listed(different)}"
        if joins:
            raise Fatal(
                f"{what} not as remembered",
                "where the original lives on: `branchd run --new-id`, once; it makes a branch of its own, with the "
                "pinned instances and without the placed ones. Where the original is gone, or this is it: "
                "`branchd run --same-machine`, once",
            )
        return [], f"{what} not as remembered; with a broker it will not start without --new-id or --same-machine"
    if answer is Answer.NEW_ID:
        changes.extend(_as_another(snapshot, new_id))
    # What cannot be read here is forgotten only by an answer: it is the same machine otherwise.
    known = {**{mark: "" for mark in Mark if answer is not None}, **marks}
    changes.extend(Remember(mark, value) for mark, value in known.items() if snapshot.facts.get(mark, "") != value)
    return changes, ""


def _as_another(snapshot: Snapshot, new_id: str) -> Iterator[Change]:
    """Another branch, with the definitions, tokens and pinned instances.

    Placed instances are the original's: their requests make nothing here. No process is known: on the same machine
    those that are in the records belong to the original.
    """
    yield Remember(BRANCH_ID, new_id)
    for instance in snapshot.instances:
        yield RemoveInstance(instance.key)  # with its run
        if instance.placed is None:
            yield Put(instance)
    placed = {(it.key.app, it.key.name) for it in snapshot.instances if it.placed is not None}
    for outcome in snapshot.outcomes:
        if (outcome.app, outcome.instance) in placed:
            yield Put(replace(outcome, ended=True))


def _listed(words: list[str]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} and {last} are" if rest else f"{last} is"
