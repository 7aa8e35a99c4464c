"""The life of one instance as an automaton: two literal tables, and the walk over them.

TABLE says for each state and event where to go and what to do, or which question to ask first; ANSWERS says where each
answer leads. Nothing else in branchd assigns a state. The diagram in the documentation is drawn from the same tables.
HELD is the row of STARTING for an instance that waits for what it depends on: it has no process, and none on its way.

The exit that follows a stop is intended, and the answer to "what after the stop?" is read from `wanted`. A cell that is
not in the table cannot be reached (tests/core/test_automaton.py proves it by random walks); the supervisor treats it as
a bug of ours and gives that one instance up.

What may live here: the tables, what their cells are made of, and the walk. States and events stand in lifecycle.py. No
clock, no randomness, no process: time (seconds since boot) and chance come in as arguments, and what is to be done goes
out as effects.
"""

from collections.abc import Callable
from enum import StrEnum

from msgspec.structs import replace

from branchd.core.lifecycle import Effect, Event, Kill, Machine, Policy, Signal, Spawn, State, Symbol
from branchd.core.restart import Again, Done, GiveUp, decide
from branchd.core.spec import Wanted
from branchd.core.value import Value
from branchd.core.values import Exit


class Do(StrEnum):
    """What a cell can ask for. The walk carries out its part; SPAWN, SIGNAL and KILL also go out as effects."""

    SPAWN = "spawn"
    SIGNAL = "signal"  #: begin the stop plan with its first step
    NEXT = "next step"  #: go on to the next step of the stop plan
    RESUME = "same step again"  #: of the stop plan: an earlier daemon may have ended before it sent the signal
    KILL = "kill the tree"
    WAIT = "wait"  #: arm the timer with the delay that the policy decided
    FORGIVE = "forgive"  #: forget earlier crashes
    COUNT = "count"  #: one more automatic restart
    HOLD = "hold"  #: start nothing, and say what it depends on
    BLAME = "blame"  #: the end that follows is a crash, unless an operator wishes something meanwhile


class Question(StrEnum):
    EXIT = "what does the restart policy say?"
    FAILED_START = "whose fault, and again?"
    STOPPED = "still wanted?"
    PATIENCE = "another step in the stop plan?"
    ORDER = "is all ready that it depends on?"


class Answer(StrEnum):
    YES = "yes"
    NO = "no"
    AT_ONCE = "again, at once"
    LATER = "again, later"
    DONE = "no more"
    GIVE_UP = "too often"
    NEVER = "never: it depends on itself"


class Cell(Value):
    to: State
    does: tuple[Do, ...] = ()
    then: Question | None = None  #: whose answer says where to go on from there


#: seconds after which an unanswered KILL of the tree is repeated (a process may hang in the kernel)
KILL_AGAIN = 5.0

#: seconds to the next try where the machine or the daemon was at fault (no memory, full disk); never ends in FATAL
OURS_AGAIN = 1.0

#: how the reason of a FATAL instance ends
HINT = "; start it to try again"

_START = Cell(State.STARTING, (Do.FORGIVE,), Question.ORDER)
_AGAIN = Cell(State.STARTING, (Do.COUNT,), Question.ORDER)
_STOP = Cell(State.STOPPING, (Do.SIGNAL,))
_KILL = Cell(State.STOPPING, (Do.KILL,))
_BLAME = Cell(State.STOPPING, (Do.BLAME, Do.SIGNAL))


def _stay(state: State) -> Cell:
    return Cell(state)


