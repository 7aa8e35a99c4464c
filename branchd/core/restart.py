"""The restart policy: an instance ended unasked; again, and when, or no more?

Only the decision. Acting on it is the automaton's (automaton.py).
"""

from branchd.core.spec import Restart, RestartPolicy
from branchd.core.value import Value
from branchd.core.values import Exit

#: seconds; what the second restart within the window waits for at most, doubled for each further one
BASE = 1.0


class Again(Value):
    delay: float  #: seconds


class Done(Value):
    """It ended as it was meant to."""


class GiveUp(Value):
    times: int
    window: float  #: seconds


Decision = Again | Done | GiveUp


def decide(
    policy: Restart, exit: Exit | None, crashes: tuple[float, ...], now: float, chance: float
) -> tuple[Decision, tuple[float, ...]]:
    """The decision, and the times of the crashes within the window, this one included.

    `exit` is None where no process could be started. An unknown exit status counts as a failure.

    The delay is exponential with full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015), between the floor and min(ceiling, max(floor, BASE) * 2^(n-2)) for the n-th end within the window; the first
    waits for the floor alone, by default not at all. More than max_restarts of them within the window: give up.
    """
    failed = exit is None or exit.code is None or exit.code not in policy.expected_exit_codes
    if policy.policy is RestartPolicy.NEVER and exit is not None:
        return Done(), crashes
    if policy.policy is RestartPolicy.ON_FAILURE and not failed:
        return Done(), crashes
    crashes = (*(moment for moment in crashes if moment > now - policy.window), now)
    if len(crashes) > policy.max_restarts:
        return GiveUp(len(crashes), policy.window), crashes
    if len(crashes) == 1:
        return Again(policy.floor), crashes
    # The exponent is bounded so that a huge max_restarts cannot overflow a float.
    upper = min(policy.ceiling, max(policy.floor, BASE) * 2 ** min(len(crashes) - 2, 60))
    return Again(policy.floor + chance * max(0.0, upper - policy.floor)), crashes
