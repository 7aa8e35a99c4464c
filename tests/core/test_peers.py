"""What branches say of themselves and of each other, and what none can have said."""

from typing import Any

import pytest
from msgspec.structs import replace

from branchd.core.peers import MOST, MOST_ENDED, MOST_LABELS, Announcement, BranchState, Down, credible

HERE = Announcement(
    "a" * 32, "b" * 32, "web3.example", 1, 1, BranchState.UP, 1e9, 8, 2, "0.1.0", {"zone": "a b"}, "http://web3:8484"
)
ENDED = Down("a" * 32, 1, BranchState.SILENT)


@pytest.mark.parametrize(
    "more",
    [
        {}, {"state": BranchState.DRAINING}, {"state": BranchState.CLOSED}, {"address": None}, {"slots": 0},
        {"incarnation": MOST - 1}, {"labels": {f"l{number}": "" for number in range(MOST_LABELS)}},
    ],
)  # fmt: skip
def test_what_a_branch_says_of_itself(more: dict[str, Any]) -> None:
    assert credible(replace(HERE, **more))


@pytest.mark.parametrize(
    "more",
    [
        {"id": ""}, {"id": "a" * 64}, {"boot": "x y"}, {"name": "web\r\nX: y"}, {"name": "../up"},
        {"incarnation": MOST}, {"incarnation": -1}, {"sequence": 10**99}, {"slots": -1}, {"reserved": MOST},
        {"state": BranchState.SILENT}, {"version": "0\n1"}, {"version": "1" * 256}, {"address": "\x1b[2J"},
        {"labels": {"a b": "c"}}, {"labels": {"a": "\n"}}, {"labels": {"a": "b" * 256}},
        {"labels": {f"l{number}": "" for number in range(MOST_LABELS + 1)}},
    ],
)  # fmt: skip
def test_what_no_branch_says_of_itself(more: dict[str, Any]) -> None:
    assert not credible(replace(HERE, **more))


def test_what_is_said_of_others_can_always_be_contradicted() -> None:
    last = replace(ENDED, incarnation=MOST_ENDED - 1)
    assert credible(ENDED)
    assert credible(replace(ENDED, state=BranchState.CLOSED))
    assert credible(last)
    assert credible(replace(HERE, incarnation=last.incarnation + 1))


@pytest.mark.parametrize(
    "more", [{"state": BranchState.UP}, {"incarnation": MOST_ENDED}, {"incarnation": -1}, {"id": "a b"}]
)
def test_what_nobody_says_of_others(more: dict[str, Any]) -> None:
    assert not credible(replace(ENDED, **more))