TABLE: dict[State, dict[Symbol, Cell | Question]] = {
    State.STOPPED: {
        Symbol.UP: _START,
        Symbol.DOWN: _stay(State.STOPPED),
        Symbol.KILL: _stay(State.STOPPED),
        Symbol.RESTART: _START,
        Symbol.SPEC_CHANGED: _stay(State.STOPPED),
    },
    State.STARTING: {
        Symbol.UP: _stay(State.STARTING),
        Symbol.DOWN: _STOP,  # where the spawn is still on its way, spawned or spawn-failed answers it in STOPPING
        Symbol.KILL: _KILL,
        Symbol.RESTART: _STOP,
        Symbol.SPAWNED: _stay(State.STARTING),
        Symbol.SPAWN_FAILED: Question.FAILED_START,
        Symbol.READY: Cell(State.RUNNING),
        Symbol.EXITED: Question.EXIT,
        Symbol.UNHEALTHY: Cell(State.STARTING, (Do.KILL,)),
        Symbol.RENEW: _BLAME,
        Symbol.LATE: _BLAME,
        Symbol.TIMER: Cell(State.STARTING, (Do.KILL,)),
        Symbol.ADOPTED: _stay(State.STARTING),
        Symbol.SPEC_CHANGED: _stay(State.STARTING),
    },
    State.RUNNING: {
        Symbol.UP: _stay(State.RUNNING),
        Symbol.DOWN: _STOP,
        Symbol.KILL: _KILL,
        Symbol.RESTART: _STOP,
        Symbol.READY: _stay(State.RUNNING),
        Symbol.EXITED: Question.EXIT,
        Symbol.UNHEALTHY: Cell(State.RUNNING, (Do.KILL,)),
        Symbol.RENEW: _BLAME,
        Symbol.LATE: _stay(State.RUNNING),
        Symbol.TIMER: Cell(State.RUNNING, (Do.KILL,)),
        Symbol.ADOPTED: _stay(State.RUNNING),
        Symbol.SPEC_CHANGED: _stay(State.RUNNING),
    },
    State.BACKOFF: {
        Symbol.UP: _START,
        Symbol.DOWN: _stay(State.STOPPED),
        Symbol.KILL: _stay(State.STOPPED),
        Symbol.RESTART: _START,
        Symbol.TIMER: _AGAIN,
        Symbol.SPEC_CHANGED: _START,
    },
    State.STOPPING: {
        Symbol.UP: _stay(State.STOPPING),
        Symbol.DOWN: _stay(State.STOPPING),
        Symbol.KILL: _KILL,
        Symbol.RESTART: _stay(State.STOPPING),
        Symbol.SPAWNED: _STOP,
        Symbol.SPAWN_FAILED: Question.STOPPED,
        Symbol.READY: _stay(State.STOPPING),
        Symbol.EXITED: Question.STOPPED,
        Symbol.UNHEALTHY: _KILL,
        Symbol.RENEW: _stay(State.STOPPING),
        Symbol.LATE: _stay(State.STOPPING),
        Symbol.TIMER: Question.PATIENCE,
        Symbol.ADOPTED: Cell(State.STOPPING, (Do.RESUME,)),
        Symbol.SPEC_CHANGED: _stay(State.STOPPING),
    },
    State.EXITED: {
        Symbol.UP: _START,
        Symbol.DOWN: _stay(State.STOPPED),
        Symbol.KILL: _stay(State.STOPPED),
        Symbol.RESTART: _START,
        Symbol.SPEC_CHANGED: _stay(State.EXITED),
    },
    State.FATAL: {
        Symbol.UP: _START,
        Symbol.DOWN: _stay(State.STOPPED),
        Symbol.KILL: _stay(State.STOPPED),
        Symbol.RESTART: _START,
        Symbol.SPEC_CHANGED: _START,
    },
}

HELD: dict[Symbol, Cell | Question] = {
    Symbol.UP: _stay(State.STARTING),
    Symbol.DOWN: _stay(State.STOPPED),
    Symbol.KILL: _stay(State.STOPPED),
    Symbol.RESTART: _stay(State.STARTING),
    Symbol.SPEC_CHANGED: Question.ORDER,
    Symbol.DEPENDENCY: Question.ORDER,
}

