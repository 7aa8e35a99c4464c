"""What goes with one process from its start or adoption to its end: its driver's monitor, the line to its agent, and
its probes. It is ready when all of them say so.

The monitor decides, here its findings are passed on: events to the supervisor's mailbox, commands to the agent.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from branchd.branch.news import News
from branchd.branch.ports import Monitor, Process
from branchd.branch.probing import Probing
from branchd.branch.watch import Watch
from branchd.branch.world import World
from branchd.core.errors import NoChannel, Refused
from branchd.core.findings import Finding, Ready, Renew, Tell, Unhealthy
from branchd.core.lifecycle import Event, Symbol
from branchd.core.reconcile import Work
from branchd.core.spec import Spec
from branchd.core.values import Key, Launch, Truth
from branchd.wire.agent import Heartbeat
from branchd.wire.resources import ConditionType, ConditionView

log = structlog.get_logger(__name__)

#: seconds within which a worker answers a correction; it is sent again with a later heartbeat
TELL_TIMEOUT = 10.0

#: corrections under way at a time; a worker that reports thousands of wrong queues gets no task for each of them
MOST_TOLD = 32


class Attendance:
    def __init__(
        self,
        world: World,
        watch: Watch,
        key: Key,
        process: Process,
        monitor: Monitor,
        run: int,
        started: float,
        was_ready: bool,
        launch: Callable[[tuple[str, ...]], Launch],
        post: Callable[[Event], None],
        on_change: Callable[[], None],
    ) -> None:
        """`run` is the number of the process; `on_change` is called when `conditions` says something new.

        `started`, `was_ready`, `launch`: as for Probing.
        """
        self.process = process
        self.report: Heartbeat | None = None  #: the last, while its line is open
        self.tasks: tuple[str, ...] = ()  #: ids of tasks that it ran when it was last heard
        self.conditions: tuple[ConditionView, ...] = ()
        self._world = world
        self._watch = watch
        self._monitor = monitor
        self._run = run
        self._post = post
        self._on_change = on_change
        self._reported = News()
        self._telling: list[Mapping[str, Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing = Probing(world, key, started, was_ready, launch, self._doubts, self._found, self._look)

    def begin(self, spec: Spec) -> None:
        if self._monitor.ticks:
            self._world.channel.admit(self.process.identity.pid)
            self._watch.add(self)
        self._probing.want(spec.ready, spec.alive)
        self._act(self._monitor.began(self._world.clock()))

    def stopping(self) -> None:
        """Its stop plan runs: it may well answer nobody any more."""
        self._probing.stop()

    def end(self) -> None:
        """The process is gone, or is to be forgotten."""
        self._world.channel.dismiss(self.process.identity.pid)
        self._watch.discard(self)
        self._probing.stop()
        for task in self._tasks:
            task.cancel()
        self._set_report(None)

    def heard(self, report: Heartbeat) -> None:
        self.tasks = report.tasks
        self._set_report(report)
        self._act(self._monitor.heard(report, self._world.clock()))

    def hung_up(self) -> None:
        self._set_report(None)
        self._monitor.hung_up(self._world.clock())
        self._look()

    def tick(self, now: float) -> None:
        self._act(self._monitor.tick(now, self.process.cpu_seconds))

    def forget(self, now: float) -> None:
        self._monitor.forget(now)

    def wants(self, work: Work, spec: Spec) -> None:
        self._probing.want(spec.ready, spec.alive)
        self._act(self._monitor.wants(work, spec.task_stall_limit))

    async def ask(self, command: Mapping[str, Any], timeout: float) -> Any:
        """Asks the agent. NoChannel, Refused."""
        return await self._world.channel.ask(self.process.identity.pid, command, timeout)

    async def reported(self) -> None:
        """Returns after the next report, or the end."""
        await self._reported.wait()

    def _set_report(self, report: Heartbeat | None) -> None:
        self.report = report
        self._reported.tell()

    def _act(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            match finding:
                case Ready():
                    self._probing.said()
                case Unhealthy(reason):
                    self._post(Event(Symbol.UNHEALTHY, self._run, reason=reason))
                case Renew(reason):
                    log.warning("restarting", pid=self.process.identity.pid, reason=reason)
                    self._post(Event(Symbol.RENEW, self._run, reason=reason))
                case Tell(command) if len(self._telling) < MOST_TOLD and command not in self._telling:
                    self._telling.append(command)
                    task = asyncio.get_running_loop().create_task(self._tell(command))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        self._look()

    async def _tell(self, command: Mapping[str, Any]) -> None:
        refusal = None
        try:
            await self.ask(command, TELL_TIMEOUT)
        except NoChannel:
            return
        except Refused as words:
            refusal = words.detail
        finally:
            self._telling.remove(command)
        self._monitor.told(command, refusal)
        self._look()

    def _found(self, symbol: Symbol, reason: str) -> None:
        if symbol is not Symbol.READY:
            log.warning("probed", pid=self.process.identity.pid, found=symbol.value, reason=reason)
        self._post(Event(symbol, self._run, reason=reason))

    def _doubts(self) -> str:
        """Why its kind does not take it as ready."""
        return next((one.reason for one in self._monitor.conditions() if one.type is ConditionType.READY), "")

    def _look(self) -> None:
        """Reports come every two seconds and seldom say something new."""
        conditions = tuple(self._monitor.conditions())
        doubts = any(one.type is ConditionType.READY and one.status is not Truth.TRUE for one in conditions)
        if not doubts and (doubt := self._probing.doubt()):
            others = (one for one in conditions if one.type is not ConditionType.READY)
            conditions = (ConditionView(ConditionType.READY, Truth.FALSE, doubt), *others)
        if conditions != self.conditions:
            self.conditions = conditions
            self._on_change()
