import pytest
from msgspec.structs import replace

from branchd.core.health import Healthy, Hold, Hung, Observation, Phase, judge

WELL = Observation(
    phase=Phase.UP,
    silent_for=1,
    cpu_moves=True,
    loop_age=1,
    active=0,
    stalled_for=0,
    stall_limit=100,
)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        ({}, Healthy),
        ({"loop_age": None}, Healthy),
        ({"silent_for": 7, "cpu_moves": False}, Hung),  # SIGSTOP, a native deadlock
        ({"silent_for": 7, "cpu_moves": False, "phase": Phase.DOWN}, Hung),
        ({"silent_for": 7, "active": 1}, Hold),  # a task holds the interpreter
        ({"silent_for": 7, "active": 1, "stalled_for": 101}, Hung),
        ({"phase": Phase.BOOT, "loop_age": None}, Hold),  # the broker is down: never a reason to restart
        ({"phase": Phase.DOWN, "loop_age": 500, "stalled_for": 10_000}, Hold),
        ({"loop_age": 60}, Hung),
        ({"loop_age": 60, "active": 1}, Hold),
        ({"loop_age": 60, "active": 1, "stalled_for": 101}, Hung),
        ({"phase": Phase.STOPPING, "loop_age": 60}, Healthy),
    ],
)
def test_verdicts(seen, verdict):
    assert isinstance(judge(replace(WELL, **seen)), verdict)
