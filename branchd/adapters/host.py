"""Figures of this machine and of the processes on it, read when somebody asks: the port `Host`."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from branchd.adapters import environment_file, proc
from branchd.adapters.precheck import account_of
from branchd.core.errors import SpawnFailed
from branchd.core.values import Identity

#: seconds that the number of an account is used for: a definition may concern thousands of instances, and who knows
#: the accounts may be a server
UID_FOR = 5.0


class LocalHost:
    def __init__(self, state: Path) -> None:
        self._state = state
        self._boot = proc.boot_id()
        self._uids: dict[str, tuple[int, float]] = {}  #: and until when, by time.monotonic()

    @property
    def boot(self) -> str:
        return self._boot

    @property
    def cpus(self) -> int:
        """Those that this daemon may use, which is what its children may use."""
        return len(os.sched_getaffinity(0))

    def load(self) -> Mapping[str, float]:
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
            account = account_of(user)
        except SpawnFailed:
            if user is not None:
                raise
            return "/", str(os.geteuid())  # a container's user often has a number alone
        return account.pw_dir, account.pw_name

    def uid(self, user: str | None) -> int:
        if user is None:
            return os.geteuid()
        known = self._uids.get(user)
        if known is None or known[1] < time.monotonic():
            self._uids[user] = known = account_of(user).pw_uid, time.monotonic() + UID_FOR
        return known[0]

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
