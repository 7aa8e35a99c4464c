"""The goals and the budget of presence, at sizes that take moments; `make sim` shows all sizes."""

import pytest

from tests.simulation.presence_table import KINDS, LASTS, Simulation, table


@pytest.mark.parametrize(("branches", "failures"), [(10, 40), (400, 6)])
def test_failures_are_known_in_time_and_the_background_is_bounded(branches: int, failures: int) -> None:
    measured = Simulation(branches, loss=0.0).run(failures)
    assert max(measured.closed) <= 5
    assert max(measured.silent) <= 11
    assert measured.busiest <= 2
    assert measured.accused == 0
    assert measured.doubted == 0
    for kind, budget in zip(KINDS, (0.55, 1.02, 0.22), strict=True):
        assert 0 < measured.rate(kind) <= budget


def test_where_messages_are_lost_all_know_in_the_end_and_nobody_is_accused_often() -> None:
    measured = Simulation(100, loss=0.01).run(6)
    assert max(measured.closed) < LASTS
    assert max(measured.silent) < LASTS
    assert measured.busiest <= 2
    assert measured.accused <= 1


def test_a_bad_network_is_told_by_false_accusations() -> None:
    """Else the simulation would not see them."""
    assert Simulation(20, loss=0.4).run(2).accused > 0


def test_the_table_has_a_line_for_each_size_and_loss() -> None:
    lines = table({5: (1, 1), 20: (1, 1)}).splitlines()
    assert [line.split()[:2] for line in lines[4:8]] == [["5", "0%"], ["5", "1%"], ["20", "0%"], ["20", "1%"]]
