"""What must be true of a neighbourhood at any time, and when it is quiet: looked at from the outside.

The numbers are those of the invariants of the mesh's design. 8 is measured by the tables of presence, 7 and 9 by tests
of their own. `check()` is called at every step, `check_quiet()` when nothing was disturbed for long enough.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from branchd.branch.records import AppRecord, Change, InstanceRecord, Put, Snapshot
from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.core.values import Identity, Key
from tests.simulation.machine import Machine


@dataclass
class Created:
    """A create that was answered with 201."""

    key: Key
    asked: float
    answered: float
    through: int  #: number of the machine
    deleted: float | None = None  #: when its deletion was asked for


@dataclass
class Witness:
    machines: list[Machine] = field(default_factory=list)
    created: list[Created] = field(default_factory=list)
    disturbed: float = float("-inf")  #: when a branch or the broker was last hurt or healed
    _going: set[Key] = field(default_factory=set)  #: whose deletion was asked for, and none was made since
    _gone: set[Key] = field(default_factory=set)  #: whose deletion was confirmed, and none was asked for since
    _made: Counter[tuple[int, str]] = field(default_factory=Counter)  #: by machine and request
    _deleted: set[str] = field(default_factory=set)  #: requests whose instance an operator deleted
    _incarnations: dict[tuple[int, int, str], int] = field(default_factory=dict)
    _stamps: dict[tuple[int, EntryKind, str, str], Stamp] = field(default_factory=dict)
    _pinned: dict[tuple[int, Key], Identity] = field(default_factory=dict)

    def watch(self, machine: Machine) -> None:
        self.machines.append(machine)
        machine.on_commit.append(self._committed)

    # As it happens

    def _committed(self, machine: Machine, before: Snapshot, changes: tuple[Change, ...]) -> None:
        known = {record.key: record for record in before.instances}
        for change in changes:
            match change:
                case Put(InstanceRecord(key=key, placed=placed)) if placed is not None and key not in known:
                    self._accepted(machine, before, key, placed.request)
                case Put(InstanceRecord(key=key, placed=placed, deleting=True)) if placed and key in self._going:
                    self._deleted.add(placed.request)
                case Put(Entry() as entry):
                    self._wrote(machine, entry)

    def _accepted(self, machine: Machine, before: Snapshot, key: Key, request: str) -> None:
        self._made[machine.number, request] += 1
        assert self._made[machine.number, request] == 1, f"3: request {request} made {key} twice on {machine.name}"
        assert request not in self._deleted, f"6: {key} came back on {machine.name} after it was deleted"
        taken = sum(weights(machine.store.load()).values())
        assert taken <= machine.slots, f"1: {key} on {machine.name} takes it to {taken} of {machine.slots} slots"

    def _wrote(self, machine: Machine, entry: Entry) -> None:
        place = machine.number, entry.kind, entry.app, entry.name
        older = self._stamps.get(place)
        assert older is None or older <= entry.stamp, f"6: {entry} over {older} on {machine.name}"
        self._stamps[place] = entry.stamp

    # What was asked for

    def asks(self, key: Key) -> None:
        self._gone.discard(key)

    def deletes(self, key: Key) -> None:
        self._going.add(key)
        for created in self.created:
            if created.key == key and created.deleted is None:
                created.deleted = now()

    def has_deleted(self, key: Key) -> None:
        self._gone.add(key)

    def has_created(self, created: Created) -> None:
        """10: of two creates of one name that ran at the same time, or one after the other undisturbed, one is made."""
        for other in self.created:
            if other.key != created.key or other.answered <= self.disturbed:
                continue
            over = other.deleted is not None and other.deleted <= created.answered
            assert over, f"10: {created.key} was made twice: {other}, {created}"
        self._going.discard(created.key)
        self.created.append(created)

    def pin(self, machine: Machine, key: Key) -> None:
        """From now on its process is the one that it has now."""
        self._pinned[machine.number, key] = _identity(machine, key)

    def unpin(self, machine: Machine) -> None:
        """Its power was cut."""
        self._pinned = {place: identity for place, identity in self._pinned.items() if place[0] != machine.number}

    # At every step

    def check(self) -> None:
        self._nothing_accepted_is_lost()
        self._incarnations_rise()
        for (number, key), identity in self._pinned.items():
            assert _identity(self.machines[number], key) == identity, f"11: pinned {key} was stopped or restarted"
        for machine in self.machines:
            doubled = [key for key, times in Counter(machine.running()).items() if times > 1]
            assert not doubled, f"two processes of {doubled} on {machine.name}"

    def _nothing_accepted_is_lost(self) -> None:
        held = {record.key for machine in self.machines for record in machine.store.load().instances}
        lost = {created.key for created in self.created} - self._going - held
        assert not lost, f"2: accepted and lost: {lost}"

    def _incarnations_rise(self) -> None:
        for machine in self.machines:
            if machine.ready:
                for branch, incarnation in machine.entrance.incarnations().items():
                    place = machine.number, machine.lives, branch
                    older = self._incarnations.get(place, incarnation)
                    assert older <= incarnation, f"4: {machine.name} went back from {older} to {incarnation}: {branch}"
                    self._incarnations[place] = incarnation

    # When it is quiet

    def check_quiet(self) -> None:
        """5 and 6, of the machines that are up; all of them must be connected. AssertionError says what is not so."""
        up = [machine for machine in self.machines if machine.ready]
        assert all(machine.connected for machine in up), [machine.state for machine in up]
        self._names_run_once(up)
        self._all_agree(up)

    def _names_run_once(self, up: Iterable[Machine]) -> None:
        running: defaultdict[Key, list[str]] = defaultdict(list)
        wanted: set[Key] = set()
        for machine in up:
            records = [record for record in machine.store.load().instances if record.placed is not None]
            placed = {record.key for record in records}
            wanted |= {record.key for record in records if not record.deleting}
            for key in machine.running():
                if key in placed:
                    running[key].append(machine.name)
        doubled = {str(key): where for key, where in running.items() if len(where) > 1}
        assert not doubled, f"5: running more than once: {doubled}"
        assert not (gone := self._gone & running.keys()), f"6: deleted and running: {gone}"
        assert not (missing := wanted - running.keys()), f"5: not running: {missing}"

    def _all_agree(self, up: list[Machine]) -> None:
        everybody = frozenset(machine.id for machine in up)
        for machine in up:
            believed = machine.entrance.believed()
            assert believed == everybody, f"5: {machine.name} holds {sorted(believed)} for up, not {sorted(everybody)}"
        definitions: dict[str, Any] = {machine.name: machine.store.load().entries for machine in up}
        assert len(set(map(repr, definitions.values()))) <= 1, f"5: definitions differ: {definitions}"


def weights(snapshot: Snapshot) -> dict[Key, int]:
    """Slots that each instance takes, pinned ones too."""
    apps: dict[str, Any] = {record.name: record.spec for record in snapshot.apps if isinstance(record, AppRecord)}
    for entry in snapshot.entries:
        if entry.kind is EntryKind.APP and entry.value is not None:
            apps.setdefault(entry.app, entry.value)
    return {
        record.key: record.spec.get("weight", apps.get(record.key.app, {}).get("weight", 1))
        for record in snapshot.instances
    }


def now() -> float:
    return asyncio.get_running_loop().time()


def _identity(machine: Machine, key: Key) -> Identity:
    identities = [process.identity for process in machine.processes.running.values() if process.key == key]
    assert len(identities) == 1, f"11: pinned {key} has {len(identities)} processes on {machine.name}"
    return identities[0]
