"""Figures of this machine and of the processes on it, read when somebody asks: the port `Host`.

So is psutil imported when somebody asks: that takes 10 ms of a start.
"""

import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

from branchd.adapters import environment_file, proc
from branchd.adapters.limits import RESOURCES
from branchd.adapters.precheck import Accounts
from branchd.core.errors import SpawnFailed
from branchd.core.values import Identity


class LocalHost:
    def __init__(self, state: Path, accounts: Accounts) -> None:
        self._state = state
        self._accounts = accounts
        self._boot = proc.boot_id()

    @property
    def boot(self) -> str:
        return self._boot

    @property
    def cpus(self) -> int:
        """Those that this daemon may use, which is what its children may use."""
        return len(os.sched_getaffinity(0))

    def load(self) -> Mapping[str, float]:
        import psutil  # noqa: PLC0415  # as said above

        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._state))
        return {
            "load_per_core": os.getloadavg()[0] / self.cpus,  # of the last minute
            "memory_available": memory.available,
            "memory_total": memory.total,
            "disk_free": disk.free / disk.total,
        }

    def account(self, user: str | None) -> tuple[str, str]:
        try:
            account = self._accounts.account(user)
        except SpawnFailed:
            if user is not None:
                raise
            return "/", str(os.geteuid())  # a container's user often has a number alone
        return account.pw_dir, account.pw_name

    def hard_limits(self) -> Mapping[str, int]:
        limits = {name: resource.getrlimit(number)[1] for name, number in RESOURCES.items()}
        return {name: hard for name, hard in limits.items() if hard != resource.RLIM_INFINITY}

    def uid(self, user: str | None) -> int:
        return os.geteuid() if user is None else self._accounts.account(user).pw_uid

    def environment(self, path: str) -> Mapping[str, str]:
        return environment_file.read(path, os.environ.get("CREDENTIALS_DIRECTORY"))

    def memory(self, identity: Identity) -> int:
        main = proc.stat(identity.pid)
        if identity.boot != self._boot or main is None or main.started != identity.started:
            return 0
        return sum(proc.resident(pid) for pid in (identity.pid, *(each.pid for each in proc.descendants(identity.pid))))

    def usage(self, identity: Identity) -> Mapping[str, float] | None:
        main = proc.stat(identity.pid)
        if identity.boot != self._boot or main is None or main.started != identity.started or main.ended:
            return None
        figures = dict.fromkeys(("rss", "cpu_seconds", "processes", "threads", "open_files"), 0.0)
        for pid in (identity.pid, *(stat.pid for stat in proc.descendants(identity.pid))):
            for name, amount in _figures(pid):
                figures[name] += amount
        return figures


def _figures(pid: int) -> Iterator[tuple[str, float]]:
    """What can be read of one process: one that ends meanwhile, or that is another user's, has fewer."""
    import psutil  # noqa: PLC0415  # as said above

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            yield "rss", process.memory_info().rss
            yield "cpu_seconds", times.user + times.system
            yield "threads", process.num_threads()
            yield "processes", 1
            yield "open_files", process.num_fds()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return
