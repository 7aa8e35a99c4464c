"""The first thing that a daemon does with its instances: it adopts what an earlier one left, and starts what is wanted.

All that runs is adopted before anything is started, so that nothing waits for what is there. What is started comes in
the order of priorities: of the lower ones every process is there, or waits for what it depends on, before the next.
"""

from collections.abc import Callable
from itertools import groupby

from branchd.branch.fleet import Fleet
from branchd.branch.supervisor import Supervisor


def _priority(supervisor: Supervisor) -> int:
    return supervisor.spec.priority


async def resume(fleet: Fleet, holds: Callable[[Supervisor], bool] = lambda _: False) -> None:
    """Returns when every instance is in its supervisor's hands. `holds`: it is not started, though it is wanted up."""
    supervisors = fleet.all()
    lost = dict(supervisor.lost for supervisor in supervisors if supervisor.lost)
    found = fleet.world.processes.find(lost) if lost else {}
    for supervisor in supervisors:
        nonce = supervisor.lost[0] if supervisor.lost else ""
        supervisor.adopt(found.get(nonce), ambiguous=nonce in found and found[nonce] is None)
    for _, group in groupby(sorted(supervisors, key=_priority), _priority):
        together = list(group)
        for supervisor in together:
            supervisor.begin(held=holds(supervisor))
        for supervisor in together:
            await supervisor.idle()
