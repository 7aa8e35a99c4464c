"""Is a Celery worker alive, busy, cut off from its broker, or hung? One table of rules over one observation.

The broker being down is never a reason to restart a worker, and a task that holds the interpreter is not a hang until
it has lasted longer than the operator allows: restarting either loses work and helps nobody.
"""

from enum import StrEnum

from branchd.core.value import Value

#: seconds between two heartbeats of the agent
PERIOD = 2.0

#: seconds without a heartbeat after which a connected agent counts as silent
SILENT = 3 * PERIOD

#: seconds that the worker's loop may stand still; loops without epoll (gevent, filesystem) turn every 2 s
LOOP_STUCK = 20.0


class Phase(StrEnum):
    """What the worker's consumer does, in the agent's words."""

    BOOT = "boot"  #: not connected to the broker yet
    UP = "up"
    DOWN = "down"  #: lost its broker
    STOPPING = "stopping"


class Observation(Value):
    phase: Phase
    silent_for: float  #: seconds since the last heartbeat
    cpu_moves: bool  #: the process has used CPU time since it fell silent
    loop_age: float | None  #: seconds since the worker's loop last turned; None before its first turn
    active: int  #: tasks that run
    stalled_for: float  #: seconds since it was last seen healthy
    stall_limit: float  #: seconds that a task may hold the interpreter


class Healthy(Value):
    pass


class Hold(Value):
    """Not well, and a restart would not help."""

    reason: str


class Hung(Value):
    """To be killed and started again."""

    reason: str


Verdict = Healthy | Hold | Hung


def judge(seen: Observation) -> Verdict:
    if seen.silent_for > SILENT:
        if not seen.cpu_moves:
            return Hung(f"hung: no heartbeat for {seen.silent_for:.0f} s and its CPU time stands still")
        return _busy(seen, f"no heartbeat for {seen.silent_for:.0f} s, but its CPU time moves")
    if seen.phase is Phase.BOOT:
        return Hold("not connected to its broker yet")
    if seen.phase is Phase.DOWN:
        return Hold("its broker is unreachable")
    if seen.phase is Phase.UP and seen.loop_age is not None and seen.loop_age > LOOP_STUCK:
        if seen.active == 0:
            return Hung(f"hung: its loop has stood still for {seen.loop_age:.0f} s and no task runs")
        return _busy(seen, f"its loop has stood still for {seen.loop_age:.0f} s while a task runs")
    return Healthy()


def _busy(seen: Observation, why: str) -> Verdict:
    if seen.stalled_for > seen.stall_limit:
        return Hung(f"hung: {why}; longer than task_stall_limit allows ({seen.stall_limit:g} s)")
    return Hold(f"busy: {why}")
