"""The goals of placement, at the sizes that take moments; `make sim` shows them all."""

import pytest

from tests.simulation.placement_table import (
    SLOTS,
    by_announcement,
    by_chance,
    by_placement,
    ideal_filling,
    play,
    table,
)

#: of 1, 2, 4, 8 and 16 CPUs
UNEQUAL = (4, 8, 16, 32, 64)


@pytest.mark.parametrize("slots", [SLOTS, UNEQUAL])
@pytest.mark.parametrize("branches", [10, 100, 1000])
def test_hosts_are_filled_evenly_never_above_their_slots_and_to_the_end(branches: int, slots: tuple[int, ...]) -> None:
    result = play(branches, by_placement, slots)
    assert result.misplaced <= 0.03
    assert result.p99 <= 1.10
    assert result.overfull == 0
    assert result.unplaced == 0


def test_the_policies_that_the_design_refuses_do_worse() -> None:
    """Else the table measures nothing."""
    assert play(400, by_announcement).misplaced > 0.7
    assert play(400, by_announcement).overfull > 0
    assert 0.1 < play(400, by_chance).misplaced < 0.3


def test_the_ideal_fills_every_host_to_the_same_level() -> None:
    assert ideal_filling([4, 8, 16], 7) == ([1, 2, 4], 0.25)
    assert ideal_filling([4, 8, 16], 8) == ([1, 2, 5], 0.3125)


def test_the_table_has_a_line_for_each_size_and_policy() -> None:
    lines = table((10, 20)).splitlines()
    assert [line.split()[0] for line in lines] == ["branches", *["10"] * 3, *["20"] * 3]
