"""The first thing that a daemon does with its instances: it adopts what an earlier one left, and starts what is wanted.

All that runs is adopted before anything is started, so that nothing waits for what is there. What is started comes in
the order of priorities: of the lower ones every process is there, or waits for what it depends on, before the next. For
one that does not come to be there the others wait a moment, and no longer.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby

from branchd.branch.fleet import Fleet
from branchd.branch.ports import Host, Lost
from branchd.branch.supervisor import Supervisor
from branchd.core.errors import SpawnFailed

#: seconds that the starts of one priority are waited for before those of the next begin
MOMENT = 1.0

#: seconds that are waited so in all: who started the daemon waits for it to be ready
MOMENTS = 5.0


def _priority(supervisor: Supervisor) -> int:
    return supervisor.spec.priority


def _lost(supervisor: Supervisor, host: Host) -> tuple[str, Lost]:
    assert supervisor.lost is not None
    nonce, since = supervisor.lost
    try:
        uid = host.uid(supervisor.spec.user)
    except SpawnFailed:
        uid = None
    return nonce, Lost(supervisor.key, since, uid)


async def resume(fleet: Fleet, holds: Callable[[Supervisor], bool] = lambda _: False) -> None:
    """Returns when every instance is in its supervisor's hands. `holds`: it is not started, though it is wanted up."""
    supervisors = fleet.all()
    lost = dict(_lost(supervisor, fleet.world.host) for supervisor in supervisors if supervisor.lost)
    found = fleet.world.processes.find(lost) if lost else {}
    for supervisor in supervisors:
        nonce = supervisor.lost[0] if supervisor.lost else ""
        supervisor.adopt(found.get(nonce), ambiguous=nonce in found and found[nonce] is None)
    clock = asyncio.get_running_loop().time
    patience = clock() + MOMENTS
    for _, group in groupby(sorted(supervisors, key=_priority), _priority):
        together = list(group)
        for supervisor in together:
            supervisor.begin(held=holds(supervisor))
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(clock() + MOMENT, patience)):
                for supervisor in together:
                    await supervisor.idle()
