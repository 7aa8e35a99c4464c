"""Finding and killing what a program has left behind, by descent, process group and mark. When is the caller's.

What can be killed by its cgroup is spared this (cgroup.py).
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable

import structlog

from branchd.adapters import proc

log = structlog.get_logger()

#: rounds of killing what a tree forked while it was being killed; a fork bomb outlives them, and its next sweep's
ROUNDS = 10

#: seconds by which a start time, which /proc rounds down to clock ticks, may seem to lie before the intent
ROUNDING = 0.05


def firsts(carriers: list[proc.Stat], since: float) -> list[proc.Stat]:
    """Who may be the spawned process: it leads a session, and all others with the mark came later and from it."""
    leaders = [stat for stat in carriers if stat.session == stat.pid and stat.started / proc.TICKS >= since - ROUNDING]
    earliest = min((stat.started for stat in leaders), default=0)
    firsts = [stat for stat in leaders if stat.started == earliest]
    if len(firsts) > 1:
        marked = {stat.pid for stat in carriers}
        firsts = [stat for stat in firsts if stat.parent not in marked] or firsts
    return firsts


def kill(target: proc.Stat) -> None:
    """That very process, if it still is there and ours to kill."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(target.pid)
        try:
            now = proc.stat(target.pid)
            if now is not None and now.started == target.started:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def kill_group(group: int) -> None:
    """Only while its leader is not reaped: then the number may be another's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def kill_marked(marked: Callable[[str], bool], among: Callable[[], Iterable[int]]) -> None:
    """All whose mark is one of them, and their descendants, some of which may have cleared their environment."""
    killed: set[int] = set()
    for _ in range(ROUNDS):
        try:
            found = [pid for pid in among() if pid not in killed and marked(proc.mark(pid) or "")]
        except OSError as error:
            log.warning("processes_not_listed", error=str(error))
            return
        if not found:
            return
        for pid in found:
            for stat in (proc.stat(pid), *proc.descendants(pid)):
                if stat is not None:
                    kill(stat)
        killed.update(found)
