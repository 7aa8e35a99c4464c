import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from branchd.core.digests import point
from branchd.core.peers import BranchState, Down
from branchd.core.presence import (
    COMPARE_EVERY,
    DOUBTED_FOR,
    EXCUSED_FOR,
    MISSED_FOR,
    SETTLED_AFTER,
    VANISH_WITHIN,
    Guard,
    News,
    ahead,
    doors,
    due,
    joining_wait,
    material,
    news,
    period,
)
from branchd.core.ring import PERIOD, RETRY, TRIES, WATCHED, Ring, Watch
from tests.core.test_roster import announcement, roster

CLOSED, SILENT = BranchState.CLOSED, BranchState.SILENT
SIZES = pytest.mark.parametrize("branches", [2, 10, 400, 1000, 10_000])


@SIZES
def test_the_budget_is_two_background_deliveries_a_second(branches):
    announced = branches / period(branches)
    watched = 2 * WATCHED / PERIOD  # the pings of its watchers, and the pongs of those that it watches
    compared = 2 / COMPARE_EVERY
    assert announced <= 1.0  # for two branches; from 4 on:
    assert branches < 4 or announced <= 0.5
    assert announced + watched + compared <= 2.0 or branches < 4


def test_the_goals_leave_time_for_the_look_at_oneself_and_the_delivery():
    assert PERIOD <= 5 - 1
    assert PERIOD + TRIES * RETRY <= 11 - 1


@SIZES
@given(chance=st.floats(0, 0.999))
def test_an_announcement_is_due_after_a_period_and_an_early_one_after_a_quarter(branches, chance):
    after = due(100.0, branches, chance, early=False) - 100.0
    assert 0.9 * period(branches) <= after * (1 + 1e-9)
    assert after <= 1.1 * period(branches)
    assert due(100.0, branches, chance, early=True) == 100.0 + period(branches) / 4


@pytest.mark.parametrize(("branches", "longest"), [(1, 0.02), (10, 0.5), (100, 5), (10_000, 500)])
def test_joiners_spread(branches, longest):
    assert joining_wait(branches, 1.0) == pytest.approx(longest)


def test_what_is_material():
    said = announcement()
    assert not material(said, replace(said, sequence=9, at=99.0))
    assert material(said, replace(said, state=BranchState.DRAINING))
    assert material(said, replace(said, labels={"zone": "b"}))
    assert material(said, replace(said, reserved=1))
    assert not material(replace(said, slots=100), replace(said, slots=100, reserved=9))


@pytest.mark.parametrize("branches", [1, 10, 400, 10_000])
def test_a_joiner_finds_somebody_behind_one_of_the_doors_and_few(branches):
    held = [set(doors(point(f"branch-{number}"))) for number in range(branches)]
    asked = []
    for joiner in range(20):
        holders = next(
            found for door in doors(point(f"joiner-{joiner}")) if (found := sum(door in one for one in held))
        )
        asked.append(holders)
    assert max(asked) <= 40


def test_each_branch_is_watched_by_two_and_watches_two():
    known = roster(*(announcement(f"branch-{number}") for number in range(50)))
    watched = [id for member in known for id in Ring.of(known).watched_by(member.id)]
    assert sorted(watched) == sorted([member.id for member in known] * 2)


def test_few_branches_watch_each_other_and_nobody_watches_itself():
    assert Ring.of(roster(announcement())).watched_by("a") == ()
    assert Ring.of(roster(announcement(), announcement("b"))).watched_by("a") == ("b",)
    assert set(Ring.of(roster(announcement("b"), announcement("c"))).watched_by("me")) == {"b", "c"}


def test_the_closed_are_watched_no_more_and_the_silent_beside_two_live_ones():
    known = roster(*(announcement(f"branch-{number}") for number in range(9)))
    first, second = Ring.of(known).watched_by("me")
    silent = Ring.of(known.observe(Down(first, 1, SILENT), 1.0)).watched_by("me")
    assert silent[:2] == (first, second)
    assert len(silent) == 3
    closed = Ring.of(known.observe(Down(first, 1, CLOSED), 1.0)).watched_by("me")
    assert closed == silent[1:]


def live(watch, until, answers):
    """Runs it; when what was pinged, and when what was missing."""
    pings, missing, now = [], [], watch.wake
    while (now := watch.wake) < until:
        turn = watch.tick(now, ["a"])
        pings += [now] * len(turn.pings)
        missing += [now] * len(turn.missing)
        if turn.pings and answers(now):
            watch.pong("a")
    return pings, missing


def test_who_answers_is_pinged_once_a_period():
    pings, missing = live(Watch(0.0, 0.5), 30.0, lambda _: True)
    assert pings == [2.0 + PERIOD * turn for turn in range(7)]
    assert not missing


def test_who_does_not_answer_is_pinged_again_and_then_missing():
    _, missing = live(Watch(0.0, 0.0), 20.0, lambda now: now < 1.0)
    assert missing[0] == PERIOD + TRIES * RETRY


def test_one_pong_of_four_is_enough():
    answered = PERIOD + (TRIES - 1) * RETRY
    assert not live(Watch(0.0, 0.0), 60.0, lambda now: now % (2 * PERIOD) == answered % (2 * PERIOD) or now < 1)[1]


def test_a_watcher_that_stood_still_itself_begins_anew():
    watch = Watch(0.0, 0.0)
    assert len(live(watch, TRIES * RETRY, lambda _: False)[0]) == TRIES
    assert watch.tick(1000.0, ["a"]).missing == ()
    assert watch.wake < 1000.0 + PERIOD


