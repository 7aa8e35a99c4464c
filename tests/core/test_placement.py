"""One create: whom it asks, whom it is offered to, and what follows from each answer."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from branchd.core.admission import FINAL, Probe, Reason, Refusal, Room, Standing, admit, judge_room
from branchd.core.books import Books
from branchd.core.candidates import Candidates
from branchd.core.capacity import Capacity
from branchd.core.errors import BranchdError, Conflict, NoCapacity, NotFound, OutcomeUnknown, Unavailable
from branchd.core.peers import Announcement, BranchState
from branchd.core.placement import (
    ALL_ASKED,
    DRAWN,
    TRIES,
    Action,
    Answered,
    Ask,
    Cancel,
    Done,
    Event,
    Failed,
    Offer,
    Placement,
    Refused,
    Sign,
    Silent,
)

PROBE = Probe("shop", 1)


def announcement(id: str, slots: int = 8, **labels: str) -> Announcement:
    return Announcement(id, "boot", f"host-{id}", 1, 1, BranchState.UP, 0.0, slots, 0, "1", labels)


def placement(
    branches: Iterable[Announcement], probe: Probe = PROBE, books: Books | None = None, seed: int = 0, **more: object
) -> Placement:
    fitting = Candidates(branches).fitting(probe.constraints)
    return Placement(probe, fitting, books or Books(), Random(seed).random, **more)  # type: ignore[arg-type]


def room(slots: int = 8, reserved: int = 0, load: float = 0.0, siblings: int = 0) -> Room:
    return Room(slots, reserved, load, siblings)


def answered(one: Placement, rooms: dict[str, Room]) -> Action | None:
    """The action after all those answered, who are all that were asked."""
    action = one.begin()
    assert isinstance(action, Ask)
    assert set(action.branches) == rooms.keys()
    last: Action | None = None
    for branch, told in rooms.items():
        assert last is None
        last = one.on(Answered(branch, told))
    return last


def offered(names: str = "abc") -> Placement:
    """One that was offered to the first of these just now."""
    one = placement(map(announcement, names))
    assert answered(one, {name: room(reserved=index) for index, name in enumerate(names)}) == Offer(names[0])
    return one


def failed(action: Action | None) -> BranchdError:
    assert isinstance(action, Failed)
    return action.error


# Whom to ask


@pytest.mark.parametrize(("branches", "asked"), [(1, 1), (ALL_ASKED, ALL_ASKED), (ALL_ASKED + 1, DRAWN), (500, DRAWN)])
def test_all_are_asked_of_up_to_eight_and_three_of_more(branches: int, asked: int) -> None:
    action = placement(announcement(str(number)) for number in range(branches)).begin()
    assert isinstance(action, Ask)
    assert len(set(action.branches)) == len(action.branches) == asked


def test_branches_are_drawn_in_proportion_to_their_slots() -> None:
    branches = [announcement(str(number), slots=1 if number < 50 else 3) for number in range(100)]
    chance = Random(1).random
    fitting = Candidates(branches).fitting({})
    drawn = Counter(branch.slots for _ in range(2000) for branch in fitting.draw(DRAWN, (), chance))
    assert 0.72 < drawn[3] / drawn.total() < 0.77


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 40), st.integers(1, 10), st.integers())
def test_so_many_distinct_branches_are_drawn_as_there_are(
    slots: list[int], excluded: int, count: int, seed: int
) -> None:
    branches = [announcement(str(number), slots=size) for number, size in enumerate(slots)]
    without = {branch.id for branch in branches[:excluded]}
    drawn = {branch.id for branch in Candidates(branches).fitting({}).draw(count, without, Random(seed).random)}
    assert len(drawn) == min(count, len(branches) - len(without))
    assert not drawn & without


def test_only_branches_that_are_up_and_have_the_labels_are_asked() -> None:
    draining = replace(announcement("c", zone="a"), state=BranchState.DRAINING)
    branches = [announcement("a", zone="a"), announcement("b", zone="b"), draining, announcement("d")]
    assert placement(branches, Probe("shop", 1, {"zone": "a"})).begin() == Ask(("a",))


def test_where_no_branch_has_the_labels_that_is_said() -> None:
    error = failed(placement([announcement("a")], Probe("shop", 1, {"zone": "x"})).begin())
    assert isinstance(error, NoCapacity)
    assert "zone=x" in error.detail


def test_for_many_creates_three_branches_each_are_asked_at_once() -> None:
    branches = [announcement(str(number)) for number in range(500)]
    action = placement(branches, creates=20).begin()
    assert isinstance(action, Ask)
    assert len(set(action.branches)) == 20 * DRAWN


def asking(one: Placement, told: Room) -> tuple[list[str], Action | None]:
    """The branches that are asked while all answer the same, and what follows."""
    asked: list[str] = []
    action = one.begin()
    while isinstance(action, Ask):
        asked += action.branches
        for branch in action.branches:
            action = one.on(Answered(branch, told))
    return asked, action


def test_eight_rounds_are_asked_each_of_branches_that_were_not_asked_before() -> None:
    one = placement(announcement(str(number)) for number in range(60))
    asked, action = asking(one, Room(8, 8, 0.0, 0, "no-room: full"))
    assert len(set(asked)) == len(asked) == TRIES * DRAWN
    error = failed(action)
    assert isinstance(error, NoCapacity)
    assert error.detail.endswith("; and 4 more")


def test_it_is_offered_to_eight_branches() -> None:
    one = placement(announcement(str(number)) for number in range(60))
    _, action = asking(one, room())
    targets = []
    while not isinstance(action, Failed):
        if isinstance(action, Ask):
            actions = [one.on(Answered(branch, room())) for branch in action.branches]
            action = actions[-1]
        assert isinstance(action, Offer)
        targets.append(action.target)
        action = one.on(Refused(Refusal(Reason.GUARD, "no")))
    assert len(set(targets)) == len(targets) == TRIES


def test_of_more_values_than_are_asked_chance_decides() -> None:
    branches = [announcement(f"{zone}{number}", zone=zone) for zone in "abcdefghijklmnop" for number in range(3)]
    fitting, chance = Candidates(branches).fitting({}), Random(1).random
    drawn = {branch.labels["zone"] for _ in range(20) for branch in fitting.draw(ALL_ASKED, (), chance, "zone")}
    assert drawn == set("abcdefghijklmnop")


# How long to wait


def test_it_waits_for_all_answers() -> None:
    one = placement(map(announcement, "abc"))
    one.begin()
    assert one.on(Answered("b", room())) is None
    assert one.on(Silent("a", "is not connected")) is None
    assert one.on(Answered("c", room(reserved=1))) == Offer("b")


def test_once_it_has_waited_the_best_of_those_that_answered_is_chosen() -> None:
    one = placement(map(announcement, "abc"))
    one.begin()
    assert one.on(Answered("b", room(reserved=5))) is None
    assert one.on(Sign.WAITED) == Offer("b")
    assert one.on(Answered("a", room())) is None  # too late to be first, but not to be next
    assert one.on(Refused(Refusal(Reason.NO_ROOM, "full"))) == Offer("a")


def test_once_it_has_waited_without_room_it_takes_the_first_that_has_some() -> None:
    one = placement(map(announcement, "abc"))
    one.begin()
    assert one.on(Answered("b", Room(8, 8, 0.0, 0, "no-room: full"))) is None
    assert one.on(Sign.WAITED) is None
    assert one.on(Answered("c", room(reserved=7))) == Offer("c")


def test_each_round_of_asking_is_waited_for() -> None:
    one = placement(announcement(str(number)) for number in range(20))
    ask = one.begin()
    assert isinstance(ask, Ask)
    one.on(Sign.WAITED)
    for branch in ask.branches:
        again = one.on(Answered(branch, Room(8, 8, 0.0, 0, "no-room: full")))
    assert isinstance(again, Ask)
    first, second, third = again.branches
    assert one.on(Answered(first, room(reserved=5))) is None
    assert one.on(Answered(second, room(reserved=1))) is None
    assert one.on(Answered(third, room(reserved=3))) == Offer(second)


# Whom to offer it to


def test_the_least_filled_is_chosen_with_what_is_asked_for() -> None:
    rooms = {"a": room(4, 1), "b": room(16, 5), "c": room(100, 40)}
    branches = [announcement(name) for name in rooms]
    assert answered(placement(branches), rooms) == Offer("b")
    assert answered(placement(branches, Probe("shop", 3)), rooms) == Offer("c")


def test_of_equals_the_idler_is_chosen() -> None:
    rooms = {"a": room(load=2.0), "b": room(load=0.1), "c": room(load=1.0)}
    assert answered(placement(map(announcement, rooms)), rooms) == Offer("b")


def test_what_this_branch_offered_meanwhile_counts() -> None:
    books = Books()
    rooms = {"a": room(8, 0), "b": room(8, 1)}
    branches = [announcement(name) for name in rooms]
    ones = [placement(branches, books=books) for _ in range(4)]
    targets = [action.target for one in ones if isinstance(action := answered(one, rooms), Offer)]
    assert Counter(targets) == {"a": 2, "b": 2} or Counter(targets) == {"a": 3, "b": 1}
    for one, target in zip(ones, targets, strict=True):
        assert one.on(Sign.ACCEPTED) == Done(target)
    held = Counter(targets)
    after = {"a": room(8, held["a"]), "b": room(8, 1 + held["b"])}
    least = min(after, key=lambda name: after[name].reserved)
    assert answered(placement(branches, books=books), after) == Offer(least)  # and is not counted twice


def test_it_is_offered_above_the_slots_only_where_all_others_refused() -> None:
    books = Books()
    books.offer("a", PROBE)  # under way, and may be refused
    rooms = {"a": room(2, 1), "b": room(2, 1)}
    one = placement(map(announcement, rooms), books=books)
    assert answered(one, rooms) == Offer("b")
    assert one.on(Refused(Refusal(Reason.NO_ROOM, "full"))) == Offer("a")


def test_before_that_others_are_asked() -> None:
    books = Books()
    branches = [announcement(str(number)) for number in range(20)]
    for branch in branches:
        books.offer(branch.id, PROBE)
    asked, action = asking(placement(branches, books=books), room(2, 1))
    assert len(asked) == 20
    assert isinstance(action, Offer)


def test_what_was_refused_counts_no_more() -> None:
    books = Books()
    rooms = {"a": room(16), "b": room(9)}
    branches = [announcement(name) for name in rooms]
    one = placement(branches, books=books)
    assert answered(one, rooms) == Offer("a")
    assert one.on(Refused(Refusal(Reason.GUARD, "no"))) == Offer("b")
    assert one.on(Sign.ACCEPTED) == Done("b")
    assert answered(placement(branches, books=books), rooms) == Offer("a")


def test_instances_are_spread_over_the_values_of_a_label() -> None:
    branches = [announcement("a", zone="1"), announcement("b", zone="1"), announcement("c", zone="2")]
    rooms = {"a": room(8, 0, siblings=0), "b": room(8, 7, siblings=2), "c": room(8, 6, siblings=1)}
    assert answered(placement(branches, Probe("shop", 1, spread="zone")), rooms) == Offer("c")
    assert answered(placement(branches), rooms) == Offer("a")


def test_many_at_one_time_are_spread_too() -> None:
    branches = [announcement("a", zone="1"), announcement("b", zone="2"), announcement("c", zone="3")]
    rooms = {"a": room(80), "b": room(8), "c": room(8)}
    probe, books = Probe("shop", 1, spread="zone"), Books()
    first = placement(branches, probe, books)
    actions = [answered(first, rooms)] + [placement(branches, probe, books).begin(known=first) for _ in range(5)]
    assert Counter(actions) == {Offer("a"): 2, Offer("b"): 2, Offer("c"): 2}


def test_one_branch_of_each_value_is_asked_before_a_second() -> None:
    branches = [announcement(f"{zone}{number}", zone=zone) for zone in "abcdef" for number in range(30)]
    action = placement(branches, Probe("shop", 1, spread="zone")).begin()
    assert isinstance(action, Ask)
    assert len(set(action.branches)) == ALL_ASKED
    assert {branch[0] for branch in action.branches} == set("abcdef")


# What follows from an answer


def test_accepted_is_the_end() -> None:
    one = offered()
    assert one.on(Sign.ACCEPTED) == Done("a")
    assert one.on(Answered("b", room())) is None
    assert [(tried.target, tried.result) for tried in one.tries] == [("a", "accepted")]


def test_refused_the_next_best_is_tried_and_in_the_end_all_reasons_are_told() -> None:
    one = offered()
    assert one.on(Refused(Refusal(Reason.NO_ROOM, "full"))) == Offer("b")
    assert one.on(Refused(Refusal(Reason.GUARD, "no memory"))) == Offer("c")
    error = failed(one.on(Refused(Refusal(Reason.DRAINING, "it goes"))))
    assert isinstance(error, NoCapacity)
    assert error.detail == (
        "no branch takes it: host-a: no-room: full; host-b: guard: no memory; host-c: draining: it goes"
    )


@pytest.mark.parametrize("reason", sorted(set(Reason) - FINAL))
def test_most_reasons_are_those_of_one_branch(reason: Reason) -> None:
    assert offered().on(Refused(Refusal(reason, "no"))) == Offer("b")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.NAME_TAKEN, Conflict),
        (Reason.MISMATCH, Conflict),
        (Reason.UNSURE, Unavailable),
        (Reason.TOMBSTONE, NotFound),
    ],
)
def test_what_concerns_the_whole_neighbourhood_ends_it(reason: Reason, kind: type[BranchdError]) -> None:
    assert reason in FINAL
    assert type(failed(offered().on(Refused(Refusal(reason, "no"))))) is kind


def test_who_is_not_connected_is_passed_over() -> None:
    assert offered().on(Sign.NOT_ROUTED) == Offer("b")


def test_after_a_time_out_the_same_target_is_asked_again() -> None:
    one = offered()
    assert one.on(Sign.TIMED_OUT) == Offer("a")
    assert one.on(Sign.ACCEPTED) == Done("a")


@pytest.mark.parametrize("second", [Sign.TIMED_OUT, Sign.NOT_ROUTED])
def test_then_it_is_cancelled_and_only_after_that_another_is_tried(second: Sign) -> None:
    one = offered()
    one.on(Sign.TIMED_OUT)
    assert one.on(second) == Cancel("a")
    assert one.on(Sign.CANCEL_ACKNOWLEDGED) == Offer("b")
    assert one.on(Sign.TIMED_OUT) == Offer("b")  # which has two tries of its own


def test_that_one_target_was_reached_says_nothing_about_the_next() -> None:
    one = offered()
    one.on(Sign.TIMED_OUT)
    one.on(Sign.TIMED_OUT)
    assert one.on(Sign.CANCEL_ACKNOWLEDGED) == Offer("b")
    assert one.on(Sign.NOT_ROUTED) == Offer("c")


def test_where_the_cancel_is_not_acknowledged_the_outcome_is_unknown() -> None:
    one = offered()
    one.on(Sign.TIMED_OUT)
    one.on(Sign.TIMED_OUT)
    assert isinstance(failed(one.on(Sign.CANCEL_UNANSWERED)), OutcomeUnknown)


def test_a_retry_goes_to_the_branch_of_the_first_try_first() -> None:
    one = placement(map(announcement, "abc"), earlier="b")
    assert one.begin() == Offer("b")
    assert one.on(Sign.ACCEPTED) == Done("b")


def test_a_retry_does_not_go_elsewhere_while_the_first_try_may_have_succeeded() -> None:
    one = placement(map(announcement, "abc"), earlier="b")
    one.begin()
    assert one.on(Sign.NOT_ROUTED) == Cancel("b")
    assert isinstance(failed(one.on(Sign.CANCEL_UNANSWERED)), OutcomeUnknown)


def test_a_retry_goes_elsewhere_where_the_first_try_made_nothing() -> None:
    one = placement(map(announcement, "abc"), earlier="b")
    one.begin()
    action = one.on(Refused(Refusal(Reason.CANCELLED, "it was cancelled")))
    assert isinstance(action, Ask)
    assert set(action.branches) == {"a", "c"}


def test_what_nobody_waits_for_any_more_counts_as_offered() -> None:
    books = Books()
    rooms = {"a": room(8), "b": room(8, 1)}
    one = placement(map(announcement, rooms), Probe("shop", 2), books)
    mark = books.mark("a", "")
    assert answered(one, rooms) == Offer("a")
    assert books.since("a", "", mark) == 2
    one.abandon()
    assert books.since("a", "", books.mark("a", "")) == 0  # for it is in what the branch says from now on


# Whatever happens


@dataclass
class World:
    """Branches that answer as chance has it, and creates that are at work at one time."""

    random: Random
    slots: dict[str, int]
    trouble: float
    reserved: Counter[str] = field(default_factory=Counter)
    made: Counter[int] = field(default_factory=Counter)

    def standing(self, branch: str) -> Standing:
        return Standing(Capacity(self.slots[branch], self.reserved[branch]), 0, {})

    def troubled(self) -> bool:
        return self.random.random() < self.trouble

    def probed(self, branch: str, probe: Probe) -> Event:
        if self.troubled():
            return Silent(branch, "does not answer")
        return Answered(branch, judge_room(probe, self.standing(branch)))

    def offered(self, number: int, branch: str, probe: Probe, had: set[str], gone: set[str]) -> Event:
        """`had`: the branches that accepted this create already; `gone`: those that cancelled it for good."""
        if self.troubled() and self.random.random() < 0.5:
            return Sign.NOT_ROUTED
        if branch in gone:
            return Refused(Refusal(Reason.CANCELLED, "it was cancelled"))
        refusal = None if branch in had else admit(probe, self.standing(branch))
        if refusal is None and branch not in had:
            self.reserved[branch] += probe.weight
            self.made[number] += 1
            had.add(branch)
        if self.troubled():
            return Sign.TIMED_OUT
        return Sign.ACCEPTED if refusal is None else Refused(refusal)

    def cancelled(self, number: int, branch: str, probe: Probe, had: set[str], gone: set[str]) -> Event:
        if self.troubled():
            return Sign.CANCEL_UNANSWERED
        gone.add(branch)
        if branch in had:
            had.remove(branch)
            self.reserved[branch] -= probe.weight
            self.made[number] -= 1
        return Sign.CANCEL_ACKNOWLEDGED


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=40),
    st.integers(1, 15),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(0, 2**32),
)
def test_whatever_happens_each_create_ends_once_and_no_branch_is_filled_above_its_slots(
    slots: list[int], creates: int, trouble: float, seed: int
) -> None:
    random = Random(seed)
    world = World(random, {f"b{number}": size for number, size in enumerate(slots)}, trouble)
    candidates = Candidates(announcement(branch, size) for branch, size in world.slots.items())
    books = Books()
    events: list[tuple[int, Event]] = []
    ones = [
        Placement(Probe("shop", random.randint(0, 3)), candidates.fitting({}), books, random.random)
        for _ in range(creates)
    ]
    had: list[set[str]] = [set() for _ in ones]
    gone: list[set[str]] = [set() for _ in ones]
    asks, offers, ends = Counter[int](), [Counter[str]() for _ in ones], {}

    def act(number: int, action: Action | None) -> None:
        one = ones[number]
        match action:
            case Ask(branches):
                asks[number] += 1
                events.extend((number, world.probed(branch, one.probe)) for branch in branches)
                if random.random() < 0.5:
                    events.append((number, Sign.WAITED))
            case Offer(target):
                assert had[number] <= {target}  # never two that may have it
                offers[number][target] += 1
                events.append((number, world.offered(number, target, one.probe, had[number], gone[number])))
            case Cancel(target):
                events.append((number, world.cancelled(number, target, one.probe, had[number], gone[number])))
            case Done() | Failed():
                assert number not in ends
                ends[number] = action

    for number, one in enumerate(ones):
        act(number, one.begin())
    while events:
        number, event = events.pop(random.randrange(len(events)))
        act(number, ones[number].on(event))
        assert all(world.reserved[branch] <= size for branch, size in world.slots.items())

    for number, one in enumerate(ones):
        assert asks[number] <= TRIES
        assert len(offers[number]) <= TRIES
        assert all(times <= 2 for times in offers[number].values())
        match ends[number]:
            case Done(target):
                assert had[number] == {target}
                assert world.made[number] == 1
            case Failed(OutcomeUnknown()):
                assert world.made[number] <= 1
            case Failed(error):
                assert isinstance(error, NoCapacity)
                assert world.made[number] == 0
                told = sum(f"{asked.name}: " in error.detail for asked in one.asked.values())
                more = error.detail.rpartition("; and ")[2].removesuffix(" more")
                assert told + (int(more) if more.isdigit() else 0) == len(one.asked)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=ALL_ASKED), st.integers(1, 5))
def test_among_few_it_is_exactly_the_one_with_the_most_spare_capacity(
    branches: list[tuple[int, int]], weight: int
) -> None:
    standings = {f"b{number}": Standing(Capacity(*pair), 0, {}) for number, pair in enumerate(branches)}
    probe = Probe("shop", weight)
    one = placement((announcement(name, pair.capacity.slots) for name, pair in standings.items()), probe)
    action = answered(one, {name: judge_room(probe, standing) for name, standing in standings.items()})
    levels = {
        name: (standing.capacity.reserved + weight) / standing.capacity.slots
        for name, standing in standings.items()
        if admit(probe, standing) is None
    }
    if levels:
        assert isinstance(action, Offer)
        assert levels[action.target] == min(levels.values())
    else:
        assert isinstance(failed(action), NoCapacity)
