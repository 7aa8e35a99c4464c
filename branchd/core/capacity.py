"""How much a branch can take: slots, and what of them is reserved.

Slots are a branch's own unit of work; an instance takes `weight` of them while it exists, whether it runs or not.
Pinned instances are never refused, so more may be reserved than there are slots.
"""

from collections.abc import Iterable

from branchd.core.value import Value

#: slots for each CPU where the configuration gives no number: workers wait for I/O most of the time
SLOTS_PER_CPU = 4


class Capacity(Value):
    slots: int
    reserved: int


def capacity(configured: int | None, cpus: int, weights: Iterable[int]) -> Capacity:
    return Capacity(SLOTS_PER_CPU * cpus if configured is None else configured, sum(weights))