def test_who_is_not_watched_any_more_is_not_missing():
    watch = Watch(0.0, 0.0)
    assert len(live(watch, TRIES * RETRY, lambda _: False)[0]) == TRIES
    assert watch.tick(watch.wake, ["b"]).missing == ()


def test_what_operators_are_told():
    up, again = announcement(), announcement(incarnation=2, boot="boot1")

    def told(*said):
        return news(roster(*said[:-1]).get("a"), roster(*said).get("a"))

    assert told(up) is News.JOINED
    assert told(up, announcement(sequence=2)) is None
    assert told(up, announcement(sequence=2, state=CLOSED)) is News.LEFT
    assert told(up, Down("a", 1, CLOSED)) is News.LEFT
    assert told(up, Down("a", 1, SILENT)) is News.SILENT
    assert told(up, Down("a", 1, SILENT), Down("a", 1, CLOSED)) is News.LEFT
    assert told(up, Down("a", 1, SILENT), again) is News.RETURNED
    assert told(up, Down("a", 1, CLOSED), again) is News.RETURNED
    assert told(up, Down("a", 1, CLOSED), announcement(incarnation=2)) is News.JOINED
    assert told(announcement(state=CLOSED)) is None


def vanish(guard, many, of, now=100.0):
    for number in range(many):
        guard.vanished(f"branch-{number}", of - number - 1, now + number / 100)
    return of - many


@pytest.mark.parametrize(
    ("many", "of", "doubted"),
    [(2, 3, False), (3, 10, False), (4, 10, True), (3, 5, True), (30, 100, False), (31, 100, True)],
)
def test_mass_disappearance_is_doubted(many, of, doubted):
    guard = Guard()
    left = vanish(guard, many, of)
    assert bool(guard.reason(left, 101.0)) is doubted


def test_those_that_vanish_one_after_the_other_are_believed_gone():
    guard = Guard()
    for number in range(9):
        guard.vanished(f"branch-{number}", 9 - number, number * VANISH_WITHIN)
        assert guard.reason(9 - number, number * VANISH_WITHIN) == ""


def test_doubt_ends_when_they_return_or_after_a_time_or_by_an_operator():
    guard = Guard()
    left = vanish(guard, 5, 10)
    assert "5 of 10" not in guard.reason(left, 101.0)  # it began with the fourth
    assert "4 of 10 branches vanished" in guard.reason(left, 101.0 + DOUBTED_FOR / 2)
    guard.returned("branch-0")
    guard.returned("branch-1")
    assert guard.reason(left + 2, 110.0) == ""

    left = vanish(guard, 5, 10, 200.0)
    assert 99.0 < guard.lasts(100.0 + DOUBTED_FOR) < 101.0
    assert guard.reason(left, 199.0 + DOUBTED_FOR)
    assert guard.reason(left, 201.0 + DOUBTED_FOR) == ""
    assert guard.lasts(201.0 + DOUBTED_FOR) == 0

    guard = Guard()
    left = vanish(guard, 5, 10, 900.0)
    assert guard.reason(left, 901.0)
    guard.confirm([], 901.0)
    assert guard.reason(left, 901.0) == ""


@pytest.mark.parametrize("confirmed", [True, False])
def test_those_that_have_not_answered_since_are_no_reason_to_doubt_again(confirmed):
    guard = Guard()
    left = vanish(guard, 40, 100)
    now = 101.0 if confirmed else 101.0 + DOUBTED_FOR
    if confirmed:
        guard.confirm([], now)
    assert guard.reason(left, now) == ""
    for number in range(40, 80):
        guard.vanished(f"branch-{number}", 99 - number, now + 1)
        assert guard.reason(99 - number, now + 1) == ""
    for number in range(90, 99):
        guard.answered(f"branch-{number}")
        guard.vanished(f"branch-{number}", 110 - number, now + 2)
    assert "vanished" in guard.reason(11, now + 2)

    again = Guard()
    again.confirm([], now)
    left = vanish(again, 40, 100, now + EXCUSED_FOR)
    assert "vanished" in again.reason(left, now + EXCUSED_FOR + 1)


def test_who_is_missed_and_for_how_long():
    guard, down = Guard(), Down("a", 1, CLOSED)
    closed = roster(announcement(), down, now=100.0).get("a")
    assert not guard.misses(roster(announcement()).get("a"), 0.0)
    assert guard.misses(roster(announcement(), Down("a", 1, SILENT)).get("a"), 2 * MISSED_FOR)
    assert not guard.misses(roster(announcement(state=CLOSED)).get("a"), 0.0)
    assert not guard.misses(roster(announcement(state=CLOSED, sequence=2), down).get("a"), 0.0)
    assert guard.misses(closed, 99.0 + MISSED_FOR)
    assert not guard.misses(closed, 100.0 + MISSED_FOR)
    guard.confirm(["a"], 100.0)
    assert not guard.misses(closed, 101.0)
    guard.returned("a")
    assert guard.misses(closed, 101.0)


def test_after_a_lost_connection_nothing_is_concluded_for_a_while():
    guard = Guard()
    assert guard.reason(5, 0.0) == ""
    guard.reconnected(10.0)
    assert "lost its connection" in guard.reason(5, 9.0 + SETTLED_AFTER)
    assert guard.reason(5, 10.0 + SETTLED_AFTER) == ""


@pytest.mark.parametrize(
    ("mine", "theirs", "offset"),
    [(100.0, [], 0.0), (700.0, [100.0, 101.0], 599.0), (100.0, [700.0, 101.0, 99.0], -0.5)],
)
def test_a_clock_is_compared_with_the_median_of_all(mine, theirs, offset):
    assert ahead(mine, theirs) == pytest.approx(offset)
