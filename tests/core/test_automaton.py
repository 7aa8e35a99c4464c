"""The automaton, by rows for what people rely on and by random walks for what must never happen."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from branchd.core.automaton import ANSWERS, HELD, HINT, KILL_AGAIN, OURS_AGAIN, TABLE, Cell, Question, step
from branchd.core.lifecycle import Event, Kill, Machine, Policy, Signal, Spawn, State, Symbol
from branchd.core.ordering import Hold
from branchd.core.spec import Restart, RestartPolicy, StopStep, Wanted
from branchd.core.values import Exit

POLICY = Policy(Restart(), (StopStep("TERM", 10), StopStep("QUIT", 5)))
RUNNING = Machine(State.RUNNING, Wanted.UP, run=1, alive=True)


def walk(machine, *events, policy=POLICY, now=0.0, chance=0.5):
    effects = []
    for event in events:
        machine, done = step(machine, event, now, policy, chance)
        effects += done
    return machine, effects


def up_and_ready(run=1):
    return Event(Symbol.UP), Event(Symbol.SPAWNED), Event(Symbol.READY, run)


def test_a_wanted_instance_is_spawned_and_runs_when_it_is_ready():
    machine, effects = walk(Machine(), *up_and_ready())
    assert (machine.state, machine.alive, machine.run) == (State.RUNNING, True, 1)
    assert effects == [Spawn(1)]


def test_a_crash_is_answered_at_once_and_counted():
    machine, effects = walk(RUNNING, Event(Symbol.EXITED, 1, Exit(signal=9)))
    assert (machine.state, machine.restarts, machine.reason) == (State.STARTING, 1, "killed by SIGKILL")
    assert effects == [Spawn(2)]


def test_the_second_crash_waits_and_the_timer_before_its_time_does_nothing():
    once, _ = walk(RUNNING, Event(Symbol.EXITED, 1, Exit(1)), Event(Symbol.SPAWNED))
    twice, effects = walk(once, Event(Symbol.EXITED, 2, Exit(1)), now=1.0)
    assert (twice.state, twice.deadline, effects) == (State.BACKOFF, 1.5, [])
    assert step(twice, Event(Symbol.TIMER), 1.4, POLICY, 0.5) == (twice, [])
    again, effects = step(twice, Event(Symbol.TIMER), 1.5, POLICY, 0.5)
    assert (again.state, again.deadline, effects) == (State.STARTING, None, [Spawn(3)])


def test_too_many_crashes_are_fatal_with_the_reason_and_a_start_forgives():
    policy = replace(POLICY, restart=Restart(max_restarts=0))
    fatal, effects = walk(RUNNING, Event(Symbol.EXITED, 1, Exit(3)), policy=policy)
    assert (fatal.state, fatal.reason, effects) == (State.FATAL, f"exit code 3; once, which is too often{HINT}", [])
    machine, effects = walk(fatal, Event(Symbol.UP), policy=policy)
    assert (machine.state, machine.crashes, machine.reason, effects) == (State.STARTING, (), "", [Spawn(2)])


def test_up_while_stopping_starts_after_the_exit_and_that_exit_is_no_crash():
    machine, effects = walk(RUNNING, Event(Symbol.DOWN), Event(Symbol.UP), Event(Symbol.EXITED, 1, Exit(signal=15)))
    assert (machine.state, machine.crashes, machine.restarts) == (State.STARTING, (), 0)
    assert effects == [Signal("TERM"), Spawn(2)]


def test_down_while_in_backoff_stops_and_the_timer_that_was_armed_means_nothing():
    waiting = replace(RUNNING, state=State.BACKOFF, alive=False, deadline=5.0)
    stopped, effects = walk(waiting, Event(Symbol.DOWN))
    assert (stopped.state, stopped.deadline, effects) == (State.STOPPED, None, [])
    assert step(stopped, Event(Symbol.TIMER), 9.0, POLICY, 0.5) == (stopped, [])


def test_an_exit_before_ready_is_a_crash():
    starting = replace(RUNNING, state=State.STARTING)
    machine, effects = walk(starting, Event(Symbol.EXITED, 1, Exit(1)))
    assert (len(machine.crashes), effects) == (1, [Spawn(2)])


def test_two_exits_that_race_a_restart_start_one_process():
    machine, effects = walk(
        RUNNING, Event(Symbol.RESTART, 1), Event(Symbol.EXITED, 1, Exit(0)), Event(Symbol.EXITED, 1, Exit(0))
    )
    assert (machine.state, machine.crashes) == (State.STARTING, ())
    assert effects == [Signal("TERM"), Spawn(2)]


def test_a_change_of_the_spec_while_starting_lets_the_start_go_on():
    starting = replace(RUNNING, state=State.STARTING)
    assert walk(starting, Event(Symbol.SPEC_CHANGED)) == (starting, [])


@pytest.mark.parametrize("state", [State.BACKOFF, State.FATAL])
def test_a_change_of_the_spec_ends_the_waiting(state):
    waiting = replace(RUNNING, state=state, alive=False, crashes=(0.0,), deadline=50.0)
    machine, effects = walk(waiting, Event(Symbol.SPEC_CHANGED))
    assert (machine.state, machine.crashes, effects) == (State.STARTING, (), [Spawn(2)])


def test_the_stop_plan_goes_step_by_step_and_ends_with_the_tree():
    machine, effects = step(RUNNING, Event(Symbol.DOWN), 0, POLICY, 0)
    assert (machine.deadline, effects) == (10, [Signal("TERM")])
    machine, effects = step(machine, Event(Symbol.TIMER), 10, POLICY, 0)
    assert (machine.deadline, effects) == (15, [Signal("QUIT")])
    machine, effects = step(machine, Event(Symbol.TIMER), 15, POLICY, 0)
    assert (machine.deadline, effects) == (15 + KILL_AGAIN, [Kill()])
    machine, effects = step(machine, Event(Symbol.TIMER), 15 + KILL_AGAIN, POLICY, 0)
    assert effects == [Kill()]
    machine, effects = step(machine, Event(Symbol.EXITED, 1, Exit(signal=9)), 21, POLICY, 0)
    assert (machine.state, machine.deadline, effects) == (State.STOPPED, None, [])


def test_kill_has_no_patience():
    machine, effects = walk(RUNNING, Event(Symbol.KILL))
    assert (machine.state, machine.wanted, effects) == (State.STOPPING, Wanted.DOWN, [Kill()])


def test_an_unhealthy_process_is_killed_and_the_reason_outlives_it():
    machine, effects = walk(RUNNING, Event(Symbol.UNHEALTHY, 1, reason="hung"), Event(Symbol.EXITED, 1, Exit(signal=9)))
    assert (machine.state, machine.reason, len(machine.crashes)) == (State.STARTING, "hung", 1)
    assert effects == [Kill(), Spawn(2)]


def test_a_restart_that_was_overtaken_by_another_start_restarts_nothing():
    second = replace(RUNNING, run=2)
    assert walk(second, Event(Symbol.RESTART, 1)) == (second, [])


def test_a_monitor_renews_a_process_without_wanting_it_up():
    stopping = replace(RUNNING, state=State.STOPPING, wanted=Wanted.DOWN)
    assert walk(stopping, Event(Symbol.RENEW, 1)) == (stopping, [])
    machine, effects = walk(RUNNING, Event(Symbol.RENEW, 1, reason="too big"), Event(Symbol.EXITED, 1, Exit(0)))
    assert (machine.state, machine.reason, effects) == (State.STARTING, "too big", [Signal("TERM"), Spawn(2)])
    assert (machine.restarts, len(machine.crashes)) == (1, 1)


def test_renewals_count_as_crashes_so_that_they_do_not_go_on_for_ever():
    policy = replace(POLICY, restart=Restart(max_restarts=2, window=60))
    machine = RUNNING
    states = []
    for run in (1, 2, 3):
        machine = replace(machine, state=State.RUNNING, alive=True, run=run)
        renewed = Event(Symbol.RENEW, run, reason="too big"), Event(Symbol.EXITED, run, Exit(0))
        machine, _ = walk(machine, *renewed, policy=policy)
        states.append(machine.state)
    assert states == [State.STARTING, State.BACKOFF, State.FATAL]
    assert machine.reason == f"too big; 3 times within 60 s, which is too often{HINT}"


@pytest.mark.parametrize(("wish", "end"), [(Symbol.DOWN, State.STOPPED), (Symbol.RESTART, State.STARTING)])
def test_a_wish_while_one_is_renewed_makes_it_an_ordinary_stop(wish, end):
    machine, _ = walk(RUNNING, Event(Symbol.RENEW, 1, reason="too big"), Event(wish, 1), Event(Symbol.EXITED, 1))
    assert (machine.state, machine.reason, machine.crashes) == (end, "", ())


LATE = Event(Symbol.LATE, 1, reason="not ready within 5 s")


def test_one_that_is_late_is_stopped_by_its_plan_and_that_is_a_crash():
    starting = replace(RUNNING, state=State.STARTING)
    stopping, effects = walk(starting, LATE)
    assert (stopping.state, stopping.reason, effects) == (State.STOPPING, LATE.reason, [Signal("TERM")])
    again, effects = walk(stopping, Event(Symbol.EXITED, 1, Exit(0)))
    assert (again.state, again.reason, again.restarts, len(again.crashes)) == (State.STARTING, LATE.reason, 1, 1)
    assert effects == [Spawn(2)]
    once = replace(POLICY, restart=Restart(max_restarts=0))
    fatal, effects = walk(stopping, Event(Symbol.EXITED, 1, Exit(0)), policy=once)
    assert (fatal.state, effects) == (State.FATAL, [])
    assert fatal.reason == f"{LATE.reason}; once, which is too often{HINT}"
    failing = replace(POLICY, restart=Restart(policy=RestartPolicy.ON_FAILURE))
    assert walk(stopping, Event(Symbol.EXITED, 1, Exit(0)), policy=failing)[0].state is State.STARTING
    never = replace(POLICY, restart=Restart(policy=RestartPolicy.NEVER))
    assert walk(stopping, Event(Symbol.EXITED, 1, Exit(0)), policy=never)[0].state is State.EXITED


@pytest.mark.parametrize(("wish", "end"), [(Symbol.DOWN, State.STOPPED), (Symbol.RESTART, State.STARTING)])
def test_a_wish_while_a_late_one_is_stopped_makes_it_an_ordinary_stop(wish, end):
    starting = replace(RUNNING, state=State.STARTING)
    machine, _ = walk(starting, LATE, Event(wish, 1), Event(Symbol.EXITED, 1, Exit(1)))
    assert (machine.state, machine.reason, machine.crashes) == (end, "", ())


@pytest.mark.parametrize("state", [State.RUNNING, State.STOPPING])
def test_one_that_has_been_ready_or_is_stopped_is_not_late(state):
    machine = replace(RUNNING, state=state)
    assert walk(machine, LATE) == (machine, [])


@pytest.mark.parametrize("symbol", [Symbol.READY, Symbol.EXITED, Symbol.UNHEALTHY, Symbol.RENEW, Symbol.LATE])
def test_what_an_earlier_process_did_changes_nothing(symbol):
    second = replace(RUNNING, run=2)
    assert walk(second, Event(symbol, 1)) == (second, [])


def test_a_start_that_fails_waits_and_the_machines_own_fault_never_ends_in_fatal():
    policy = replace(POLICY, restart=Restart(max_restarts=0))
    starting = replace(RUNNING, state=State.STARTING, alive=False)
    ours, _ = walk(starting, Event(Symbol.SPAWN_FAILED, reason="no memory", ours=True), policy=policy)
    assert (ours.state, ours.deadline, ours.reason, ours.crashes) == (State.BACKOFF, OURS_AGAIN, "no memory", ())
    theirs, _ = walk(starting, Event(Symbol.SPAWN_FAILED, reason="no such program"), policy=policy)
    assert (theirs.state, theirs.reason) == (State.FATAL, f"no such program; once, which is too often{HINT}")
    patient, _ = walk(starting, Event(Symbol.SPAWN_FAILED, reason="no such program"))
    assert (patient.state, patient.deadline) == (State.BACKOFF, OURS_AGAIN)


def test_an_adopted_process_goes_on_where_it_was():
    gone = replace(RUNNING, state=State.STOPPING, alive=False, wanted=Wanted.DOWN)
    machine, effects = walk(gone, Event(Symbol.ADOPTED))
    assert (machine.state, machine.alive, effects) == (State.STOPPING, True, [Signal("TERM")])
    assert walk(RUNNING, Event(Symbol.ADOPTED)) == (RUNNING, [])


def test_an_adopted_process_goes_on_in_its_stop_plan_with_the_patience_that_is_left():
    policy = replace(POLICY, stop=(StopStep("TERM", 60.0), StopStep("QUIT", 10.0)))
    stopping = replace(RUNNING, state=State.STOPPING, wanted=Wanted.DOWN, alive=False)
    first = replace(stopping, step=0, deadline=100.0)
    machine, effects = walk(first, Event(Symbol.ADOPTED), now=90.0, policy=policy)
    assert (machine.step, machine.deadline, effects) == (0, 100.0, [Signal("TERM")])
    second = replace(stopping, step=1, deadline=100.0)
    machine, effects = walk(second, Event(Symbol.ADOPTED), now=95.0, policy=policy)
    assert (machine.step, machine.deadline, effects) == (1, 100.0, [Signal("QUIT")])
    machine, effects = walk(second, Event(Symbol.ADOPTED), now=200.0, policy=policy)
    assert (machine.step, machine.deadline, effects) == (1, 210.0, [Signal("QUIT")])
    killed = replace(stopping, step=2, deadline=100.0)
    machine, effects = walk(killed, Event(Symbol.ADOPTED), now=95.0, policy=policy)
    assert (machine.step, effects) == (2, [Kill()])


def test_never_means_never_and_an_expected_exit_ends_it():
    never = replace(POLICY, restart=Restart(policy=RestartPolicy.NEVER))
    assert walk(RUNNING, Event(Symbol.EXITED, 1, Exit(1)), policy=never)[0].state is State.EXITED
    failure = replace(POLICY, restart=Restart(policy=RestartPolicy.ON_FAILURE, expected_exit_codes=(0, 2)))
    assert walk(RUNNING, Event(Symbol.EXITED, 1, Exit(2)), policy=failure)[0].state is State.EXITED
    assert walk(RUNNING, Event(Symbol.EXITED, 1, Exit()), policy=failure)[0].state is State.STARTING


WAITING = replace(POLICY, hold=Hold("waits for db:main to be ready"))


def test_what_depends_on_another_is_started_when_that_is_ready_and_says_so_until_then():
    held, effects = walk(Machine(), Event(Symbol.UP), policy=WAITING)
    assert (held.state, held.wanted, held.held, held.alive, effects) == (State.STARTING, Wanted.UP, True, False, [])
    assert held.reason == "waits for db:main to be ready"
    still, effects = walk(held, Event(Symbol.DEPENDENCY), policy=replace(POLICY, hold=Hold("waits for another")))
    assert (still.held, still.reason, effects) == (True, "waits for another", [])
    started, effects = walk(held, Event(Symbol.DEPENDENCY))
    assert (started.state, started.held, started.reason, effects) == (State.STARTING, False, "", [Spawn(1)])


@pytest.mark.parametrize("symbol", [Symbol.DOWN, Symbol.KILL])
def test_a_stop_while_it_waits_ends_that_at_once(symbol):
    held, _ = walk(Machine(), Event(Symbol.UP), policy=WAITING)
    stopped, effects = walk(held, Event(symbol), policy=WAITING)
    assert (stopped.state, stopped.held, stopped.reason, effects) == (State.STOPPED, False, "", [])
    assert walk(stopped, Event(Symbol.DEPENDENCY)) == (stopped, [])


@pytest.mark.parametrize("symbol", [Symbol.UP, Symbol.RESTART])
def test_asking_again_for_what_waits_changes_nothing(symbol):
    held, _ = walk(Machine(), Event(Symbol.UP), policy=WAITING)
    assert walk(held, Event(symbol), policy=WAITING) == (held, [])


def test_a_restart_after_a_crash_waits_too_and_counts():
    held, effects = walk(RUNNING, Event(Symbol.EXITED, 1, Exit(1)), policy=WAITING)
    assert (held.state, held.held, held.restarts, effects) == (State.STARTING, True, 1, [])
    backoff = replace(RUNNING, state=State.BACKOFF, alive=False, deadline=5.0)
    held, effects = walk(backoff, Event(Symbol.TIMER), now=5.0, policy=WAITING)
    assert (held.state, held.held, held.restarts, effects) == (State.STARTING, True, 1, [])


def test_a_dependency_that_goes_down_stops_nothing_and_adoption_waits_for_nothing():
    assert walk(RUNNING, Event(Symbol.DEPENDENCY), policy=WAITING) == (RUNNING, [])
    left = replace(RUNNING, alive=False)
    assert walk(left, Event(Symbol.ADOPTED), policy=WAITING) == (RUNNING, [])


def test_one_that_waits_for_itself_is_fatal_and_a_change_of_its_spec_starts_it():
    policy = replace(POLICY, hold=Hold("web:a depends on itself", for_ever=True))
    fatal, effects = walk(Machine(), Event(Symbol.UP), policy=policy)
    assert (fatal.state, fatal.held, fatal.reason, effects) == (State.FATAL, False, "web:a depends on itself", [])
    assert walk(fatal, Event(Symbol.SPEC_CHANGED))[1] == [Spawn(1)]


def test_every_question_has_its_answers_and_every_state_an_arrow_out():
    cells = [cell for row in (*TABLE.values(), HELD) for cell in row.values()]
    cells += [cell for answers in ANSWERS.values() for cell in answers.values()]
    asked = {cell if isinstance(cell, Question) else cell.then for cell in cells} - {None}
    assert asked == set(ANSWERS) == set(Question)
    assert all(isinstance(cell, Cell) for answers in ANSWERS.values() for cell in answers.values())
    ways = [
        (state, choice.to)
        for state, row in (*TABLE.items(), (State.STARTING, HELD))
        for cell in row.values()
        for choice in (ANSWERS[cell].values() if isinstance(cell, Question) else [cell])
        if choice.to is not state
    ]
    assert {source for source, _ in ways} == {target for _, target in ways} == set(State)


class World(RuleBasedStateMachine):
    """An operator, a machine and a program that do what they like, in any order, at any time."""

    @initialize(
        policy=st.sampled_from(RestartPolicy), most=st.integers(0, 4), floor=st.floats(0, 5), steps=st.integers(1, 3)
    )
    def begin(self, policy, most, floor, steps):
        restart = Restart(policy=policy, max_restarts=most, floor=floor, ceiling=60, window=100)
        self.policy = Policy(restart, tuple(StopStep("TERM", 10) for _ in range(steps)))
        self.machine = Machine()
        self.now = 0.0
        self.wait = None  # why nothing may be started
        self.spawning = False
        self.process = None  # the number of the process that exists
        self.killed = False

    def post(self, event, chance=0.5):
        before = self.machine
        policy = replace(self.policy, hold=self.wait)
        self.machine, effects = step(self.machine, event, self.now, policy, chance)
        if event.symbol is Symbol.EXITED and before.state is State.STOPPING and not before.blamed:
            assert self.machine.crashes in (before.crashes, ()), "an intended exit was counted as a crash"
        for effect in effects:
            if isinstance(effect, Spawn):
                assert self.wait is None, "started though it waits"
                assert self.process is None, "two processes of one instance"
                assert not self.spawning, "two processes of one instance"
                assert effect.run == before.run + 1
                self.spawning, self.killed = True, False
            if isinstance(effect, Kill) and self.process is not None:
                self.killed = True

    @rule(symbol=st.sampled_from([Symbol.UP, Symbol.DOWN, Symbol.RESTART, Symbol.KILL, Symbol.SPEC_CHANGED]))
    def operator(self, symbol):
        self.post(Event(symbol, self.machine.run))

    @rule(wait=st.sampled_from([None, Hold("waits for another"), Hold("waits for itself", for_ever=True)]))
    def others_change(self, wait):
        self.wait = wait
        self.post(Event(Symbol.DEPENDENCY))
        assert self.machine.held is False or wait is not None

    @precondition(lambda self: self.spawning)
    @rule()
    def spawned(self):
        self.spawning, self.process = False, self.machine.run
        self.post(Event(Symbol.SPAWNED))

    @precondition(lambda self: self.spawning)
    @rule(ours=st.booleans(), chance=st.floats(0, 0.99))
    def spawn_fails(self, ours, chance):
        self.spawning = False
        self.post(Event(Symbol.SPAWN_FAILED, reason="no", ours=ours), chance)

    @precondition(lambda self: self.process is not None)
    @rule(symbol=st.sampled_from([Symbol.READY, Symbol.UNHEALTHY, Symbol.RENEW, Symbol.LATE]))
    def speaks(self, symbol):
        self.post(Event(symbol, self.process, reason="hung"))

    @precondition(lambda self: self.process is not None)
    @rule(exit=st.sampled_from([Exit(0), Exit(1), Exit(signal=9), Exit()]), chance=st.floats(0, 0.99))
    def ends(self, exit, chance):
        run, self.process = self.process, None
        self.post(Event(Symbol.EXITED, run, exit), chance)

    @rule(symbol=st.sampled_from([Symbol.READY, Symbol.EXITED, Symbol.UNHEALTHY]), back=st.integers(0, 3))
    def says_something_late(self, symbol, back):
        run = self.machine.run - back
        if run != self.process:
            before = self.machine
            self.post(Event(symbol, run))
            assert self.machine == before

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds):
        self.now += seconds
        self.post(Event(Symbol.TIMER))

    @precondition(lambda self: not self.spawning)
    @rule()
    def daemon_is_killed_and_adopts(self):
        if self.process is not None:
            self.machine = replace(self.machine, alive=False)
            self.post(Event(Symbol.ADOPTED))

    @invariant()
    def the_machine_knows_what_is(self):
        if hasattr(self, "machine"):
            assert self.machine.alive is (self.process is not None)
            resting = self.machine.state in (State.STOPPED, State.BACKOFF, State.EXITED, State.FATAL)
            assert resting is not (self.process is not None or self.spawning or self.machine.held)
            assert not self.machine.held or (self.machine.state is State.STARTING and self.machine.reason)
            assert not (self.machine.held and (self.process is not None or self.spawning))
            if self.machine.state is State.BACKOFF:
                assert self.machine.deadline is not None

    def teardown(self):
        """Wanted up and not FATAL ends in RUNNING once the process behaves; wanted down ends without a process."""
        if not hasattr(self, "machine"):
            return
        self.others_change(None)
        for wanted, end in ((Symbol.UP, State.RUNNING), (Symbol.DOWN, State.STOPPED)):
            self.post(Event(wanted))
            for _ in range(20):
                if self.spawning:
                    self.spawned()
                elif self.process is not None and (self.machine.state is State.STOPPING or self.killed):
                    self.ends(Exit(0), 0.5)
                elif self.process is not None:
                    self.speaks(Symbol.READY)
                else:
                    self.time_passes(61)
                if wanted is Symbol.UP and self.machine.state in (State.FATAL, State.EXITED):
                    self.post(Event(Symbol.UP))
            assert self.machine.state is end


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=300, stateful_step_count=40)


@given(st.lists(st.sampled_from(list(Symbol)), max_size=8))
def test_no_order_of_wishes_alone_starts_more_than_one_process(symbols):
    wishes = [symbol for symbol in symbols if symbol in (Symbol.UP, Symbol.DOWN, Symbol.RESTART, Symbol.SPEC_CHANGED)]
    _, effects = walk(Machine(), *map(Event, wishes))
    assert sum(isinstance(effect, Spawn) for effect in effects) <= 1
