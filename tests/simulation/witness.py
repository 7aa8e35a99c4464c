"""What must be true of a neighbourhood at any time, and when it is quiet: looked at from the outside.

The numbers are those of the invariants of the mesh's design. 8 is measured by the tables of presence, 7 and 9 by tests
of their own. `check()` is called at every step, `check_quiet()` when nothing was disturbed for long enough.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from branchd.branch.records import AppRecord, Change, InstanceRecord, Put, Snapshot
from branchd.core.lifecycle import State
from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.core.values import Identity, Key
from tests.simulation.machine import Machine

#: seconds within which an offer is judged and committed
JUDGED = 5.0


@dataclass
class Created:
    """A create that was answered with 201."""

    key: Key
    asked: float
    answered: float
    through: int  #: number of the machine
    request: str | None = None  #: Idempotency-Key
    deleted: float | None = None  #: when its deletion was asked for


@dataclass
class Witness:
    machines: list[Machine] = field(default_factory=list)
    created: list[Created] = field(default_factory=list)
    disturbed: float = float("-inf")  #: when a branch or the broker was last hurt or healed
    _going: dict[Key, float] = field(default_factory=dict)  #: when its deletion was asked for, and none made since
    _mortal: set[str] = field(default_factory=set)  #: apps that were deleted with all their instances
    _made: Counter[tuple[int, str]] = field(default_factory=Counter)  #: by machine and request
    _ended: defaultdict[Key, list[str]] = field(default_factory=lambda: defaultdict(list))  #: requests, in order
    _deleted: set[str] = field(default_factory=set)  #: requests whose instance an operator deleted
    _elders: dict[str, str] = field(default_factory=dict)  #: of a replacement's request, that of what it replaces
    _broken: AssertionError | None = None  #: what was found when something was written
    _moved: bool = False  #: something was replaced by something else
    _incarnations: dict[tuple[int, int, str], int] = field(default_factory=dict)
    _stamps: dict[tuple[int, EntryKind, str, str], Stamp] = field(default_factory=dict)
    _pinned: dict[tuple[int, Key], Identity] = field(default_factory=dict)

    def watch(self, machine: Machine) -> None:
        self.machines.append(machine)
        machine.on_commit.append(self._committed)

    def forget(self, machine: Machine) -> None:
        """It is taken away, with all that it had."""
        self.machines.remove(machine)
        self._going |= {record.key: now() for record in machine.kept().instances}

    # As it happens

    def _committed(self, machine: Machine, before: Snapshot, changes: tuple[Change, ...]) -> None:
        # Whoever writes may hide what it raises.
        try:
            self._look_at(machine, before, changes)
        except AssertionError as broken:
            self._broken = self._broken or broken
            raise

    def _look_at(self, machine: Machine, before: Snapshot, changes: tuple[Change, ...]) -> None:
        known = {record.key: record for record in before.instances}
        for change in changes:
            match change:
                case Put(InstanceRecord(key=key, placed=placed)) if placed is not None and key not in known:
                    self._accepted(machine, before, key, placed.request)
                case Put(InstanceRecord(key=key, placed=placed, deleting=True)) if placed and not known[key].deleting:
                    self._ended[key].append(placed.request)
                case Put(Entry() as entry):
                    self._wrote(machine, entry)

    def _accepted(self, machine: Machine, before: Snapshot, key: Key, request: str) -> None:
        self._made[machine.number, request] += 1
        assert self._made[machine.number, request] == 1, f"3: request {request} made {key} twice on {machine.name}"
        assert request not in self._deleted, f"6: {key} came back on {machine.name} after it was deleted"
        for other in self.machines:
            if other.ready and other.entrance.draining():
                for record in other.kept().instances:
                    if record.key == key and record.placed is not None and record.placed.request != request:
                        self._elders[request] = record.placed.request
                        self._moved = True
        kept = machine.kept()
        new = {record.key for record in kept.instances if self._fresh(machine, record)}
        taken = sum(weight for key, weight in weights(kept).items() if key not in new)
        assert taken <= machine.slots, f"1: {key} on {machine.name} takes it to {taken} of {machine.slots} slots"

    def _fresh(self, machine: Machine, record: InstanceRecord) -> bool:
        """Pinned since it was judged, perhaps, whether there is room for another one."""
        return record.placed is None and machine.wall() - record.created_at < JUDGED

    def _wrote(self, machine: Machine, entry: Entry) -> None:
        place = machine.number, entry.kind, entry.app, entry.name
        older = self._stamps.get(place)
        assert older is None or older <= entry.stamp, f"6: {entry} over {older} on {machine.name}"
        self._stamps[place] = entry.stamp

    # What was asked for

    def deletes(self, key: Key) -> int:
        """To be given to has_deleted()."""
        self._going[key] = now()
        for created in self.created:
            if created.key == key and created.deleted is None:
                created.deleted = now()
        return len(self._ended[key])

    def has_deleted(self, key: Key, since: int) -> None:
        self._deleted.update(self._ended[key][since:])

    def buries(self, machine: Machine, app: str) -> None:
        """An app is deleted with all its instances: placed ones everywhere, pinned ones on this machine."""
        self._mortal.add(app)
        self._pinned = {
            place: identity
            for place, identity in self._pinned.items()
            if place[0] != machine.number or place[1].app != app
        }
        for key in {created.key for created in self.created if created.key.app == app}:
            self.deletes(key)

    def deletions(self, app: str) -> int:
        """How often one of its instances was to be deleted, or all were."""
        return sum(key.app == app for key in self._going)

    def has_created(self, created: Created) -> None:
        """10: of two creates of one name that ran at the same time, or one after the other undisturbed, one is made."""
        if self._going.get(created.key, created.asked) > created.asked:
            created.deleted = self._going[created.key]  # before it was answered
        for other in self.created:
            if other.key != created.key or other.answered <= self.disturbed:
                continue
            over = any(one.deleted is not None and one.deleted <= created.answered for one in (other, created))
            assert over, f"10: {created.key} was made twice: {other}, {created}"
        if created.deleted is None:
            self._going.pop(created.key, None)
        self.created.append(created)

    def has_refused(self, key: str) -> None:
        """3: what a request has made is what a retry gets, if nothing happened to it. After a move it is not found."""
        for created in self.created:
            kept = created.deleted is None and created.key.app not in self._mortal and created.answered > self.disturbed
            assert created.request != key or not kept or self._moved, f"3: the retry of {created} found a conflict"

    def pin(self, machine: Machine, key: Key) -> None:
        """From now on its process is the one that it has now."""
        self._pinned[machine.number, key] = _identity(machine, key)

    def pin_running(self, machine: Machine) -> None:
        """Those that were not being stopped when the daemon before this one ended."""
        kept, processes = machine.kept(), machine.running()
        running = {run.key for run in kept.runs if run.machine.state is State.RUNNING and run.key in processes}
        for record in kept.instances:
            pinned = record.placed is None and not record.deleting
            if pinned and record.key in running and (machine.number, record.key) not in self._pinned:
                self.pin(machine, record.key)

    def unpin(self, machine: Machine) -> None:
        """Its power was cut."""
        self._pinned = {place: identity for place, identity in self._pinned.items() if place[0] != machine.number}

    # At every step

    def check(self) -> None:
        if self._broken is not None:
            raise self._broken
        self._nothing_accepted_is_lost()
        self._incarnations_rise()
        for (number, key), identity in self._pinned.items():
            assert _identity(self.machines[number], key) == identity, f"11: pinned {key} was stopped or restarted"
        for machine in self.machines:
            doubled = [key for key, times in Counter(machine.running()).items() if times > 1]
            assert not doubled, f"two processes of {doubled} on {machine.name}"

    def _nothing_accepted_is_lost(self) -> None:
        held = {record.key for machine in self.machines for record in machine.kept().instances}
        lost = {created.key for created in self.created} - self._going.keys() - held
        lost = {key for key in lost if key.app not in self._mortal}
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
        self._no_replica_is_too_many(up)

    def _names_run_once(self, up: Iterable[Machine]) -> None:
        running: defaultdict[Key, list[str]] = defaultdict(list)
        wanted: set[Key] = set()
        for machine in up:
            placed = {record.key: record.placed for record in machine.kept().instances if record.placed}
            wanted |= {record.key for record in machine.kept().instances if record.placed and not record.deleting}
            for key in machine.running():
                if key in placed:
                    running[key].append(machine.name)
                    ancestors = set(self._ancestors(placed[key].request))
                    assert not ancestors & self._deleted, f"6: deleted and running: {key} on {machine.name}"
        doubled = {str(key): where for key, where in running.items() if len(where) > 1}
        assert not doubled, f"5: running more than once: {doubled}"
        assert not (missing := wanted - running.keys()), f"5: not running: {missing}"

    def _ancestors(self, request: str) -> Iterator[str]:
        """It, what it replaced, and so on."""
        while request:
            yield request
            request = self._elders.get(request, "")

    def _all_agree(self, up: list[Machine]) -> None:
        everybody = frozenset(machine.id for machine in up)
        for machine in up:
            believed = machine.entrance.believed()
            assert believed == everybody, f"5: {machine.name} holds {sorted(believed)} for up, not {sorted(everybody)}"
        definitions: dict[str, Any] = {machine.name: machine.kept().entries for machine in up}
        assert len(set(map(repr, definitions.values()))) <= 1, f"5: definitions differ: {definitions}"
        rosters: dict[str, Any] = {machine.name: sorted(machine.entrance.told().items()) for machine in up}
        assert len(set(map(repr, rosters.values()))) <= 1, f"5: rosters differ: {rosters}"

    def _no_replica_is_too_many(self, up: Iterable[Machine]) -> None:
        for machine in up:
            snapshot = machine.kept()
            apps = {entry.app: entry.value for entry in snapshot.entries if entry.kind is EntryKind.APP and entry.value}
            counts = {app: value["spec"]["replicas"] for app, value in apps.items() if "replicas" in value["spec"]}
            for record in snapshot.instances:
                if record.key.app in counts and record.placed is not None and not record.deleting:
                    index = int(record.key.name.rpartition("-")[2])
                    assert index < counts[record.key.app], f"5: {record.key} is one too many, on {machine.name}"


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
