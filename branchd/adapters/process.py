"""Starting, adopting, signalling and ending programs and their trees on Linux: the port `Processes`.

What /proc tells stands in proc.py, what is checked before a spawn in precheck.py, how an end is noticed in reaping.py.
Whether and when to start or end anything is decided elsewhere.
"""

import asyncio
import ctypes
import errno
import os
import resource
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import PurePosixPath

import structlog
from msgspec.structs import replace

from branchd.adapters import limits as kernel
from branchd.adapters import precheck, proc, trees
from branchd.adapters.cgroup import Cgroup, CgroupRoot, why_none
from branchd.adapters.instance_cgroups import InstanceCgroups
from branchd.adapters.reaping import ExitWatch, OrphanReaper, tells_foreign
from branchd.adapters.spawner import Order
from branchd.adapters.spawning import Begun, SpawnerLost, Spawning
from branchd.branch.ports import Lost
from branchd.core.errors import SpawnFailed, Unavailable
from branchd.core.machine import ProcessFacts
from branchd.core.spec import Limits
from branchd.core.values import Exit, Identity, Key, Launch

log = structlog.get_logger()

PR_SET_CHILD_SUBREAPER = 36

#: starts under way at a time: more than these keep no CPU busier, and each holds descriptors open
STARTS_AT_ONCE = 8

#: seconds for which a start counts among them: one that takes longer waits for a disk or a file server, keeps no CPU
#: busy, and is to keep nobody waiting
TURN = 0.5

#: why a start failed that may have been well
LOST = "the process that starts programs was lost"


class LinuxProcess:
    """The port `Process`, and what is remembered of a tree from its start to its sweep."""

    def __init__(self, processes: "LinuxProcesses", key: Key, nonce: str, identity: Identity, *, adopted: bool) -> None:
        self._processes = processes
        self.key = key
        self.nonce = nonce
        self.identity = identity
        #: an earlier daemon started it: its orphans went to init, not to us
        self.adopted = adopted
        self.cgroup: Cgroup | None = None
        self.joined = False  #: it is in its cgroup for sure: it began there
        self.watch: ExitWatch | None = None

    @property
    def running(self) -> bool:
        return self.watch is not None and self.watch.pidfd >= 0

    def signal(self, number: int) -> None:
        if self.watch is None:
            return
        try:
            self.watch.signal(number)
        except PermissionError:  # it has made itself another user's, and the daemon is not root
            log.warning("signal_not_permitted", instance=str(self.key), pid=self.identity.pid, signal=number)

    def kill_tree(self) -> None:
        if self.running:
            self._processes.kill(self)

    def cpu_seconds(self) -> float | None:
        stat = self.stat()
        return None if stat is None or stat.ended else stat.cpu / proc.TICKS

    def tree_usage(self) -> Mapping[str, float]:
        return {} if self.cgroup is None else self.cgroup.usage()

    def stat(self) -> proc.Stat | None:
        """Of this very process; None when it was reaped, by whomever, and its pid may be another's."""
        stat = proc.stat(self.identity.pid)
        return stat if stat is not None and stat.started == self.identity.started else None


