"""The words of an instance's life: its states, what can happen to it, what is to be done for it, what is known of it.

`wanted` is what the operator asked for and `state` is what the process is; the two are kept apart, so "up while
STOPPING" needs no state of its own.

Only values live here. What follows from what is the automaton's (automaton.py).
"""

from enum import StrEnum

from branchd.core.ordering import Hold
from branchd.core.spec import Restart, StopStep, Wanted
from branchd.core.value import Value
from branchd.core.values import Exit


class State(StrEnum):
    """supervisord's words."""

    STOPPED = "STOPPED"  #: no process, none wanted
    STARTING = "STARTING"  #: a process is being started, is not ready yet, or waits for what it depends on
    RUNNING = "RUNNING"  #: the process is up and has been ready
    BACKOFF = "BACKOFF"  #: it ended or could not start; the next try waits for its time
    STOPPING = "STOPPING"  #: the stop plan runs
    EXITED = "EXITED"  #: it ended, and its restart policy says that this was it
    FATAL = "FATAL"  #: it ended too often; an operator must look


class Symbol(StrEnum):
    """What can happen."""

    UP = "want-up"
    DOWN = "want-down"
    RESTART = "restart"
    RENEW = "renew"  #: it lives, and does not what it should: ended by the stop plan, and that end is a crash
    KILL = "kill"  #: as want-down, without patience
    SPAWNED = "spawned"
    SPAWN_FAILED = "spawn-failed"
    READY = "ready"
    EXITED = "exited"
    UNHEALTHY = "unhealthy"
    LATE = "late"  #: not ready in time: ended by the stop plan, and that end is a crash
    TIMER = "timer"
    ADOPTED = "adopted"  #: a process that an earlier daemon started was found alive
    SPEC_CHANGED = "spec-changed"
    DEPENDENCY = "dependency"  #: what it waits for has changed: it became ready, FATAL, or came to be at all


class Event(Value):
    symbol: Symbol
    run: int = 0  #: which process it speaks of; of a restart: which one it is to replace
    exit: Exit = Exit()
    reason: str = ""
    ours: bool = False  #: spawn-failed: the fault is the machine's or the daemon's


class Spawn(Value):
    """Start process number `run`."""

    run: int


class Signal(Value):
    """Send this signal to the main process, only to it."""

    name: str


class Kill(Value):
    """Kill the whole tree."""


Effect = Spawn | Signal | Kill


class Machine(Value):
    """All that the automaton knows of one instance. Times are seconds since boot."""

    state: State = State.STOPPED
    wanted: Wanted = Wanted.DOWN
    run: int = 0  #: number of the current or last process
    alive: bool = False  #: that process exists
    held: bool = False  #: it waits for what it depends on; in STARTING alone
    crashes: tuple[float, ...] = ()  #: when it ended unasked, oldest first, within the policy's window
    restarts: int = 0  #: automatic restarts since it was last started on request
    step: int = 0  #: of the stop plan; its length once the tree was killed
    deadline: float | None = None  #: when the next timer event counts
    blamed: bool = False  #: its stop plan runs because it was late, or renewed
    reason: str = ""  #: why it is in this state, in words


class Policy(Value):
    """What the spec says about restarts and about stopping; and about starting, as those stand that it depends on."""

    restart: Restart
    stop: tuple[StopStep, ...]
    hold: Hold | None = None  #: None: it may be started