ANSWERS: dict[Question, dict[Answer, Cell]] = {
    Question.EXIT: {
        Answer.AT_ONCE: _AGAIN,
        Answer.LATER: Cell(State.BACKOFF, (Do.WAIT,)),
        Answer.DONE: Cell(State.EXITED),
        Answer.GIVE_UP: Cell(State.FATAL),
    },
    Question.FAILED_START: {
        Answer.LATER: Cell(State.BACKOFF, (Do.WAIT,)),
        Answer.GIVE_UP: Cell(State.FATAL),
    },
    Question.STOPPED: {
        Answer.YES: _START,
        Answer.NO: _stay(State.STOPPED),
        # it was late, or renewed
        Answer.AT_ONCE: _AGAIN,
        Answer.LATER: Cell(State.BACKOFF, (Do.WAIT,)),
        Answer.DONE: Cell(State.EXITED),
        Answer.GIVE_UP: Cell(State.FATAL),
    },
    Question.PATIENCE: {
        Answer.YES: Cell(State.STOPPING, (Do.NEXT,)),
        Answer.NO: _KILL,
    },
    Question.ORDER: {
        Answer.YES: Cell(State.STARTING, (Do.SPAWN,)),
        Answer.NO: Cell(State.STARTING, (Do.HOLD,)),
        Answer.NEVER: Cell(State.FATAL, (Do.HOLD,)),
    },
}

_WANTS = {Symbol.UP: Wanted.UP, Symbol.RESTART: Wanted.UP, Symbol.DOWN: Wanted.DOWN, Symbol.KILL: Wanted.DOWN}

#: events that speak of one process, and are stale when that process is gone or another one
_OF_A_PROCESS = {Symbol.READY, Symbol.EXITED, Symbol.UNHEALTHY, Symbol.RENEW, Symbol.LATE}


def step(machine: Machine, event: Event, now: float, policy: Policy, chance: float) -> tuple[Machine, list[Effect]]:
    """The machine after the event, and what is to be done, in order.

    `now` in seconds since boot, `chance` uniform in [0, 1). Stale events (of an earlier process, of a timer that was
    moved, of what is not waited for any more) change nothing. KeyError where the tables have no cell.
    """
    symbol = event.symbol
    if symbol in _OF_A_PROCESS and (event.run != machine.run or not machine.alive):
        return machine, []
    if symbol is Symbol.TIMER and (machine.deadline is None or now < machine.deadline):
        return machine, []
    if symbol is Symbol.DEPENDENCY and not machine.held:
        return machine, []
    if symbol is Symbol.RESTART and event.run != machine.run:
        symbol = Symbol.UP  # since it was asked for, another process was started: that is the restart
    if symbol in _WANTS:
        reason = "" if machine.blamed else machine.reason
        machine = replace(machine, wanted=_WANTS[symbol], blamed=False, reason=reason)
    if symbol in (Symbol.SPAWNED, Symbol.ADOPTED):
        machine = replace(machine, alive=True)
    elif symbol in (Symbol.EXITED, Symbol.SPAWN_FAILED):
        machine = replace(machine, alive=False)

    effects: list[Effect] = []
    following: Cell | Question | None = (HELD if machine.held else TABLE[machine.state])[symbol]
    while following is not None:
        delay = 0.0
        if isinstance(following, Question):
            answer, machine, delay = _ASK[following](machine, event, now, policy, chance)
            following = ANSWERS[following][answer]
        machine, more = _enter(machine, following, event, now, policy, delay)
        effects += more
        following = following.then
    return machine, effects


