"""What to tell a Celery worker so that it does what is wanted: the difference between two states, nothing remembered.

Called with each report of the worker, so whatever was lost (a restart, a broker that went away, a consumer that
somebody cancelled by hand) is put right by the same few lines.
"""

from collections.abc import Collection, Sequence

from branchd.core.spec import Autoscale
from branchd.core.value import Value
from branchd.core.values import QueueDeclaration


class Consume(Value):
    queue: QueueDeclaration


class Cancel(Value):
    name: str


class Scale(Value):
    bounds: Autoscale


Correction = Consume | Cancel | Scale


class Work(Value):
    """What a worker is to do. None: whatever it does by itself is right."""

    queues: tuple[QueueDeclaration, ...] | None
    autoscale: Autoscale | None


def reconcile(wanted: Work, queues: Collection[str], autoscale: Autoscale | None) -> Sequence[Correction]:
    """Corrections for a worker that consumes from `queues` within the bounds `autoscale` (None: its pool has none).

    Consumers are added before others are cancelled, so that a worker always has one.
    """
    corrections: list[Correction] = []
    if wanted.queues is not None:
        names = {queue.name for queue in wanted.queues}
        corrections += [Consume(queue) for queue in wanted.queues if queue.name not in queues]
        corrections += [Cancel(name) for name in sorted(queues) if name not in names]
    if wanted.autoscale is not None and autoscale is not None and autoscale != wanted.autoscale:
        corrections.append(Scale(wanted.autoscale))
    return corrections
