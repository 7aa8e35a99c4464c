"""One instance: what others may ask of it, and what is done when something happens to it.

The single writer of its record and of its process: events are handled one after the other, and no other instance ever
waits for it. What to do is decided in core/automaton.py, and by the driver's monitor; here it is done.

Its parts stand beside it: what waits to be handled (mailbox.py), what is on record (recording.py), how its program is
started (launching.py), and what goes with the process while it lives (attendance.py).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from branchd.branch.attendance import Attendance
from branchd.branch.journal import Journal
from branchd.branch.keeper import Keeper
from branchd.branch.launching import Launching
from branchd.branch.mailbox import Mailbox
from branchd.branch.news import News
from branchd.branch.ports import Driver, Process
from branchd.branch.recording import Recording
from branchd.branch.records import InstanceRecord, RunRecord
from branchd.branch.view import render
from branchd.branch.watch import Watch
from branchd.branch.world import World
from branchd.core.automaton import step
from branchd.core.errors import NoChannel, SpawnFailed, StorageFailed
from branchd.core.lifecycle import Effect, Event, Kill, Machine, Policy, Signal, Spawn, State, Symbol
from branchd.core.reconcile import Work
from branchd.core.spec import Limits, Spec, Wanted, launched_with
from branchd.core.values import Exit, Identity, Key, Launch, QueueDeclaration, Truth, signal_number
from branchd.wire.agent import Heartbeat
from branchd.wire.resources import ConditionType, ConditionView, Instance

log = structlog.get_logger(__name__)


class Supervisor:
    def __init__(
        self,
        world: World,
        journal: Journal,
        watch: Watch,
        branch: str,
        node_name: str,
        record: InstanceRecord,
        spec: Spec,
        queues: tuple[QueueDeclaration, ...] | None,
        run: RunRecord | None,
        keeper: Keeper,
    ) -> None:
        self._world = world
        self._watch = watch
        self._branch = branch
        self._launching = Launching(world, record.key, node_name)
        self._keeper = keeper
        self.record = record
        self.spec = spec
        self._queues = queues
        self._recording = Recording(world, journal, record.key, run, self._touch)
        self._mailbox = Mailbox(world.clock, self._handle, self._failed, self._emptied)
        self._post = self._mailbox.post
        self.attendance: Attendance | None = None  #: what goes with its process, while there is one
        #: Why this supervisor itself cannot go on; shown as FATAL. Cleared by the next start.
        self._broken = ""
        self._retired = False
        self._view: Instance | None = None
        self._changed = News()

    @property
    def key(self) -> Key:
        return self.record.key

    @property
    def waiting(self) -> bool:
        """It is a replacement, and its elder still stands for its name."""
        return self.record.placed is not None and self.record.placed.waiting

    @property
    def run(self) -> RunRecord:
        return self._recording.run

    @property
    def machine(self) -> Machine:
        return self.run.machine

    @property
    def process(self) -> Process | None:
        return self.attendance.process if self.attendance is not None else None

    @property
    def report(self) -> Heartbeat | None:
        """What the worker's agent said last, while its line is open."""
        return self.attendance.report if self.attendance is not None else None

    @property
    def state(self) -> State:
        return State.FATAL if self._broken else self.machine.state

    @property
    def ready(self) -> bool:
        """It does its work now: a worker that has lost its broker runs, and is not ready."""
        doubted = any(one.type is ConditionType.READY and one.status is not Truth.TRUE for one in self._conditions)
        return self.state is State.RUNNING and self.attendance is not None and not doubted

    @property
    def settled(self) -> bool:
        """No process, and none on its way."""
        idle = self.machine.state in (State.STOPPED, State.EXITED, State.FATAL) and not self.machine.alive
        return idle and not self._mailbox.busy

    @property
    def _conditions(self) -> tuple[ConditionView, ...]:
        """As its driver and its probes say."""
        return self.attendance.conditions if self.attendance is not None else ()

    @property
    def _driver(self) -> Driver:
        return self._world.drivers[self.spec.kind]

    # What others may do

    async def idle(self) -> None:
        """Returns when what was asked so far is done: decided, committed, started or signalled."""
        await self._mailbox.idle()

    def want(self, wanted: Wanted) -> None:
        self._post(Event(Symbol.UP if wanted is Wanted.UP else Symbol.DOWN))

    def start(self) -> None:
        self.want(Wanted.UP)

    def stop(self) -> None:
        self.want(Wanted.DOWN)

    def restart(self) -> None:
        self._post(Event(Symbol.RESTART, self.machine.run))

    async def begun(self) -> None:
        """As idle(), after restart(). StorageFailed where it was not begun, and what runs goes on."""
        await self.idle()
        self._recording.check()

    def retire(self) -> None:
        """Stops it for good: the daemon ends or the instance is deleted, and nothing starts it any more."""
        self._retired = True
        self.stop()

    def renew(self, reason: str) -> None:
        self._post(Event(Symbol.RENEW, self.machine.run, reason=reason))

    def kill(self) -> None:
        self._post(Event(Symbol.KILL))

    def reconsider(self) -> None:
        """What it depends on stands otherwise than it did; where it waits for that, it may be started now."""
        self._post(Event(Symbol.DEPENDENCY))

    def signal(self, number: int) -> bool:
        """To the main process; False when there is none."""
        if self.process is None:
            return False
        self.process.signal(number)
        return True

    def redefine(self, record: InstanceRecord, spec: Spec, queues: tuple[QueueDeclaration, ...] | None) -> None:
        """The spec, its app's or a queue's declaration changed, and the change is committed."""
        before = self.spec
        self.record, self.spec, self._queues = record, spec, queues
        self._touch()
        if self.attendance is not None:
            self._observe()
            self._world.logs.watch(self.key, self.spec.logs, self.attendance.process.identity.pid, self._touch)
            self.attendance.wants(self.work, spec)
        if spec.wanted is not before.wanted:
            self.want(spec.wanted)
        if launched_with(spec) != launched_with(before) or spec.depends_on != before.depends_on:
            self._post(Event(Symbol.SPEC_CHANGED))

    def outdated(self, spec: Spec | None = None) -> bool:
        """Whether its process was started with something else than this spec says, by default its own."""
        return self.process is not None and self.run.launched != self._launching.digest(spec or self.spec)

    async def ask(self, command: Mapping[str, Any], timeout: float) -> Any:
        """Asks the worker's agent. NoChannel, Refused."""
        if self.attendance is None:
            raise NoChannel(f"{self.key} does not run")
        return await self.attendance.ask(command, timeout)

    async def changed(self) -> None:
        """Returns after the next change of what view() shows, or the end of the instance."""
        await self._changed.wait()

    async def reported(self) -> None:
        """Returns after the next report of the worker, or its end; at once where there is none."""
        if self.attendance is not None:
            await self.attendance.reported()

    def gone(self) -> None:
        """It was deleted."""
        self._touch()

    @property
    def unenforced(self) -> Mapping[str, str] | None:
        """Limits that it asks for and the machine does not keep, and why; None where it asks for none."""
        limits = self.spec.limits
        return None if limits == Limits() else self._world.processes.unenforceable(limits)

    @property
    def work(self) -> Work:
        return self._driver.work(self.spec, self._queues)

    def view(self) -> Instance:
        """The same object while nothing changed."""
        if self._view is None:
            self._view = render(
                self.record, self.spec, self.run, self._branch, self.state, self._broken,
                self._conditions, current=not self.outdated(), boot_at=self._world.wall() - self._world.clock(),
                unenforced=self.unenforced, lost=self._world.logs.lost(self.key),
            )  # fmt: skip
        return self._view

    # A process that an earlier daemon left

    @property
    def lost(self) -> tuple[str, float] | None:
        """Nonce and time of a spawn of this boot whose process is not on record."""
        return self._recording.lost

    def adopt(self, found: Identity | None, *, ambiguous: bool) -> None:
        """Once, at the daemon's start: takes over what runs. `found`: the process that was lost."""
        run, machine = self.run, self.machine
        if not self._recording.of_this_boot:
            self._recording.rebooted()
        elif ambiguous:
            self._broken = (
                "several processes carry the mark of a start that the last daemon did not finish; "
                "a start ends them all and begins anew"
            )
            log.error("ambiguous adoption", instance=str(self.key))
        elif (machine.alive or self.lost) and (identity := run.identity or found) is not None:
            on_exit = self._exit_of(machine.run)
            process = self._world.processes.adopt(self.key, run.nonce, identity, self.spec.limits, on_exit)
            if process is not None:
                self._post(Event(Symbol.ADOPTED))  # first: a process that is not known to be alive cannot be ready
                self._recording.found(process.identity)
                self._took(process)
                self._observe()

    def begin(self, *, held: bool = False) -> None:
        """Once, after adopt(): goes on from there. `held`: what does not run is not started, though it is wanted up."""
        if self._broken:
            pass  # a start mends it
        elif self.machine.alive and self.attendance is None:
            self._post(Event(Symbol.EXITED, self.machine.run))
        elif self.lost:
            self._world.processes.sweep(self.key, self.run.nonce)
            self._post(Event(Symbol.SPAWN_FAILED, reason="the daemon ended while it was being started", ours=True))
        self._mailbox.wake(self.machine.deadline)
        if self.record.deleting:
            self.retire()
        elif not self._broken and not held:
            if self.spec.wanted is not self.machine.wanted:
                self.want(self.spec.wanted)
            elif self.machine.held:
                self.reconsider()
        if self.settled:
            self._finish_logs()
        self._touch()

    # What comes of an event

    async def _handle(self, event: Event) -> None:
        if event.symbol in (Symbol.UP, Symbol.RESTART) and self._retired:
            return
        if self._broken:
            if event.symbol not in (Symbol.UP, Symbol.DOWN, Symbol.RESTART, Symbol.KILL):
                return
            self._mend()
        before = self.machine
        policy = Policy(self.spec.restart, self._driver.stop_plan(self.spec), self._keeper.hold(self))
        machine, effects = step(before, event, self._world.clock(), policy, self._world.chance())
        told = before  #: up to where the events tell of it
        ends = machine.state is State.STOPPING and before.state is not State.STOPPING
        if ends and event.symbol in (Symbol.RESTART, Symbol.RENEW):
            if not await self._recording.ends(machine):
                return  # no start is made without a commit, so nothing is ended for one either
            told = machine
        self._recording.moved(machine)
        if before.alive and not machine.alive:
            self._recording.ended(event.exit, self.attendance.tasks if self.attendance is not None else ())
            self._forget_process()
        intent = any(isinstance(effect, Spawn) for effect in effects)
        if intent:
            self._recording.intends(self.record.generation, self._launching.digest(self.spec))
        if machine != before:
            self._touch()
        moved = machine.state is not before.state or intent
        # What changes no state waits for the next event's commit, where there is one.
        if not self._recording.saved and (moved or not self._mailbox.more):
            if intent:
                self._mailbox.answer(await self._spawn(self._recording.begin(told)))
            else:
                await self._recording.save(told, self.spec.logs)
        if machine.state is State.STOPPING and self.attendance is not None:
            self.attendance.stopping()
        for effect in effects:
            self._carry_out(effect)
        self._mailbox.wake(machine.deadline)

    def _failed(self, error: Exception) -> None:
        """A bug of ours must not reach other instances, nor start anything twice."""
        log.exception("supervisor failed", instance=str(self.key))
        # Not the error's own words: they may hold a secret, and everybody may read this.
        self._broken = f"internal error ({type(error).__name__}), see the daemon's log; start it to try again"
        self._touch()

    def _emptied(self) -> None:
        if self.settled:
            self._finish_logs()
            self._touch()  # who waits for that looks again
            self._keeper.settle(self)

    def _finish_logs(self) -> None:
        if self.machine.run:  # also of one that ended while no daemon was there, or whose daemon came not so far
            self._world.logs.watch(self.key, self.spec.logs, 0, self._touch)
        self._world.logs.forget(self.key)

    def _mend(self) -> None:
        """Begins anew: whatever is left of its processes ends, whatever is known of them is forgotten."""
        if self.process is not None:
            self.process.kill_tree()
        self._forget_process()
        self._recording.forget()
        self._broken = ""
        self._touch()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Signal(name):
                self.signal(signal_number(name))
            case Kill():
                if self.process is not None:
                    self.process.kill_tree()

    async def _spawn(self, recorded: asyncio.Future[None]) -> Event:
        """What came of it. The start is prepared while the intent is committed, and made when it is."""
        await asyncio.sleep(0)  # first the store is told, then the rest of this turn prepares
        run = self.machine.run
        # Those of now: a redefinition may come while it begins.
        generation, launched = self.record.generation, self._launching.digest(self.spec)
        try:
            start = self._launching.start(self.spec, self._queues, self.run.nonce, self._exit_of(run), recorded)
            process = await start
        except StorageFailed as failure:
            self._recording.failed(failure)
            return Event(Symbol.SPAWN_FAILED, run, reason="the store takes nothing; its disk may be full", ours=True)
        except SpawnFailed as failure:
            try:
                await recorded  # first: what comes of this failure is recorded after it
            except StorageFailed as unsaved:
                self._recording.failed(unsaved)
            reason = ": ".join(filter(None, (failure.detail, failure.hint))).encode(errors="replace").decode()
            return Event(Symbol.SPAWN_FAILED, run, reason=reason, ours=failure.ours)
        self._recording.started(process.identity, generation, launched)
        self._took(process)
        return Event(Symbol.SPAWNED, run)

    def launch_beside(self, argv: tuple[str, ...]) -> Launch:
        """How another program is run as the instance is. SpawnFailed."""
        return self._launching.beside(self.spec, self._queues, argv)

    def _took(self, process: Process) -> None:
        monitor = self._driver.monitor(self.spec, self.work)
        self.attendance = Attendance(
            self._world, self._watch, self.key, process, monitor, self.machine.run, self.run.intent,
            self.machine.state is State.RUNNING, self.launch_beside, self._post, self._touch,
        )  # fmt: skip
        self._world.logs.watch(self.key, self.spec.logs, process.identity.pid, self._touch)
        self.attendance.begin(self.spec)

    def _observe(self) -> None:
        """A change that needs no restart is taken up as soon as it is made."""
        if self.run.launched == self._launching.digest(self.spec):
            self._recording.observed(self.record.generation)

    def _exit_of(self, run: int) -> Callable[[Exit], None]:
        return lambda exit: self._post(Event(Symbol.EXITED, run, exit))

    def _forget_process(self) -> None:
        """It is gone, and nothing of its tree may outlive it, or the next one would not be alone."""
        if self.attendance is not None:
            self.attendance.end()
            self.attendance = None
        self._world.processes.sweep(self.key, self.run.nonce)

    def _touch(self) -> None:
        self._view = None
        self._changed.tell()
        self._keeper.look(self)
