"""What can be asked of Celery workers beyond supervision: consumers, autoscale, their own statistics.

Consumers and autoscale are wanted state: they are written into the instance's spec, and its supervisor sees to it that
the worker does so, now, after its next restart, and whenever its broker comes back.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from branchd.branch.fleet import Fleet
from branchd.branch.instances import Instances
from branchd.branch.supervisor import Supervisor
from branchd.core.errors import Conflict, Invalid, NoChannel, NotFound, Refused
from branchd.core.faults import autoscale_fault, queue_fault
from branchd.core.health import Phase
from branchd.core.spec import Autoscale, Kind, Pool
from branchd.wire import agent
from branchd.wire.decode import decode, encode
from branchd.wire.resources import AutoscaleView, Consumer

#: seconds that a worker has to answer a question
ASK_TIMEOUT = 5.0

#: seconds within which a worker takes up a consumer or gives one up; one without epoll needs two or three
CONFIRM_TIMEOUT = 8.0

#: what Celery consumes from where nobody says
DEFAULT_QUEUE = "celery"


class Celery:
    def __init__(self, fleet: Fleet, instances: Instances) -> None:
        self._fleet = fleet
        self._instances = instances

    def consumers(self, app: str, name: str) -> list[Consumer]:
        supervisor = self._worker(app, name)
        reported = _reported(supervisor)
        names = sorted({*(supervisor.spec.queues or ()), *(reported or ())})
        return [self._consumer(supervisor, queue) for queue in names]

    def consumer(self, app: str, name: str, queue: str) -> Consumer:
        found = self._consumer(self._worker(app, name), queue)
        if not found.wanted and not found.consuming:
            raise NotFound(f"{app}:{name} does not consume from {queue[:80]!r}")
        return found

    async def put_consumer(self, app: str, name: str, queue: str) -> Consumer:
        """Conflict with the broker's own words where it refuses the queue; nothing is changed then."""
        supervisor = self._worker(app, name)
        if fault := queue_fault(queue, ""):
            raise Invalid([fault])
        wanted = _present(supervisor)
        if queue not in wanted or supervisor.spec.queues is None:
            declaration = self._fleet.definitions.declaration(app, queue)
            try:
                await supervisor.ask(agent.declare(declaration), ASK_TIMEOUT)
            except Refused as refused:
                if _reported(supervisor) is not None:
                    raise Conflict(
                        f"the broker refuses the queue {queue}: {refused.detail}",
                        "declare it for the app as it stands at the broker, or delete it there",
                    ) from None
            except NoChannel:
                pass  # it is down, or cut off: wanted all the same, and taken up when it can be
            await self._edit_queues(app, name, add=queue)
        await self._confirm(supervisor, queue, consuming=True)
        return self._consumer(supervisor, queue)

    async def delete_consumer(self, app: str, name: str, queue: str) -> None:
        supervisor = self._worker(app, name)
        wanted = _present(supervisor)
        if queue not in wanted:
            raise NotFound(f"{supervisor.key} does not consume from {queue[:80]!r}")
        await self._edit_queues(app, name, remove=queue)
        await self._confirm(supervisor, queue, consuming=False)

    async def _edit_queues(self, app: str, name: str, *, add: str | None = None, remove: str | None = None) -> None:
        supervisor = self._worker(app, name)

        def change() -> Mapping[str, Any]:
            queues = [queue for queue in _present(supervisor) if queue != remove]
            if not queues and add is None:
                raise Conflict(f"{remove} is the last queue of {supervisor.key}", "add another first, or stop it")
            return {"queues": [*queues, *([add] if add is not None and add not in queues else [])]}

        await self._instances.edit(app, name, change)

    def autoscale(self, app: str, name: str) -> AutoscaleView:
        supervisor = self._scalable(app, name)
        bounds = supervisor.work.autoscale
        assert bounds is not None
        report = supervisor.report
        return AutoscaleView(bounds.min, bounds.max, report.processes if report is not None else None)

    async def put_autoscale(self, app: str, name: str, body: Any) -> AutoscaleView:
        self._scalable(app, name)
        bounds = decode(Autoscale, body)
        try:
            await self._instances.edit(app, name, lambda: {"autoscale": encode(bounds)})
        except Invalid as invalid:  # the body is that field alone
            faults = [replace(fault, pointer=fault.pointer.removeprefix("/autoscale")) for fault in invalid.faults]
            raise Invalid(faults) from None
        return self.autoscale(app, name)

    async def stats(self, supervisor: Supervisor) -> Mapping[str, Any] | None:
        """What the worker says of itself; None where it does not."""
        if supervisor.spec.kind is not Kind.CELERY:
            return None
        try:
            answer = await supervisor.ask(agent.stats(), ASK_TIMEOUT)
        except (NoChannel, Refused):
            return None
        return answer if isinstance(answer, Mapping) else None

    def _worker(self, app: str, name: str) -> Supervisor:
        supervisor = self._fleet.get(app, name)
        if supervisor.spec.kind is not Kind.CELERY:
            raise Conflict(f"{supervisor.key} is not a Celery worker", f"its kind is {supervisor.spec.kind}")
        return supervisor

    def _scalable(self, app: str, name: str) -> Supervisor:
        supervisor = self._worker(app, name)
        if supervisor.spec.pool is not Pool.PREFORK:
            raise Invalid([autoscale_fault(supervisor.spec.pool, "")])
        return supervisor

    def _consumer(self, supervisor: Supervisor, queue: str) -> Consumer:
        reported = _reported(supervisor)
        wanted = queue in (supervisor.spec.queues if supervisor.spec.queues is not None else reported or ())
        return Consumer(queue, wanted, None if reported is None else queue in reported)

    async def _confirm(self, supervisor: Supervisor, queue: str, *, consuming: bool) -> None:
        """Waits until the worker's reports say so. One that is not connected says nothing, and is not waited for."""
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                while (reported := _reported(supervisor)) is not None and (queue in reported) is not consuming:
                    await supervisor.reported()
        except TimeoutError:
            pass


def _reported(supervisor: Supervisor) -> tuple[str, ...] | None:
    """The queues that the worker says it consumes from; None when it is not there to say."""
    report = supervisor.report
    return report.queues if report is not None and report.phase is Phase.UP else None


def _present(supervisor: Supervisor) -> tuple[str, ...]:
    """What is wanted of it now: its spec's, else what it does by itself, else Celery's default."""
    return supervisor.spec.queues or _reported(supervisor) or (DEFAULT_QUEUE,)