class LinuxProcesses:
    """Must be made in the running loop. Makes this process a child subreaper.

    With `cgroups` None trees are killed by session, descent and mark alone.
    """

    def __init__(self, branch_id: str, cgroups: CgroupRoot | None) -> None:
        self._branch_id = branch_id
        self._errands = f"errand-{branch_id}-"  #: what the marks of errands begin with
        self._own_errands = f"{self._errands}{uuid.uuid4().hex}-"
        self._cgroups = InstanceCgroups(cgroups)
        self._boot = proc.boot_id()
        self._running: dict[int, LinuxProcess] = {}
        self._trees: dict[str, LinuxProcess] = {}  # by nonce, till they are swept
        # Each instance takes a descriptor for its pidfd, and the usual soft limit is 1024. Children get it back as it
        # was: some programs use select(), or close every descriptor that they may have.
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors[1], self._descriptors[1]))
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        #: what a program gets that asks for nothing; None: it is that already
        self._oom_score_adj = 0 if kernel.own_oom_score_adj() else None
        self._joins_late = False  #: the last one could not begin in its cgroup
        self._turns = asyncio.Semaphore(STARTS_AT_ONCE)
        self._spawning = Spawning()
        self.accounts = precheck.Accounts()
        self._reaper = OrphanReaper(self._running, lambda: self._spawning.busy)

    @property
    def spawner(self) -> int | None:
        """Pid of the process that forks for this one, while there is one."""
        return self._spawning.pid

    def begin(self) -> None:
        """All that an earlier daemon started is adopted: from now on zombies are reaped, and its errands are ended."""
        self._reaper.begin()
        asyncio.get_running_loop().run_in_executor(None, self._sweep_errands)  # it looks at every process

    def close(self) -> None:
        """Lets go of everything; what runs goes on."""
        self._reaper.close()
        self._spawning.close()
        for process in self._running.values():
            if process.watch is not None:
                process.watch.close()
        self._running.clear()
        self._trees.clear()
        self._cgroups.close()
        # An image that takes this process's place gives its children what this one was started with.
        resource.setrlimit(resource.RLIMIT_NOFILE, self._descriptors)

    async def spawn(
        self,
        key: Key,
        nonce: str,
        launch: Launch,
        output: AbstractContextManager[tuple[int, int]],
        on_exit: Callable[[Exit], None],
        sure: asyncio.Future[None] | None = None,
    ) -> LinuxProcess:
        if sure is not None and self._spawning.busy:
            # Of many at a time none is prepared before it is sure: the CPUs have enough to do, and who waits at a gate
            # would wait for the preparing of all others.
            await sure
        who = self.accounts.credentials(launch.user, launch.group)
        program = precheck.located(launch, who)
        order = self._order(program, nonce, launch, who)
        async with self._turn():
            with self._cgroups.entered(key, launch.limits) as (cgroup, folder):
                try:
                    with output as (stdout, stderr):
                        begun = await self._spawning.spawn(order, [stdout, stderr, *folder], sure)
                except OSError as error:
                    raise _failed(error, program, launch, who) from error
                except SpawnerLost as error:
                    if cgroup is None or not self._cgroups.kill(cgroup):
                        self._kill_marked(nonce, everywhere=False)
                    raise SpawnFailed(LOST, ours=True) from error
                return self._begun(key, nonce, begun, cgroup, program, on_exit)

    async def spawn_errand(self, launch: Launch, mark: str, output: int, stdin: bytes) -> Begun:
        """What is no main process of an instance; its end, and what it leaves behind, are the caller's. SpawnFailed.

        `mark`: of errand_mark(). Not to be cancelled: then it may begin all the same.
        """
        who = self.accounts.credentials(launch.user, launch.group)
        program = precheck.located(launch, who)
        order = self._order(program, mark, launch, who, stdin)
        async with self._turn():
            with self._cgroups.beside(launch.within) as folder:
                try:
                    return await self._spawning.spawn(order, [output, output, *folder])
                except OSError as error:
                    raise _failed(error, program, launch, who) from error
                except SpawnerLost as error:
                    self.kill_left(mark)
                    raise SpawnFailed(LOST, ours=True) from error

    def errand_mark(self) -> str:
        return f"{self._own_errands}{uuid.uuid4().hex}"

    def kill_left(self, mark: str) -> None:
        """KILL to what a tree of our own has left behind."""
        self._kill_marked(mark, everywhere=False)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        await self._turns.acquire()
        with ExitStack() as turn:
            turn.callback(self._turns.release)
            over = asyncio.get_running_loop().call_later(TURN, turn.close)
            try:
                yield
            finally:
                over.cancel()

    def _begun(
        self, key: Key, nonce: str, begun: Begun, cgroup: Cgroup | None, program: str, on_exit: Callable[[Exit], None]
    ) -> LinuxProcess:
        # It is a child that nobody reaps before we do, so its pid is its own even if it has ended already.
        stat = proc.stat(begun.pid)
        if stat is None:  # it is there, so that we cannot open it has one reason
            os.close(begun.pidfd)
            trees.kill_group(begun.pid)
            os.waitpid(begun.pid, 0)
            raise precheck.explained(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), program)
        process = LinuxProcess(self, key, nonce, Identity(self._boot, begun.pid, stat.started), adopted=False)
        process.cgroup, process.joined = cgroup, begun.joined
        self._joins_late = cgroup is not None and not begun.joined
        return self._watched(process, begun.pidfd, on_exit)

    def adopt(
        self, key: Key, nonce: str, identity: Identity, limits: Limits, on_exit: Callable[[Exit], None]
    ) -> LinuxProcess | None:
        """As the port says; Unavailable when that cannot be told for want of descriptors."""
        if identity.boot != self._boot:
            return None
        try:
            pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return None
        except OSError as error:
            raise Unavailable(f"process {identity.pid} cannot be watched: {error.strerror}", precheck.LIMITS) from error
        # Only now: what holds the pid from here on is what the descriptor refers to, or is gone.
        stat = proc.stat(identity.pid)
        if stat is None and os.path.exists(f"/proc/{identity.pid}"):
            os.close(pidfd)
            raise Unavailable(f"process {identity.pid} cannot be looked at", precheck.LIMITS)
        if stat is None or stat.started != identity.started or (stat.ended and stat.parent != os.getpid()):
            os.close(pidfd)
            return None
        process = LinuxProcess(self, key, nonce, identity, adopted=True)
        process.cgroup = self._cgroups.holding(identity.pid, self._branch_id, key)
        if process.cgroup is not None:
            self._cgroups.limit_again(process.cgroup, limits)
        return self._watched(process, pidfd, on_exit)

    def find(self, lost: Mapping[str, Lost]) -> Mapping[str, Identity | None]:
        """As the port says; Unavailable when that cannot be told for want of descriptors."""
        carriers: dict[str, list[proc.Stat]] = {}
        try:
            pids = proc.pids()
        except OSError as error:
            raise Unavailable(f"the machine's processes cannot be listed: {error.strerror}", precheck.LIMITS) from error
        for pid in pids:
            nonce = proc.mark(pid)
            if nonce is None or nonce not in lost or not self._may_be(pid, lost[nonce]):
                continue
            if (stat := proc.stat(pid)) is not None:
                carriers.setdefault(nonce, []).append(stat)
        found: dict[str, Identity | None] = {}
        for nonce, stats in carriers.items():
            firsts = trees.firsts(stats, lost[nonce].since)
            if firsts:
                found[nonce] = Identity(self._boot, firsts[0].pid, firsts[0].started) if len(firsts) == 1 else None
        return found

    def _may_be(self, pid: int, lost: Lost) -> bool:
        """Whoever is root may have become anyone by now, and may take any mark; others have their account, and their
        instance's cgroup. Without one it may be: where it could not be made, it was started all the same."""
        uid = proc.uid(pid)
        if lost.uid not in (None, 0, uid) and uid != 0:
            return False
        *_, above, name = ("", "", *PurePosixPath(proc.cgroup(pid) or "/").parts)
        return above != f"branchd-{self._branch_id}" or name == str(lost.key)

    def sweep(self, key: Key, nonce: str) -> None:
        tree = self._trees.get(nonce)
        if tree is not None and tree.running:
            return
        self._trees.pop(nonce, None)
        cgroup = tree.cgroup if tree is not None else self._cgroups.of(key)
        if cgroup is not None and self._cgroups.sweep(cgroup) and tree is not None:
            return
        if tree is not None and proc.stat(tree.identity.pid) is None:  # else the number is somebody else's by now
            trees.kill_group(tree.identity.pid)
        self._kill_marked(nonce, everywhere=tree is None or tree.adopted)

    def facts(self) -> ProcessFacts:
        available = self._cgroups.available
        why, cure = ("", "") if available is not None else why_none(self._branch_id)
        return ProcessFacts(
            cgroups=available is not None,
            why_none=why,
            cure=cure,
            controllers=available or frozenset(),
            joins_late=self._joins_late,
            tells_exits=tells_foreign(),
            open_files=self._descriptors[1],
        )

    def unenforceable(self, limits: Limits) -> Mapping[str, str]:
        return kernel.unenforceable(limits, self._cgroups.available, self._descriptors, self._cgroups.withheld)

    def kill(self, process: LinuxProcess) -> None:
        """What LinuxProcess.kill_tree does."""
        joined = process.cgroup is not None and (process.joined or self._joined(process))
        if not joined or process.cgroup is None or not self._cgroups.kill(process.cgroup):
            if process.stat() is not None:
                # listed before any dies: they are known by their parents
                descendants = proc.descendants(process.identity.pid)
                trees.kill_group(process.identity.pid)
                for stat in descendants:
                    trees.kill(stat)
            self._kill_marked(process.nonce, everywhere=process.adopted)
        process.signal(signal.SIGKILL)

    def _watched(self, process: LinuxProcess, pidfd: int, on_exit: Callable[[Exit], None]) -> LinuxProcess:
        cgroup = process.cgroup  # till the end, whether or not it turns out to be outside
        killed = cgroup.oom_kills() if cgroup is not None and "memory" in self._cgroups.controllers else 0

        def before_reaping() -> None:
            if process.cgroup is not None and not process.joined and not self._joined(process):
                log.warning("cgroup_not_joined", instance=str(process.key), pid=process.identity.pid)
                process.cgroup = None

        def ended(how: Exit) -> None:
            if self._running.get(process.identity.pid) is process:  # a number that somebody else reaped may be reused
                del self._running[process.identity.pid]
            if cgroup is not None:
                self._cgroups.leave(cgroup)
                if (
                    how.signal == signal.SIGKILL
                    and "memory" in self._cgroups.controllers
                    and cgroup.oom_kills() > killed
                ):
                    how = replace(how, why="its limit of memory is reached")
            on_exit(how)

        process.watch = ExitWatch(pidfd, before_reaping, ended)
        self._running[process.identity.pid] = process
        if cgroup is not None:
            self._cgroups.use(cgroup)
        self._trees[process.nonce] = process
        return process

    def _order(
        self, program: str, nonce: str, launch: Launch, who: precheck.Credentials | None, stdin: bytes = b""
    ) -> Order:
        """SpawnFailed for what the kernel could not be told."""
        argv = [os.fsencode(word) for word in (program, *launch.argv[1:])]
        env = {os.fsencode(name): os.fsencode(value) for name, value in {**launch.env, proc.MARK: nonce}.items()}
        if any(b"\0" in text for text in (*argv, *env, *env.values())) or any(b"=" in name for name in env):
            raise SpawnFailed(
                "command or environment cannot be handed over: it has a NUL byte, or a '=' in a name", "correct it"
            )
        return (
            argv[0],
            argv,
            env,
            os.fsencode(launch.directory),
            -1 if launch.umask is None else launch.umask,
            None if who is None else (who.uid, who.gid, list(who.groups)),
            kernel.of_process(launch.limits, self._descriptors),
            launch.limits.nice,
            launch.limits.oom_score_adj if launch.limits.oom_score_adj is not None else self._oom_score_adj,
            stdin,
            False,
        )

    def _joined(self, process: LinuxProcess) -> bool:
        """As far as can be told: one that somebody else reaped is in none any more."""
        if process.stat() is None:
            return True
        return self._cgroups.holding(process.identity.pid, self._branch_id, process.key) == process.cgroup

    def _kill_marked(self, nonce: str, *, everywhere: bool) -> None:
        """What our own trees leave behind comes to us: only those of an earlier daemon need a look at every process."""

        def left() -> Iterable[int]:
            return proc.pids() if everywhere else [stat.pid for stat in self._reaper.orphans()]

        trees.kill_marked(lambda mark: mark == nonce, left)

    def _sweep_errands(self) -> None:
        """Those of an earlier daemon, which was killed: nobody waits for them any more."""
        trees.kill_marked(
            lambda mark: mark.startswith(self._errands) and not mark.startswith(self._own_errands), proc.pids
        )


def _failed(error: OSError, program: str, launch: Launch, who: precheck.Credentials | None) -> SpawnFailed:
    if error.errno in precheck.EXPLICABLE:
        precheck.program(launch, who)  # says why, where it can tell
    return precheck.explained(error, program)
