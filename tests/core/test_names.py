from itertools import permutations

import pytest

from branchd.core.names import Holding, asks_per_second


def test_of_all_holders_of_a_name_the_same_one_stays_whoever_compares():
    first, *others = Holding(1.0, "r", "b"), Holding(1.0, "s", "a"), Holding(2.0, "a", "a"), Holding(1.0, "r", "c")
    assert all(first < other for other in others)
    assert {min(order) for order in permutations([first, *others])} == {first}


@pytest.mark.parametrize(("branches", "rate"), [(0, 10), (1, 10), (200, 10), (400, 5), (10_000, 0.2)])
def test_all_holders_together_ask_no_more_than_a_broker_bears(branches, rate):
    assert asks_per_second(branches) == rate
