"""The shared map converges: whatever the order, the grouping and the repetition in which branches learn of writes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from branchd.core.definitions import Shared, key, merge
from branchd.core.digests import differing
from branchd.core.stamps import COUNTER_BITS, MOST_AHEAD, Entry, EntryKind, Stamp, at, credible, observe, tick

APPS = st.sampled_from(["app", "ppa"])
STAMPS = st.builds(Stamp, st.integers(0, 5), st.sampled_from(["one", "two"]))
VALUES = st.none() | st.fixed_dictionaries({"spec": st.dictionaries(st.sampled_from("xy"), st.integers(0, 2))})
ENTRIES = st.builds(Entry, st.just(EntryKind.APP), APPS, st.just(""), STAMPS, VALUES, st.booleans()) | st.builds(
    Entry, st.just(EntryKind.QUEUE), APPS, st.sampled_from(["a", "b"]), STAMPS, VALUES
)
SOME = st.lists(ENTRIES, max_size=12)


def app(name: str, time: int, value: int | None = 0, branch: str = "one") -> Entry:
    return Entry(EntryKind.APP, name, "", Stamp(time, branch), None if value is None else {"spec": {"x": value}})


@given(SOME, SOME, SOME)
def test_merge_is_commutative_associative_and_idempotent(one: list[Entry], two: list[Entry], three: list[Entry]):
    assert merge(one, two) == merge(two, one)
    assert merge(merge(one, two).values(), three) == merge(one, merge(two, three).values())
    assert merge(one, one) == merge(one) == merge(merge(one).values())


@given(st.lists(SOME, max_size=4), st.randoms())
def test_branches_that_learn_in_any_order_know_the_same(batches: list[list[Entry]], random):
    one, two = Shared([]), Shared([])
    for batch in batches:
        one.take(batch)
    again = [*batches, *random.choices(batches, k=len(batches))] if batches else []
    random.shuffle(again)
    for batch in again:
        two.take(reversed(batch))
    assert {key(entry): entry for entry in one} == {key(entry): entry for entry in two} == merge(*batches)
    alive = {entry.app: entry for entry in one if entry.kind is EntryKind.APP and entry.value is not None}
    assert one.apps == two.apps == alive


@given(SOME, SOME)
def test_news_is_what_changes_the_map_and_nothing_else(known: list[Entry], incoming: list[Entry]):
    shared = Shared(known)
    before = {key(entry): entry for entry in shared}
    news = {key(entry): entry for entry in shared.news(incoming)}
    shared.take(incoming)
    after = {key(entry): entry for entry in shared}
    assert news == {name: entry for name, entry in after.items() if before.get(name) != entry}


def test_the_last_writer_wins_and_the_branch_decides_between_equal_times():
    assert merge([app("web", 2, 1), app("web", 1, 2)])[EntryKind.APP, "web", ""].value == {"spec": {"x": 1}}
    tied = merge([app("web", 2, 1, "b"), app("web", 2, 2, "a")])
    assert tied[EntryKind.APP, "web", ""].stamp.branch == "b"


def test_a_tombstone_beats_older_writes_whenever_they_come():
    shared = Shared([app("web", 1), app("web", 3, None)])
    shared.take([app("web", 2)])
    assert "web" not in shared.apps
    shared.take([app("web", 4)])
    assert shared.apps["web"].stamp.time == 4


def test_of_too_many_tombstones_the_oldest_are_to_be_forgotten():
    shared = Shared([app("kept", 0), app("a", 5, None), app("b", 3, None)], most_tombstones=2)
    assert not shared.excess()
    shared.take([app("c", 4, None)])
    assert shared.excess() == ((EntryKind.APP, "b", ""),)
    shared.forget((EntryKind.APP, "b", ""))
    assert sorted(entry.app for entry in shared) == ["a", "c", "kept"]
    assert not shared.excess()


@given(SOME, SOME)
def test_branches_that_exchange_the_buckets_that_differ_know_the_same(one: list[Entry], two: list[Entry]):
    here, there = Shared(one), Shared(two)
    buckets = differing(here.digests.texts(), there.digests.texts())
    here.take(there.within(buckets))
    there.take(here.within(buckets))
    assert here.digests == there.digests
    assert merge(here) == merge(there) == merge(one, two)


@given(SOME)
def test_what_is_forgotten_leaves_no_trace_in_the_digests(entries: list[Entry]):
    shared = Shared(entries)
    for name in [key(entry) for entry in shared]:
        shared.forget(name)
    assert shared.digests == Shared().digests
    assert not list(shared)
    assert not shared.apps


def test_queues_are_found_by_their_app():
    def queue(name: str, time: int, value: dict[str, object] | None) -> Entry:
        return Entry(EntryKind.QUEUE, "web", name, Stamp(time, "one"), value)

    shared = Shared([queue("mail", 1, {"name": "mail"}), queue("news", 1, {"name": "news"}), queue("news", 2, None)])
    assert list(shared.queues("web")) == ["mail"]
    assert not shared.queues("post")


# The clock

WALLS = st.floats(0, 4e9)


@given(WALLS, st.lists(st.tuples(st.floats(-1e5, 1e5), st.integers(0, 2**60)), max_size=20))
def test_each_stamp_is_above_all_that_were_given_or_seen_whatever_the_clock_does(
    start: float, steps: list[tuple[float, int]]
):
    last, times = 0, [0]
    for jump, remote in steps:
        wall = max(0.0, start + jump)
        last = observe(last, remote, wall)
        assert last >= remote or not credible(remote, wall)
        last = tick(last, wall)
        times.append(last)
    assert all(earlier < later for earlier, later in pairwise(times))


@given(WALLS, st.integers(0, 2**62))
def test_no_foreign_stamp_moves_the_clock_by_more_than_the_bound(wall: float, remote: int):
    assert observe(0, remote, wall) <= at(wall + MOST_AHEAD)


def test_a_stamp_is_the_time_of_writing_while_clocks_agree():
    time = tick(0, 1_800_000_000.25)
    assert Stamp(time, "one").wall == 1_800_000_000.25
    assert tick(time, 1_800_000_000.25) == time + 1
    assert at(4e9) < 2**63
    assert COUNTER_BITS == 16


def test_a_stamp_of_a_broken_clock_is_not_believed():
    assert credible(at(1000 + MOST_AHEAD), 1000)
    assert not credible(at(1001 + MOST_AHEAD), 1000)
    assert not credible(-1, 1000)