def _enter(
    machine: Machine, cell: Cell, event: Event, now: float, policy: Policy, delay: float
) -> tuple[Machine, list[Effect]]:
    moved = cell.to is not machine.state
    # A timer belongs to the state that armed it, and so does a reason; the events of a process bring a new one.
    deadline = None if moved else machine.deadline
    machine = replace(machine, state=cell.to, deadline=deadline, held=machine.held and not moved)
    if event.symbol is Symbol.UNHEALTHY or (event.symbol in (Symbol.LATE, Symbol.RENEW) and moved):
        machine = replace(machine, reason=event.reason)
    elif moved and event.symbol not in (Symbol.EXITED, Symbol.SPAWN_FAILED, Symbol.TIMER):
        machine = replace(machine, reason="")
    effects: list[Effect] = []
    for do in cell.does:
        match do:
            case Do.FORGIVE:
                machine = replace(machine, crashes=(), restarts=0)
            case Do.COUNT:
                machine = replace(machine, restarts=machine.restarts + 1)
            case Do.BLAME:
                machine = replace(machine, blamed=True)
            case Do.WAIT:
                machine = replace(machine, deadline=now + delay)
            case Do.HOLD:
                assert policy.hold is not None
                machine = replace(machine, held=cell.to is State.STARTING, step=0, reason=policy.hold.reason)
            case Do.SPAWN:
                reason = "" if machine.held else machine.reason
                machine = replace(machine, run=machine.run + 1, step=0, blamed=False, held=False, reason=reason)
                effects.append(Spawn(machine.run))
            case Do.KILL:
                machine = _kill(machine, now, policy, effects)
            case Do.RESUME if machine.step >= len(policy.stop):
                machine = _kill(machine, now, policy, effects)
            case Do.SIGNAL | Do.NEXT | Do.RESUME:
                number = {Do.SIGNAL: 0, Do.NEXT: machine.step + 1}.get(do, machine.step)
                current = policy.stop[number]
                # Its patience goes on, or who reloads often would never see it end; what is over begins anew.
                left = machine.deadline if do is Do.RESUME and (machine.deadline or 0.0) > now else None
                machine = replace(machine, step=number, deadline=left or now + current.patience)
                effects.append(Signal(current.signal))
    return machine, effects


def _kill(machine: Machine, now: float, policy: Policy, effects: list[Effect]) -> Machine:
    effects.append(Kill())
    return replace(machine, step=len(policy.stop), deadline=now + KILL_AGAIN)


_Asked = tuple[Answer, Machine, float]


def _exit(machine: Machine, event: Event, now: float, policy: Policy, chance: float) -> _Asked:
    # A tree that was killed for being unhealthy says so rather than "killed by SIGKILL".
    words = machine.reason if machine.step else str(event.exit)
    return _crashed(machine, words, event.exit, now, policy, chance)


def _failed_start(machine: Machine, event: Event, now: float, policy: Policy, chance: float) -> _Asked:
    if event.ours:
        return Answer.LATER, replace(machine, reason=event.reason), OURS_AGAIN
    answer, machine, delay = _crashed(machine, event.reason, None, now, policy, chance)
    # What is missing is seldom there a moment later: the first retry waits too.
    return (Answer.LATER, machine, max(delay, OURS_AGAIN)) if answer is Answer.AT_ONCE else (answer, machine, delay)


def _crashed(machine: Machine, words: str, exit: Exit | None, now: float, policy: Policy, chance: float) -> _Asked:
    decision, crashes = decide(policy.restart, exit, machine.crashes, now, chance)
    machine = replace(machine, crashes=crashes, reason=words)
    match decision:
        case Done():
            return Answer.DONE, machine, 0.0
        case GiveUp(times, window):
            often = "once" if times == 1 else f"{times} times within {window:g} s"
            return Answer.GIVE_UP, replace(machine, reason=f"{words}; {often}, which is too often{HINT}"), 0.0
        case Again(delay):
            return (Answer.LATER if delay > 0 else Answer.AT_ONCE), machine, delay


def _stopped(machine: Machine, event: Event, now: float, policy: Policy, chance: float) -> _Asked:
    if machine.blamed and machine.wanted is Wanted.UP:
        # It did not end by itself, so whatever it exits with is not what it was meant to end with.
        return _crashed(replace(machine, blamed=False), machine.reason, Exit(), now, policy, chance)
    return (Answer.YES if machine.wanted is Wanted.UP else Answer.NO), machine, 0.0


def _patience(machine: Machine, _event: Event, _now: float, policy: Policy, _chance: float) -> _Asked:
    return (Answer.YES if machine.step + 1 < len(policy.stop) else Answer.NO), machine, 0.0


def _order(machine: Machine, _event: Event, _now: float, policy: Policy, _chance: float) -> _Asked:
    if policy.hold is None:
        return Answer.YES, machine, 0.0
    return (Answer.NEVER if policy.hold.for_ever else Answer.NO), machine, 0.0


_ASK: dict[Question, Callable[[Machine, Event, float, Policy, float], _Asked]] = {
    Question.EXIT: _exit,
    Question.FAILED_START: _failed_start,
    Question.STOPPED: _stopped,
    Question.PATIENCE: _patience,
    Question.ORDER: _order,
}
