"""Long work that can be watched and cancelled: what it is made of, how far it has come.

An operation lives as long as its daemon. What must outlive that is a wish, durable elsewhere (such as "this branch is
draining"), and its work begins again as a new operation.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

import structlog
from msgspec import Struct, field

from branchd.core.access import Principal
from branchd.core.errors import BranchdError, Conflict, NotFound
from branchd.wire.resources import Operation, OperationState, Step, StepState, timestamp

log = structlog.get_logger(__name__)

#: operations that have ended and are still shown
KEPT = 100


class Progress(Struct, eq=False):
    """What the work of an operation tells of itself as it goes."""

    steps: dict[str, Step] = field(default_factory=dict)
    detail: str = ""

    def plan(self, names: Sequence[str]) -> None:
        self.steps |= {name: Step(name, StepState.WAITING) for name in names if name not in self.steps}

    def step(self, name: str, state: StepState, detail: str = "") -> None:
        self.steps[name] = Step(name, state, detail)


Work = Callable[[Progress], Awaitable[None]]


class _Running(Struct, eq=False):
    id: str
    kind: str
    by: str
    started_at: float
    progress: Progress
    state: OperationState = OperationState.RUNNING
    ended_at: float | None = None
    task: asyncio.Task[None] | None = None


class Operations:
    def __init__(self, branch: str, wall: Callable[[], float]) -> None:
        self._branch = branch
        self._wall = wall
        self._all: dict[str, _Running] = {}

    def list(self) -> list[Operation]:
        """The newest first."""
        return [self._view(one) for one in sorted(self._all.values(), key=lambda one: -one.started_at)]

    def get(self, identifier: str) -> Operation:
        return self._view(self._find(identifier))

    def running(self, kind: str) -> Operation | None:
        found = (one for one in self._all.values() if one.kind == kind and one.state is OperationState.RUNNING)
        return next((self._view(one) for one in found), None)

    def begin(self, kind: str, principal: Principal, work: Work) -> Operation:
        """Runs the work in the background. It fails with the BranchdError that it raises, or where a step failed."""
        # Whoever has the id knows which branch to ask.
        one = _Running(f"{self._branch}-{secrets.token_hex(4)}", kind, principal.name, self._wall(), Progress())
        self._all[one.id] = one
        one.task = asyncio.get_running_loop().create_task(self._run(one, work))
        ended = [old.id for old in self._all.values() if old.state is not OperationState.RUNNING]
        for identifier in ended[: max(0, len(ended) - KEPT)]:
            del self._all[identifier]
        return self._view(one)

    async def cancel(self, identifier: str) -> Operation:
        """What is done stays done. Conflict when it has ended."""
        one = self._find(identifier)
        if one.task is None or one.task.done():
            raise Conflict(f"operation {identifier} has ended", f"it is {one.state}")
        one.task.cancel()
        await asyncio.wait([one.task])
        return self._view(one)

    async def close(self) -> None:
        """Ends the work of all."""
        tasks = [one.task for one in self._all.values() if one.task is not None and not one.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, one: _Running, work: Work) -> None:
        try:
            await work(one.progress)
            failed = [step.name for step in one.progress.steps.values() if step.state is StepState.FAILED]
            one.state = OperationState.FAILED if failed else OperationState.DONE
        except asyncio.CancelledError:
            one.state = OperationState.CANCELLED
            for step in list(one.progress.steps.values()):
                if step.state in (StepState.WAITING, StepState.RUNNING):
                    one.progress.step(step.name, StepState.KEPT, "cancelled before it was done")
        except BranchdError as error:
            one.state = OperationState.FAILED
            one.progress.detail = error.detail
        except Exception as error:  # its cause must be found in the log, and nobody waits for the task
            log.exception("operation failed", kind=one.kind)
            one.state = OperationState.FAILED
            one.progress.detail = f"{type(error).__name__}; see the daemon's log"
        one.ended_at = self._wall()

    def _find(self, identifier: str) -> _Running:
        if identifier not in self._all:
            raise NotFound(f"there is no operation {identifier[:40]!r} here", "GET /v1/operations lists them")
        return self._all[identifier]

    def _view(self, one: _Running) -> Operation:
        return Operation(
            id=one.id,
            kind=one.kind,
            branch=self._branch,
            state=one.state,
            by=one.by,
            started_at=timestamp(one.started_at),
            ended_at=None if one.ended_at is None else timestamp(one.ended_at),
            detail=one.progress.detail,
            steps=tuple(one.progress.steps.values()),
        )
