"""A Celery worker: how it is started, when it is ready, what it is told, when it is hung, how it is stopped.

The worker runs under the user's own interpreter with branchd's agent beside it (branchd/agent), and what the agent
reports comes here. Facts and traps: docs/celery.md.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from branchd.core.findings import Finding, Ready, Renew, Tell, Unhealthy
from branchd.core.health import PERIOD, SILENT, Healthy, Hold, Hung, Observation, Phase, judge
from branchd.core.reconcile import Cancel, Consume, Scale, Work, reconcile
from branchd.core.spec import Autoscale, Pool, Spec, StopStep
from branchd.core.value import Value
from branchd.core.values import Launch, QueueDeclaration, Truth
from branchd.drivers.environment import PATH, Place, base_launch
from branchd.wire import agent
from branchd.wire.agent import Heartbeat
from branchd.wire.resources import ConditionType, ConditionView

#: seconds until a worker whose agent never spoke is taken as a plain process (too old a Celery, a foreign wrapper)
AGENT_PATIENCE = 30.0

#: heartbeats after which a queue that the worker agreed to consume from, and does not, is a lost consumer
LOST_AFTER = 5

#: Warm shutdown: TERM to the main process lets running tasks end, 60 s. Then QUIT, but only to prefork: on solo it
#: loses the running task, on threads it raises NotImplementedError.
STOP_PREFORK = (StopStep("TERM", 60.0), StopStep("QUIT", 10.0))
STOP = (StopStep("TERM", 60.0),)


class CeleryDriver(Value):
    agent: str  #: path of the agent's folder, which an interpreter can run
    socket: str  #: path that the agent connects to
    python: str  #: interpreter for specs that name none
    cpus: int  #: processes of a prefork pool whose spec names no number, as Celery does

    def launch(self, place: Place) -> Launch:
        spec = place.spec
        python = spec.python or self.python
        words = [python, self.agent, "-A", spec.application or "", "worker", "-n", place.node_name]
        # Gossip and mingle talk to every other worker at each start, and nothing here needs them.
        words += ["--without-gossip", "--without-mingle", "-l", "INFO", "-P", spec.pool.value]
        if bounds := self._bounds(spec):
            # Always, also when equal: a worker that was started without it refuses to be autoscaled later.
            words.append(f"--autoscale={bounds.max},{bounds.min}")
        elif spec.concurrency is not None:
            words += ["-c", str(spec.concurrency)]
        if place.queues is not None:
            words += ["-Q", ",".join(queue.name for queue in place.queues)]
        path = f"{PurePath(python).parent}:{PATH}" if "/" in python else PATH
        extra = {
            "PATH": path,
            agent.SETTINGS_VARIABLE: agent.settings(self.socket, place.queues or ()),
            # else setproctitle overwrites the environment in memory, and with it the mark of a lost process
            "SPT_NOENV": "1",
        }
        if spec.broker is not None:
            extra["CELERY_BROKER_URL"] = spec.broker  # never argv, which everybody can read
        return base_launch(place, (*words, *spec.arguments), extra)

    def stop_plan(self, spec: Spec) -> tuple[StopStep, ...]:
        return spec.stop or (STOP_PREFORK if spec.pool is Pool.PREFORK else STOP)

    def work(self, spec: Spec, queues: tuple[QueueDeclaration, ...] | None) -> Work:
        return Work(queues, self._bounds(spec))

    def monitor(self, spec: Spec, work: Work) -> "CeleryMonitor":
        return CeleryMonitor(spec.task_stall_limit, work)

    def _bounds(self, spec: Spec) -> Autoscale | None:
        if spec.pool is not Pool.PREFORK:
            return None  # on threads and solo --autoscale breaks the worker on the first burst
        number = spec.concurrency or self.cpus
        return spec.autoscale or Autoscale(number, number)


class CeleryMonitor:
    ticks = True

    def __init__(self, stall_limit: float, work: Work) -> None:
        self._stall_limit = stall_limit
        self._work = work
        self._report: Heartbeat | None = None
        self._heard_at = 0.0
        self._well_at = 0.0
        self._began_at = 0.0
        self._plain = False
        self._ready = False
        self._held = ""
        self._silent = False
        #: CPU seconds when it fell silent
        self._cpu: float | None = None
        #: queue -> heartbeats since the worker agreed to consume from it and does not
        self._agreed: dict[str, int] = {}
        #: queue (or "autoscale") -> why the worker refused
        self._refused: dict[str, str] = {}

    def began(self, now: float) -> Sequence[Finding]:
        self._began_at = self._heard_at = self._well_at = now
        return []

    def heard(self, report: Heartbeat, now: float) -> Sequence[Finding]:
        self._report, self._heard_at, self._cpu, self._plain, self._silent = report, now, None, False, False
        if report.phase is not Phase.UP:
            self._agreed.clear()
            return []
        findings: list[Finding] = []
        if not self._ready:
            self._ready = True
            findings.append(Ready())
        return [*findings, *self._corrections(report)]

    def hung_up(self, now: float) -> None:
        """Without its line nothing is known of it, and what is not known is no reason to kill."""
        self._report, self._cpu, self._held = None, None, ""
        self._began_at = now

    def forget(self, now: float) -> None:
        self._heard_at = self._well_at = now
        self._cpu = None

    def wants(self, work: Work, stall_limit: float) -> Sequence[Finding]:
        self._work, self._stall_limit = work, stall_limit
        self._refused.clear()
        if self._report is None or self._report.phase is not Phase.UP:
            return []
        return self._corrections(self._report)

    def told(self, command: Mapping[str, Any], refusal: str | None) -> None:
        match command["op"]:
            case "add_consumer":
                name = command["queue"]["name"]
                if refusal is None:
                    self._agreed.setdefault(name, 0)
            case "cancel_consumer":
                name = command["name"]
            case _:
                name = "autoscale"
        if refusal is None:
            self._refused.pop(name, None)
        else:
            self._refused[name] = refusal

    def tick(self, now: float, cpu_seconds: Callable[[], float | None]) -> Sequence[Finding]:
        report = self._report
        if report is None:
            if not self._plain and now - self._began_at > AGENT_PATIENCE:
                self._plain = self._ready = True
                return [Ready()]
            return []
        silent_for = now - self._heard_at
        self._silent = silent_for > SILENT
        moves = True
        if silent_for > PERIOD * 1.5:
            # Only now, so that a worker that speaks costs no look at /proc.
            cpu = cpu_seconds()
            if self._cpu is None:
                self._cpu = cpu
            moves = cpu is not None and cpu != self._cpu
        verdict = judge(
            Observation(
                phase=report.phase,
                silent_for=silent_for,
                cpu_moves=moves,
                loop_age=report.loop_age,
                active=report.active,
                stalled_for=now - self._well_at,
                stall_limit=self._stall_limit,
            )
        )
        match verdict:
            case Healthy():
                self._well_at, self._held = now, ""
            case Hold(reason) if report.phase is Phase.UP:
                self._held = reason
            case Hold():
                self._well_at, self._held = now, ""  # conditions() says it with the broker's own words
            case Hung(reason):
                return [Unhealthy(reason)]
        return []

    def _corrections(self, report: Heartbeat) -> Sequence[Finding]:
        bounds = None if report.autoscale is None else Autoscale(*report.autoscale)
        consumed = report.queues if report.queues is not None else self._wanted_queues()
        corrections = reconcile(self._work, consumed, bounds)
        lacking = {correction.queue.name for correction in corrections if isinstance(correction, Consume)}
        self._agreed = {name: count + 1 for name, count in self._agreed.items() if name in lacking}
        if lost := sorted(name for name, count in self._agreed.items() if count > LOST_AFTER):
            self._agreed.clear()
            return [Renew(f"lost its consumer of {', '.join(lost)} and did not take it up again")]
        commands: list[Finding] = []
        for correction in corrections:
            match correction:
                case Consume(queue):
                    commands.append(Tell(agent.add_consumer(queue)))
                case Cancel(name):
                    commands.append(Tell(agent.cancel_consumer(name)))
                case Scale(wanted):
                    commands.append(Tell(agent.autoscale(wanted.min, wanted.max)))
        return commands

    def _wanted_queues(self) -> tuple[str, ...]:
        return tuple(queue.name for queue in self._work.queues or ())

    def conditions(self) -> Sequence[ConditionView]:
        report = self._report
        if report is None:
            why = "its agent does not answer; supervised as a plain process" if self._plain else "nothing heard yet"
            return [
                ConditionView(ConditionType.READY, Truth.UNKNOWN, why),
                ConditionView(ConditionType.CELERY_RESPONSIVE, Truth.UNKNOWN, why),
                ConditionView(ConditionType.QUEUES_IN_SYNC, Truth.UNKNOWN, why),
            ]
        up = report.phase is Phase.UP
        held = self._held if up else _not_up(report)
        return [
            ConditionView(ConditionType.READY, Truth.TRUE if up else Truth.FALSE, held),
            ConditionView(
                ConditionType.CELERY_RESPONSIVE, *((Truth.FALSE, held) if self._silent else (Truth.TRUE, ""))
            ),
            self._in_sync(report, up),
        ]

    def _in_sync(self, report: Heartbeat, up: bool) -> ConditionView:
        kind = ConditionType.QUEUES_IN_SYNC
        if not up:
            return ConditionView(kind, Truth.UNKNOWN, "not connected to its broker")
        if self._work.queues is None:
            return ConditionView(kind, Truth.TRUE)
        wanted, consumed = set(self._wanted_queues()), set(report.queues or ())
        if report.queues is None:
            return ConditionView(kind, Truth.UNKNOWN, "too many queues to tell")
        if wanted == consumed:
            return ConditionView(kind, Truth.TRUE)
        lacking, extra = sorted(wanted - consumed), sorted(consumed - wanted)
        words = [f"does not consume from {', '.join(lacking)}"] if lacking else []
        words += [f"still consumes from {', '.join(extra)}"] if extra else []
        words += [f"{name}: {why}" for name, why in sorted(self._refused.items()) if name in wanted | consumed]
        return ConditionView(kind, Truth.FALSE, "; ".join(words))


def _not_up(report: Heartbeat) -> str:
    """Why a worker that is not up is not, in its own words where it has some."""
    words = {"boot": "not connected to its broker yet", "down": "its broker is unreachable", "stopping": "it stops"}
    return ": ".join(filter(None, (words[report.phase], report.error)))
