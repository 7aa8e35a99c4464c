from hypothesis import given
from hypothesis import strategies as st

from branchd.core.digests import differing
from branchd.core.peers import Announcement, BranchState, Down
from branchd.core.roster import LINGER, Roster

UP, CLOSED, SILENT = BranchState.UP, BranchState.CLOSED, BranchState.SILENT


def announcement(id="a", incarnation=1, sequence=1, *, boot="", name="", state=UP):
    boot = boot or f"boot{incarnation}"
    return Announcement(id, boot, name or id, incarnation, sequence, state, 0.0, 4, 0, "1")


def roster(*said, now=0.0):
    known = Roster()
    for one in said:
        known = known.observe(one, now)
    return known


@st.composite
def sayings(draw):
    id, incarnation = draw(st.sampled_from("ab")), draw(st.integers(1, 4))
    if draw(st.booleans()):
        return Down(id, incarnation, draw(st.sampled_from([CLOSED, SILENT])))
    sequence = draw(st.integers(1, 4))
    # A daemon says one thing under one number; two daemons with one id and incarnation may say two.
    boot = f"{incarnation}{draw(st.sampled_from('xy'))}"
    return announcement(id, incarnation, sequence, boot=boot, state=CLOSED if sequence == 4 else UP)


@given(st.data(), st.lists(sayings(), max_size=12))
def test_in_whatever_order_and_however_often_the_same_is_believed(data, said):
    again = data.draw(
        st.permutations(said + data.draw(st.lists(st.sampled_from(said), max_size=5) if said else st.just([])))
    )
    one, other = roster(*said), roster(*again)
    assert one == other
    assert one.digests.texts() == other.digests.texts()


@given(st.lists(sayings(), max_size=12), sayings())
def test_a_lower_incarnation_is_never_acted_upon(said, late):
    before = roster(*said)
    after = before.observe(late, 9.0)
    if late.incarnation < before.incarnation(late.id):
        one, other = before.get(late.id), after.get(late.id)
        if one is not None:
            assert other.state is one.state
            assert other.incarnation == one.incarnation
        else:  # known as ended only: now its name is known too
            assert other is None or not other.live
    assert after.incarnation(late.id) == max(before.incarnation(late.id), late.incarnation)


@given(st.lists(sayings(), max_size=12))
def test_how_many_are_live_and_the_digests_are_what_a_count_gives(said):
    known = roster(*said)
    assert known.live == sum(member.live for member in known)
    assert known.digests == roster(*(part for one in known for part in (one.announcement, one.down) if part)).digests


def test_an_old_announcement_does_not_revive_a_closed_branch_and_its_next_life_does():
    known = roster(announcement(sequence=7), Down("a", 1, CLOSED))
    assert known.observe(announcement(sequence=8), 1.0).get("a").state is CLOSED
    assert known.observe(announcement(incarnation=2), 1.0).get("a").live


def test_a_branch_that_was_heard_of_only_after_its_end_is_not_live():
    assert roster(Down("a", 3, CLOSED), announcement(incarnation=3)).get("a").state is CLOSED


def test_who_said_that_it_goes_is_closed_and_not_silent_for_those_who_miss_it():
    assert roster(announcement(state=CLOSED, sequence=2), Down("a", 1, SILENT)).get("a").state is CLOSED


def test_silent_becomes_closed_and_not_the_other_way():
    known = roster(announcement(), Down("a", 1, SILENT))
    assert known.get("a").state is SILENT
    known = known.observe(Down("a", 1, CLOSED), 1.0)
    assert known.get("a").state is CLOSED
    assert known.observe(Down("a", 1, SILENT), 2.0) is known


def test_what_is_no_news_gives_the_same_roster():
    known = roster(announcement(sequence=2))
    assert known.observe(announcement(sequence=2), 5.0) is known
    assert known.observe(announcement(sequence=1), 5.0) is known
    assert known.sweep(5.0) is known


def test_an_ended_branch_is_forgotten_after_a_while_and_stragglers_do_not_bring_it_back():
    known = roster(announcement(), announcement("b"), Down("a", 1, CLOSED), now=100.0)
    assert known.sweep(99.0 + LINGER).get("a") is not None
    known = known.sweep(100.0 + LINGER)
    assert known.get("a") is None
    assert known.get("b").live  # how long ever it says nothing: whether it is there its watchers tell
    assert known.digests == roster(announcement("b")).digests
    returned = known.observe(announcement(sequence=9), 101.0 + LINGER)
    assert not returned.get("a").live
    assert returned.sweep(102.0 + LINGER).get("a") is None
    assert known.observe(announcement(incarnation=2), 101.0 + LINGER).get("a").live
    assert not known.sweep(100.0 + 2 * LINGER).ended


def test_what_was_learned_late_ages_as_if_it_had_been_heard_at_its_time():
    learned = roster(Down("a", 1, CLOSED), announcement(), now=1000.0 - LINGER / 2)
    assert learned.get("a").since == 1000.0 - LINGER / 2
    assert learned.sweep(1000.0 + LINGER / 2).get("a") is None


def test_what_waits_for_the_sweep_is_told_to_nobody():
    known = roster(announcement(), announcement("b"), Down("a", 1, CLOSED), now=100.0)
    assert {member.id for member in known.entries(range(256), 99.0 + LINGER)} == {"a", "b"}
    assert {member.id for member in known.entries(range(256), 100.0 + LINGER)} == {"b"}


def test_who_said_goodbye():
    assert roster(announcement(state=CLOSED)).get("a").said_goodbye
    assert roster(announcement(state=CLOSED), Down("a", 1, CLOSED)).get("a").said_goodbye
    assert not roster(announcement(), Down("a", 1, CLOSED)).get("a").said_goodbye
    assert not roster(announcement(state=CLOSED), Down("a", 2, CLOSED)).get("a").said_goodbye


def test_two_live_branches_with_one_name_are_namesakes():
    known = roster(announcement(name="web"), announcement("b", name="web"), announcement("c"))
    assert known.namesakes() == {"web": ("a", "b")}
    assert known.observe(Down("b", 1, CLOSED), 1.0).namesakes() == {}


def test_rosters_differ_in_the_buckets_of_what_differs():
    known = roster(*(announcement(f"branch-{number}") for number in range(1000)))
    other = known.observe(announcement("branch-7", sequence=2), 1.0)
    (bucket,) = differing(known.digests.texts(), other.digests.texts())
    assert "branch-7" in {member.id for member in known.entries([bucket], 1.0)}
    assert differing(known.digests.texts(), known.digests.texts()) == ()
