"""Whether a branch takes an instance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from branchd.core.admission import Guards, Probe, Reason, Standing, admit, judge_room
from branchd.core.capacity import Capacity

IDLE = {"load_per_core": 0.5, "memory_available": 6e9, "memory_total": 8e9, "disk_free": 0.5}
STANDING = Standing(Capacity(8, 3), 2, IDLE, {"zone": "a", "disk": "ssd"})
PROBE = Probe("shop", 1)

whole = st.integers(0, 100)


def reason(probe: Probe, standing: Standing) -> Reason | None:
    refusal = admit(probe, standing)
    return None if refusal is None else refusal.reason


@given(whole, whole, st.lists(whole, max_size=30))
def test_nothing_is_taken_above_the_slots_and_nothing_refused_that_fits(
    slots: int, pinned: int, weights: list[int]
) -> None:
    reserved = pinned  # which are never refused, so this may be more than the slots
    for weight in weights:
        standing = replace(STANDING, capacity=Capacity(slots, reserved))
        refusal = admit(Probe("shop", weight), standing)
        assert (refusal is None) == (reserved + weight <= slots)
        reserved += weight if refusal is None else 0
        assert reserved <= max(slots, pinned)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"stopping": True, "draining": True}, Reason.STOPPING),
        ({"draining": True}, Reason.DRAINING),
        ({"policy": "peers may not create here"}, Reason.POLICY),
        ({"capacity": Capacity(8, 8)}, Reason.NO_ROOM),
        ({"load": {**IDLE, "memory_available": 0.39e9}}, Reason.GUARD),
        ({"load": {**IDLE, "load_per_core": 8.1}}, Reason.GUARD),
        ({"load": {**IDLE, "disk_free": 0.019}}, Reason.GUARD),
        ({"load": {**IDLE, "disk_free": 0.019}, "guards": Guards(disk_free=0.0)}, None),
        ({"load": {}}, None),
    ],
)
def test_a_branch_refuses_for_one_reason(change: dict[str, object], expected: Reason | None) -> None:
    standing = replace(STANDING, **change)  # type: ignore[arg-type]
    refusal = admit(PROBE, standing)
    assert (refusal and refusal.reason) == expected
    if refusal is not None:
        assert refusal.detail


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        ({"zone": "a"}, None),
        ({"zone": "a", "disk": "ssd"}, None),
        ({"zone": "b"}, Reason.LABELS),
        ({"zone": "a", "gpu": "yes"}, Reason.LABELS),
    ],
)
def test_it_must_have_all_the_labels_of_the_constraints(constraints: dict[str, str], expected: Reason | None) -> None:
    assert reason(replace(PROBE, constraints=constraints), STANDING) == expected


def test_room_tells_the_figures_and_in_words_why_nothing_is_taken() -> None:
    room = judge_room(PROBE, STANDING)
    assert (room.slots, room.reserved, room.load, room.siblings, room.obstacle) == (8, 3, 0.5, 2, "")
    assert judge_room(replace(PROBE, weight=6), STANDING).obstacle == (
        "no-room: 3 of 8 slots are reserved, 6 more are asked for"
    )
