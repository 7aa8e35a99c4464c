"""An instance's limits in the kernel's terms: resource limits for the process that forks, files for its cgroup; and
which of them cannot be enforced here, and why. How they are set stands in spawner.py and cgroup.py.
"""

import os
import resource
from collections.abc import Mapping

from branchd.core.spec import Limits, size_in_bytes

#: names of limits of the whole tree -> the controller that enforces them
CONTROLLERS = {"memory": "memory", "cpu": "cpu", "tasks": "pids"}

#: microseconds over which a share of CPU time is counted, the kernel's default
CPU_PERIOD = 100_000

#: names of limits of a process -> the kernel's numbers of them
RESOURCES = {
    "open_files": resource.RLIMIT_NOFILE,
    "address_space": resource.RLIMIT_AS,
    "core": resource.RLIMIT_CORE,
}

# of linux/capability.h
_CAP_SYS_NICE, _CAP_SYS_RESOURCE = 23, 24


def of_tree(limits: Limits) -> Mapping[str, str]:
    """Files of a cgroup and what is written to them, those of limits that are not asked for too."""
    return {
        "memory.max": "max" if limits.memory is None else str(size_in_bytes(limits.memory)),
        # else it would go on in the machine's swap, slowly and without end
        "memory.swap.max": "max" if limits.memory is None else "0",
        "cpu.max": f"{'max' if limits.cpu is None else max(int(limits.cpu * CPU_PERIOD), 1000)} {CPU_PERIOD}",
        "pids.max": "max" if limits.tasks is None else str(limits.tasks),
    }


def controllers(limits: Limits) -> frozenset[str]:
    """Those that must be switched on."""
    return frozenset(name for limit, name in CONTROLLERS.items() if getattr(limits, limit) is not None)


def of_process(limits: Limits, descriptors: tuple[int, int]) -> list[tuple[int, int, int]]:
    """For setrlimit: number, soft, hard. `descriptors`: those of open files where nothing else is asked for."""
    asked = {RESOURCES[name]: size for name in RESOURCES if (size := _bytes(limits, name)) is not None}
    asked_for = [(number, size, size) for number, size in asked.items()]
    return asked_for if resource.RLIMIT_NOFILE in asked else [(resource.RLIMIT_NOFILE, *descriptors), *asked_for]


def unenforceable(
    limits: Limits, available: frozenset[str] | None, descriptors: tuple[int, int], withheld: str = ""
) -> Mapping[str, str]:
    """Names of limits, and why not. `available`: controllers; None: there are no cgroups. `withheld`: why no others
    are, where that is known."""
    found = {}
    for name, controller in CONTROLLERS.items():
        if getattr(limits, name) is None:
            continue
        if available is None:
            found[name] = "there are no control groups"
        elif controller not in available:
            found[name] = f"the controller {controller!r} is not to be had" + (f": {withheld}" if withheld else "")
    may_raise, may_hurry = _capable(_CAP_SYS_RESOURCE), _capable(_CAP_SYS_NICE)
    for name, number in RESOURCES.items():
        hard = descriptors[1] if name == "open_files" else resource.getrlimit(number)[1]
        size = _bytes(limits, name)
        if size is not None and not may_raise and hard != resource.RLIM_INFINITY and size > hard:
            found[name] = f"the daemon's own hard limit is {hard}"
    if limits.nice is not None and not may_hurry and limits.nice < os.getpriority(os.PRIO_PROCESS, 0):
        found["nice"] = "the daemon may not raise priorities"
    if limits.oom_score_adj is not None and not may_raise and limits.oom_score_adj < own_oom_score_adj():
        found["oom_score_adj"] = "the daemon may not lower its own"
    return found


def own_oom_score_adj() -> int:
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return int(file.read())


def _bytes(limits: Limits, name: str) -> int | None:
    size = getattr(limits, name)
    return None if size is None else size_in_bytes(size)


def _capable(capability: int) -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> capability & 1)
