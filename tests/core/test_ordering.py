"""What instances wait for, circles among that, and who is stopped first: rows, and any graph whatever."""

from hypothesis import given
from hypothesis import strategies as st

from branchd.core.ordering import Every, Hold, Standing, Standings, StopOrder, circle, circle_words, dependencies
from branchd.core.values import Key

A, B, C, D = (Key("web", name) for name in "abcd")
EVERYBODY = (A, B, C, D)


def nobody(_key):
    return ()


def standings(**by_name):
    known = Standings()
    for name, standing in by_name.items():
        known.change(Key("web", name), standing)
    return known


def hold(known, *needed):
    """Of `api:x`, which needs these."""
    me = Key("api", "x")
    return known.hold(me, lambda key: needed if key == me else ())


def test_texts_name_an_instance_of_the_same_app_of_another_or_every_one():
    assert dependencies("web", ("a", "db:main", "db:*")) == (A, Key("db", "main"), Every("db"))


def test_nothing_is_waited_for_where_all_are_ready():
    known = standings(a=Standing.READY, b=Standing.READY)
    assert hold(known, A, B) is None
    assert hold(known, Every("web")) is None


def test_the_reason_names_the_first_few_and_what_is_wrong_with_them():
    known = standings(a=Standing.COMING, b=Standing.FATAL, c=Standing.HELD, d=Standing.DOWN)
    assert hold(known, A) == Hold("waits for web:a to be ready")
    assert hold(known, A, C) == Hold("waits for web:a, web:c to be ready")
    assert hold(known, B) == Hold("waits for web:b, which is FATAL")
    assert hold(known, Key("db", "main")) == Hold("waits for db:main, which does not exist")
    assert hold(known, D, A) == Hold("waits for web:d, which is not wanted up; web:a to be ready")
    assert hold(known, A, B, C, D) == Hold("waits for web:b, which is FATAL; web:a, web:c to be ready; and others")
    assert hold(standings(a=Standing.EXITED), A) == Hold("waits for web:a, which has EXITED")


def test_every_instance_of_an_app_that_has_none_is_not_ready():
    assert hold(Standings(), Every("db")) == Hold("waits for db:*, which does not exist")


def test_one_that_is_new_or_gone_counts_and_what_is_no_news_is_told_as_such():
    known = standings(a=Standing.READY)
    assert not known.change(A, Standing.READY)
    assert known.change(B, Standing.COMING)
    assert hold(known, Every("web")) == Hold("waits for web:b to be ready")
    assert known.change(B, Standing.MISSING)
    assert not known.change(B, Standing.MISSING)
    assert hold(known, Every("web")) is None


def test_one_that_waits_for_itself_does_so_for_ever_and_only_those_that_are_stuck_make_a_circle():
    needs = {A: (B,), B: (C,), C: (A,)}.__getitem__
    assert standings(b=Standing.COMING, c=Standing.HELD).hold(A, needs) == Hold("waits for web:b to be ready")
    stuck = standings(b=Standing.HELD, c=Standing.FATAL)
    way = "web:a depends on web:b, which depends on web:c, which depends on web:a"
    assert stuck.hold(A, needs) == Hold(f"{way}; change that, then start it", for_ever=True)
    alone, itself = standings(a=Standing.COMING), Hold("web:a depends on itself; change that, then start it", True)
    assert alone.hold(A, lambda _: (A,)) == alone.hold(A, lambda _: (Every("web"),)) == itself


graphs = st.dictionaries(
    st.sampled_from(EVERYBODY), st.lists(st.sampled_from((*EVERYBODY, Every("web"), Key("no", "such"))), max_size=4)
)


def reachable(graph, start):
    """As circle() sees it, worked out the long way."""
    found, before = set(), None
    while found != before:
        before = set(found)
        for key in (start, *found):
            for one in graph.get(key, ()):
                found |= set(EVERYBODY) if isinstance(one, Every) else {one}
    return found


@given(graphs, st.sampled_from(EVERYBODY))
def test_a_circle_is_found_where_there_is_one_and_leads_back(graph, start):
    way = circle(start, lambda key: graph.get(key, ()), lambda app: EVERYBODY if app == "web" else ())
    assert bool(way) is (start in reachable(graph, start))
    for one, following in zip(way, (*way[1:], start), strict=bool(way)):
        assert following in graph[one] or Every("web") in graph[one]
    assert len(way) == len(set(way))
    assert not way or circle_words(way).startswith("web:")


def stop_all(priorities, needs, choose=lambda under_way: under_way[0]):
    """In which order they were told to stop, in steps; each ends when `choose` says so."""
    order = StopOrder(priorities, needs)
    under_way = order.first()
    told = [set(under_way)]
    while under_way:
        one = choose(under_way)
        under_way.remove(one)
        more = order.ended(one)
        told.append(set(more))
        under_way += more
    return [step for step in told if step]


def test_those_without_an_order_are_stopped_at_once():
    assert stop_all(dict.fromkeys(EVERYBODY, 999), {}) == [set(EVERYBODY)]


def test_what_others_need_is_stopped_when_all_of_them_have_ended_and_holds_up_nobody_else():
    steps = stop_all(dict.fromkeys(EVERYBODY, 999), {A: [C], B: [C], C: [D]})
    assert steps == [{A, B}, {C}, {D}]


def test_higher_priorities_are_stopped_first_but_dependence_beats_them():
    assert stop_all({A: 1, B: 5, C: 5, D: 9}, {}) == [{D}, {B, C}, {A}]
    assert stop_all({A: 1, B: 5, C: 3}, {A: [B]}) == [{C}, {A}, {B}]


def test_a_circle_and_one_that_needs_itself_are_stopped_too():
    assert stop_all({A: 1, B: 1, C: 1}, {A: [B], B: [A], C: [C]}) == [{C}, {A, B}]


@given(st.dictionaries(st.sampled_from(EVERYBODY), st.integers(0, 2)), graphs, st.randoms(use_true_random=False))
def test_all_are_stopped_once_and_none_before_those_that_depend_on_it(priorities, graph, chance):
    needs = {key: [one for one in needed if isinstance(one, Key)] for key, needed in graph.items()}
    order = StopOrder(priorities, needs)
    under_way, told, ended = order.first(), [], set()
    told += under_way
    while under_way:
        for key in under_way:
            dependents = {one for one in priorities if key in needs.get(one, ()) and one != key}
            if key not in reachable(needs, key):
                assert dependents <= ended or any(one in reachable(needs, one) for one in dependents)
        one = under_way.pop(chance.randrange(len(under_way)))
        ended.add(one)
        more = order.ended(one)
        told += more
        under_way += more
    assert sorted(told) == sorted(priorities)
