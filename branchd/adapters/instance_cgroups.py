"""Which instance's cgroup is in use, killed, or to be removed, and that its limits are set before anything is in it.

What can be done with one cgroup stands in cgroup.py.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from branchd.adapters import limits as kernel
from branchd.adapters.cgroup import Cgroup, CgroupRoot
from branchd.core.spec import Limits
from branchd.core.values import Key

log = structlog.get_logger()

#: seconds after which the folder of a cgroup is removed that nothing was started in again: most are, at once
TIDY_AFTER = 5.0


class InstanceCgroups:
    """With a root of None there are none. Made and used in the running loop."""

    def __init__(self, root: CgroupRoot | None) -> None:
        self._root = root
        self._used: set[Cgroup] = set()  #: with a main process in them, or one that begins
        self._killed: set[Cgroup] = set()  #: that were killed, and not removed since
        self._empty: list[Cgroup] = []  #: whose process has ended
        self._tidying: asyncio.TimerHandle | None = None
        #: controllers that are on
        self.controllers = frozenset() if root is None else root.enabled
        self._inherited = self.controllers  #: that an earlier daemon left on, and so what it has set with them

    @property
    def available(self) -> frozenset[str] | None:
        """Controllers; None where there are no cgroups."""
        return None if self._root is None else self._root.available

    @property
    def withheld(self) -> str:
        """Why controllers are not to be had, where that is known."""
        shared = self._root is not None and self._root.shared
        return "other processes are in the daemon's own control group" if shared else ""

    def close(self) -> None:
        """What is empty goes."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._tidy()
        if self._root is not None:
            self._root.remove()

    def of(self, key: Key) -> Cgroup | None:
        return None if self._root is None else self._root.of(key)

    def holding(self, pid: int, branch_id: str, key: Key) -> Cgroup | None:
        """As CgroupRoot.holding()."""
        return None if self._root is None else self._root.holding(pid, branch_id, key)

    @contextmanager
    def entered(self, key: Key, limits: Limits) -> Iterator[tuple[Cgroup | None, list[int]]]:
        """The instance's cgroup, made, and its folder, opened; (None, []) where it is to run without one."""
        cgroup, folder = self._opened(key)
        if cgroup is None or folder is None:
            yield None, []
            return
        self.use(cgroup)
        try:
            self._limit(cgroup, limits)
            yield cgroup, [folder]
        except BaseException:
            self.leave(cgroup)
            raise
        finally:
            os.close(folder)

    @contextmanager
    def beside(self, key: Key | None) -> Iterator[list[int]]:
        """The folder, opened, of the cgroup of an instance that runs; [] where it does not, or has none."""
        cgroup = None if key is None else self.of(key)
        try:
            folder = [cgroup.open()] if cgroup is not None and cgroup in self._used else []
        except OSError:
            folder = []
        try:
            yield folder
        finally:
            for each in folder:
                os.close(each)

    def limit_again(self, cgroup: Cgroup, limits: Limits) -> None:
        """What was lost with the controllers, where they were turned off when an earlier daemon had ended."""
        if kernel.controllers(limits) - self._inherited:
            self._limit(cgroup, limits)

    def use(self, cgroup: Cgroup) -> None:
        self._used.add(cgroup)

    def leave(self, cgroup: Cgroup) -> None:
        """Its main process has ended."""
        self._used.discard(cgroup)
        self._empty.append(cgroup)
        if self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_later(TIDY_AFTER, self._tidy)

    def sweep(self, cgroup: Cgroup) -> bool:
        """Kills what is left in one whose main process has ended; False where it cannot be told that nothing is left.

        Nothing where the folder is in use again: by another run of the instance.
        """
        return cgroup not in self._used and (cgroup.known_empty or self.kill(cgroup))

    def kill(self, cgroup: Cgroup) -> bool:
        """As Cgroup.kill(). What begins in it afterwards may be killed too (spawner.py): then it must be made anew."""
        self._killed.add(cgroup)
        return cgroup.kill()

    def _opened(self, key: Key) -> tuple[Cgroup | None, int | None]:
        cgroup = self.of(key)
        if cgroup is None:
            return None, None
        if cgroup in self._killed:
            self._killed.discard(cgroup)
            cgroup.remove()
        try:
            return cgroup, cgroup.open()
        except OSError as error:
            log.warning("cgroup_not_made", instance=str(key), folder=str(cgroup.folder), error=str(error))
            return None, None

    def _limit(self, cgroup: Cgroup, limits: Limits) -> None:
        """What cannot be had is left out: limits.unenforceable() tells of it."""
        assert self._root is not None
        try:
            wanted = kernel.controllers(limits) - self.controllers
            if wanted and (missing := wanted & self._root.available):
                self._root.enable(missing)
                self.controllers |= missing
            if self.controllers:  # an earlier run of the instance may have had limits that this one has not
                cgroup.limit(kernel.of_tree(limits))
        except OSError as error:
            log.warning("limits_not_set", folder=str(cgroup.folder), error=str(error))

    def _tidy(self) -> None:
        for cgroup in self._empty:
            if cgroup not in self._used and cgroup.remove():
                self._killed.discard(cgroup)
        self._empty.clear()
        self._tidying = None
