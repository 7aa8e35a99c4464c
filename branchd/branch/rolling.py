"""Rolling restarts: instances of an app are restarted one at a time, each when the one before it is ready again.

It stops at the first that does not become ready, and leaves the others as they are: what is wrong with a new version
costs one instance. An operation, to be watched and cancelled; a restart that has begun goes on where it is cancelled.
"""

import asyncio
from collections.abc import Iterable, Sequence

from branchd.branch.fleet import Fleet
from branchd.branch.operations import Operations, Progress
from branchd.branch.supervisor import Supervisor
from branchd.core.access import Principal
from branchd.core.errors import BranchdError, Conflict, Unavailable
from branchd.core.lifecycle import State
from branchd.core.spec import Wanted
from branchd.wire.resources import Operation, OperationState, StepState

#: as `kind` of the operation
RESTART = "restart"

#: seconds from the end of the old process until the new one must be ready, beside those that its spec asks for
READY_WITHIN = 120.0


class Rolling:
    def __init__(self, fleet: Fleet, operations: Operations) -> None:
        self._fleet = fleet
        self._operations = operations
        self._last: dict[str, str] = {}  #: by app, the id of the newest operation

    def begin(
        self, principal: Principal, app: str, names: Sequence[str] | None = None, *, outdated: bool = False
    ) -> Operation:
        """Restarts those of this branch that are wanted up: all of the app, or these. NotFound, Unavailable.

        `outdated`: only those that run with something else than their spec says. Conflict where the app's are being
        restarted already.
        """
        self._fleet.definitions.app(app)
        found = self._fleet.of(app) if names is None else [self._fleet.get(app, name) for name in dict.fromkeys(names)]
        self.check(app)
        chosen = [one for one in found if not outdated or one.outdated()]
        chosen.sort(key=lambda one: (one.spec.priority, one.key))
        operation = self._operations.begin(RESTART, principal, lambda progress: self._work(progress, chosen))
        self._last[app] = operation.id
        return operation

    def check(self, app: str) -> None:
        """Whether it can begin. Conflict, Unavailable."""
        if self._fleet.stopping:
            raise Unavailable("this branch is stopping")
        for running in self._operations.list():
            if running.id == self._last.get(app) and running.state is OperationState.RUNNING:
                raise Conflict(f"instances of app {app} are being restarted", f"it is operation {running.id}")

    async def _work(self, progress: Progress, supervisors: Sequence[Supervisor]) -> None:
        progress.plan([str(one.key) for one in supervisors])
        await one_by_one(self._fleet, supervisors, progress)


async def one_by_one(
    fleet: Fleet, supervisors: Iterable[Supervisor], progress: Progress, *, outdated: bool = False
) -> Conflict | None:
    """Restarts those that are wanted up, in this order; the reason where it ended at one that did not become ready.

    `progress`: the steps, by their keys, are planned in it. `outdated`: only those that are it when their turn comes.
    """
    failure, failed = None, ""
    for supervisor in supervisors:
        name = str(supervisor.key)
        if failed:
            progress.step(name, StepState.KEPT, f"{failed} is not ready")
        elif fleet.find(supervisor.key) is not supervisor or supervisor.record.deleting:
            progress.step(name, StepState.KEPT, "it is deleted")
        elif supervisor.spec.wanted is Wanted.DOWN:
            progress.step(name, StepState.KEPT, "it is not wanted up")
        elif outdated and not supervisor.outdated():
            progress.step(name, StepState.DONE, "needs no restart any more")
        else:
            progress.step(name, StepState.RUNNING)
            try:
                await restarted(supervisor)
            except BranchdError as error:
                failure, failed = Conflict(f"{name}: {error.detail}", error.hint), name
                progress.step(name, StepState.FAILED, error.detail)
            except asyncio.CancelledError:
                progress.step(name, StepState.DONE, "its restart goes on; nobody waited until it was ready")
                raise
            else:
                progress.step(name, StepState.DONE, "restarted, and ready")
    return failure


async def restarted(supervisor: Supervisor) -> None:
    """Restarts it, and returns when it is ready again. Conflict where its new process is not, or not in time.

    StorageFailed where it was left as it is.
    """
    before = supervisor.machine.run
    supervisor.restart()
    await supervisor.begun()
    while supervisor.machine.run == before and supervisor.state is State.STOPPING:
        await supervisor.changed()  # its stop plan has an end of its own
    ready = supervisor.spec.ready
    seconds = max(ready.after + READY_WITHIN, ready.within or 0.0)
    try:
        async with asyncio.timeout(seconds):
            while not (supervisor.ready and supervisor.machine.run > before):
                _check(supervisor, before)
                await supervisor.changed()
    except TimeoutError:
        reason = supervisor.view().status.reason
        raise Conflict(f"not ready within {seconds:g} s{f': {reason}' if reason else ''}") from None


def _check(supervisor: Supervisor, before: int) -> None:
    """Conflict where waiting mends nothing. `before`: the number of the process that is to be replaced."""
    if supervisor.record.deleting:
        raise Conflict("it was deleted meanwhile")
    if supervisor.spec.wanted is Wanted.DOWN:
        raise Conflict("it was stopped meanwhile")
    machine = supervisor.machine
    ended = machine.run > before and (supervisor.state is State.BACKOFF or machine.held)
    if ended or machine.run > before + 1 or supervisor.state in (State.FATAL, State.EXITED):
        raise Conflict(f"its new process ended: {supervisor.view().status.reason or 'it was not ready yet'}")
