import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchd.core.restart import Again, Done, GiveUp, decide
from branchd.core.spec import Restart, RestartPolicy
from branchd.core.values import Exit


@pytest.mark.parametrize(
    ("policy", "exit", "again"),
    [
        (RestartPolicy.ALWAYS, Exit(0), True),
        (RestartPolicy.ALWAYS, Exit(signal=15), True),
        (RestartPolicy.ON_FAILURE, Exit(0), False),
        (RestartPolicy.ON_FAILURE, Exit(7), False),
        (RestartPolicy.ON_FAILURE, Exit(1), True),
        (RestartPolicy.ON_FAILURE, Exit(signal=9), True),
        (RestartPolicy.ON_FAILURE, Exit(), True),  # an unknown exit status counts as a failure
        (RestartPolicy.NEVER, Exit(1), False),
        (RestartPolicy.NEVER, Exit(), False),
        (RestartPolicy.NEVER, None, True),  # never started at all is not "once is enough"
    ],
)
def test_who_is_started_again(policy, exit, again):
    decision, _ = decide(Restart(policy=policy, expected_exit_codes=(0, 7)), exit, (), 0.0, 0.5)
    assert isinstance(decision, Again if again else Done)


def test_delays_double_up_to_the_ceiling_and_the_first_is_the_floor():
    policy, crashes, delays = Restart(ceiling=6.0, max_restarts=9), (), []
    for number in range(6):
        decision, crashes = decide(policy, Exit(1), crashes, float(number), 1.0)
        delays.append(decision.delay)
    assert delays == [0.0, 1.0, 2.0, 4.0, 6.0, 6.0]


def test_more_than_max_restarts_within_the_window_is_given_up_and_old_crashes_do_not_count():
    policy = Restart(max_restarts=2, window=10.0)
    assert decide(policy, Exit(1), (1.0, 2.0), 3.0, 0.5)[0] == GiveUp(3, 10.0)
    decision, crashes = decide(policy, Exit(1), (1.0, 2.0), 12.0, 0.5)
    assert (decision, crashes) == (Again(0.0), (12.0,))


@given(st.floats(0, 100), st.floats(0, 1000), st.lists(st.floats(0, 100), max_size=300), st.floats(0, 0.999))
def test_a_delay_is_never_outside_floor_and_ceiling(floor, extra, crashes, chance):
    policy = Restart(floor=floor, ceiling=floor + extra, max_restarts=1000, window=1000.0)
    decision, _ = decide(policy, Exit(1), tuple(sorted(crashes)), 100.0, chance)
    assert floor <= decision.delay <= floor + extra
