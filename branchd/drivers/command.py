"""Any program: it is ready as soon as it runs, and it is well as long as it does not end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from branchd.core.findings import Finding, Ready
from branchd.core.reconcile import Work
from branchd.core.spec import Spec, StopStep
from branchd.core.values import Launch, QueueDeclaration
from branchd.drivers.environment import Place, base_launch
from branchd.wire.agent import Heartbeat
from branchd.wire.resources import ConditionView

#: TERM, then 10 s until the tree is killed, as supervisord's stopwaitsecs
STOP = (StopStep("TERM", 10.0),)


class CommandMonitor:
    ticks = False

    def began(self, now: float) -> Sequence[Finding]:
        return [Ready()]

    def heard(self, report: Heartbeat, now: float) -> Sequence[Finding]:
        return []

    def hung_up(self, now: float) -> None:
        pass

    def tick(self, now: float, cpu_seconds: Callable[[], float | None]) -> Sequence[Finding]:
        return []

    def forget(self, now: float) -> None:
        pass

    def wants(self, work: Work, stall_limit: float) -> Sequence[Finding]:
        return []

    def told(self, command: Mapping[str, Any], refusal: str | None) -> None:
        pass

    def conditions(self) -> Sequence[ConditionView]:
        return []


class CommandDriver:
    #: It keeps nothing of any process, so one serves all.
    _monitor = CommandMonitor()

    def launch(self, place: Place) -> Launch:
        return base_launch(place, place.spec.command)

    def stop_plan(self, spec: Spec) -> tuple[StopStep, ...]:
        return spec.stop or STOP

    def work(self, spec: Spec, queues: tuple[QueueDeclaration, ...] | None) -> Work:
        return Work(None, None)

    def monitor(self, spec: Spec, work: Work) -> CommandMonitor:
        return self._monitor
