"""Starting, adopting, signalling and ending programs and their trees on Linux: the port `Processes`.

What /proc tells stands in proc.py, what is checked before a spawn in precheck.py, how an end is noticed in reaping.py.
Whether and when to start or end anything is decided elsewhere.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from branchd.adapters import precheck, proc
from branchd.adapters.cgroup import Cgroup, CgroupRoot, joinable, joining
from branchd.adapters.reaping import ExitWatch, OrphanReaper
from branchd.core.errors import SpawnFailed, Unavailable
from branchd.core.values import Exit, Identity, Key, Launch

log = structlog.get_logger()

PR_SET_CHILD_SUBREAPER = 36

#: rounds of killing what a tree forked while it was being killed; a fork bomb outlives them, and its next sweep's
KILL_ROUNDS = 10

#: seconds by which a start time, which /proc rounds down to clock ticks, may seem to lie before the intent
ROUNDING = 0.05

#: errno of a spawn that failed for want of something of the machine's or the daemon's
OURS = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
LIMITS = "free memory, or raise the limits of processes and open files"


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
        self._cgroups = cgroups
        self._boot = proc.boot_id()
        self._running: dict[int, LinuxProcess] = {}
        self._trees: dict[str, LinuxProcess] = {}  # by nonce, till they are swept
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            self._resets_oom = int(file.read()) != 0
        # Each instance takes a descriptor for its pidfd, and the usual soft limit is 1024. Children get it back as it
        # was: some programs use select(), or close every descriptor that they may have.
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors[1], self._descriptors[1]))
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._reaper = OrphanReaper(self._running)

    def close(self) -> None:
        """Lets go of everything; what runs goes on."""
        self._reaper.close()
        for process in self._running.values():
            if process.watch is not None:
                process.watch.close()
        self._running.clear()
        self._trees.clear()
        if self._cgroups is not None:
            self._cgroups.remove()

    def spawn(
        self, key: Key, nonce: str, launch: Launch, stdout: int, stderr: int, on_exit: Callable[[Exit], None]
    ) -> LinuxProcess:
        who = precheck.credentials(launch.user, launch.group)
        program = precheck.program(launch, who)
        argv = (program, *launch.argv[1:])
        env = {**launch.env, proc.MARK: nonce}
        cgroup, door = self._enter(key, argv, env)
        try:
            pid = _start(argv, env, launch, who, door, stdout, stderr)
        except OSError as error:
            raise _explained(error, program) from error
        except ValueError as error:  # a NUL byte, or a '=' in a name
            raise SpawnFailed(f"command or environment cannot be handed over: {error}", "correct it") from error
        # It is a child that nobody reaps before we do, so its pid is its own even if it has ended already.
        stat = proc.stat(pid)
        try:
            if stat is None:  # it is there, so that we cannot open it has one reason
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            _kill_group(pid)
            os.waitpid(pid, 0)
            raise _explained(error, program) from error
        with contextlib.suppress(OSError):  # it may have ended already
            resource.prlimit(pid, resource.RLIMIT_NOFILE, self._descriptors)
        if self._resets_oom:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
                file.write("0")
        process = LinuxProcess(self, key, nonce, Identity(self._boot, pid, stat.started), adopted=False)
        process.cgroup = cgroup
        return self._watched(process, pidfd, on_exit)

    def adopt(self, key: Key, nonce: str, identity: Identity, on_exit: Callable[[Exit], None]) -> LinuxProcess | None:
        """As the port says; Unavailable when that cannot be told for want of descriptors."""
        if identity.boot != self._boot:
            return None
        try:
            pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return None
        except OSError as error:
            raise Unavailable(f"process {identity.pid} cannot be watched: {error.strerror}", LIMITS) from error
        # Only now: what holds the pid from here on is what the descriptor refers to, or is gone.
        stat = proc.stat(identity.pid)
        if stat is None and os.path.exists(f"/proc/{identity.pid}"):
            os.close(pidfd)
            raise Unavailable(f"process {identity.pid} cannot be looked at", LIMITS)
        if stat is None or stat.started != identity.started or (stat.ended and stat.parent != os.getpid()):
            os.close(pidfd)
            return None
        process = LinuxProcess(self, key, nonce, identity, adopted=True)
        if self._cgroups is not None:
            process.cgroup = self._cgroups.holding(identity.pid, self._branch_id, key)
        return self._watched(process, pidfd, on_exit)

    def find(self, nonces: Mapping[str, float]) -> Mapping[str, Identity | None]:
        """As the port says; Unavailable when that cannot be told for want of descriptors."""
        carriers: dict[str, list[proc.Stat]] = {}
        try:
            pids = proc.pids()
        except OSError as error:
            raise Unavailable(f"the machine's processes cannot be listed: {error.strerror}", LIMITS) from error
        for pid in pids:
            nonce = proc.mark(pid)
            if nonce is not None and nonce in nonces and (stat := proc.stat(pid)) is not None:
                carriers.setdefault(nonce, []).append(stat)
        found: dict[str, Identity | None] = {}
        for nonce, stats in carriers.items():
            firsts = _firsts(stats, nonces[nonce])
            if firsts:
                found[nonce] = Identity(self._boot, firsts[0].pid, firsts[0].started) if len(firsts) == 1 else None
        return found

    def sweep(self, key: Key, nonce: str) -> None:
        tree = self._trees.get(nonce)
        if tree is not None and tree.running:
            return
        self._trees.pop(nonce, None)
        cgroup = tree.cgroup if tree is not None else self._folder(key)
        # the folder may be in use again: another run of the instance
        if cgroup is not None and not any(each.cgroup == cgroup for each in self._running.values()):
            killed = cgroup.kill()
            cgroup.remove()
            if killed and tree is not None:
                return
        if tree is not None and proc.stat(tree.identity.pid) is None:  # else the number is somebody else's by now
            _kill_group(tree.identity.pid)
        self._kill_marked(nonce, everywhere=tree is None or tree.adopted)

    def kill(self, process: LinuxProcess) -> None:
        """What LinuxProcess.kill_tree does."""
        if process.cgroup is None or not self._joined(process) or not process.cgroup.kill():
            if process.stat() is not None:
                # listed before any dies: they are known by their parents
                descendants = proc.descendants(process.identity.pid)
                _kill_group(process.identity.pid)
                for stat in descendants:
                    _kill(stat)
            self._kill_marked(process.nonce, everywhere=process.adopted)
        process.signal(signal.SIGKILL)

    def _watched(self, process: LinuxProcess, pidfd: int, on_exit: Callable[[Exit], None]) -> LinuxProcess:
        def before_reaping() -> None:
            if process.cgroup is not None and not self._joined(process):
                log.warning("cgroup_not_joined", instance=str(process.key), pid=process.identity.pid)
                process.cgroup = None

        def ended(how: Exit) -> None:
            del self._running[process.identity.pid]
            on_exit(how)

        process.watch = ExitWatch(pidfd, before_reaping, ended)
        self._running[process.identity.pid] = process
        self._trees[process.nonce] = process
        return process

    def _folder(self, key: Key) -> Cgroup | None:
        return self._cgroups.of(key) if self._cgroups is not None else None

    def _enter(self, key: Key, argv: Sequence[str], env: Mapping[str, str]) -> tuple[Cgroup | None, int | None]:
        """The instance's cgroup, made, and a descriptor to join it by; None twice where it is to run without one."""
        cgroup = self._folder(key)
        if cgroup is None or not joinable(argv, env):
            return None, None
        try:
            return cgroup, cgroup.open()
        except OSError as error:
            log.warning("cgroup_not_made", instance=str(key), folder=str(cgroup.folder), error=str(error))
            return None, None

    def _joined(self, process: LinuxProcess) -> bool:
        """As far as can be told: one that somebody else reaped is in none any more."""
        if self._cgroups is None or process.stat() is None:
            return True
        return self._cgroups.holding(process.identity.pid, self._branch_id, process.key) == process.cgroup

    def _kill_marked(self, nonce: str, *, everywhere: bool) -> None:
        """KILL to all that carry the mark, and to their descendants, some of which may have cleared their environment.

        What our own trees leave behind comes to us: only those of an earlier daemon need a look at every process.
        """
        killed: set[int] = set()
        for _ in range(KILL_ROUNDS):
            try:
                left: Iterable[int] = proc.pids() if everywhere else [stat.pid for stat in self._reaper.orphans()]
            except OSError as error:
                log.warning("processes_not_listed", error=str(error))
                return
            found = [pid for pid in left if pid not in killed and proc.mark(pid) == nonce]
            if not found:
                return
            for pid in found:
                for stat in (proc.stat(pid), *proc.descendants(pid)):
                    if stat is not None:
                        _kill(stat)
            killed.update(found)


def _start(
    argv: Sequence[str],
    env: Mapping[str, str],
    launch: Launch,
    who: precheck.Credentials | None,
    door: int | None,
    stdout: int,
    stderr: int,
) -> int:
    """The pid of the new child; closes the door. OSError with the number that the failing call gave."""
    try:
        child = subprocess.Popen(
            argv if door is None else joining(argv),
            stdin=subprocess.DEVNULL if door is None else door,
            stdout=stdout,
            stderr=stderr,
            cwd=launch.directory,
            env=env,
            start_new_session=True,
            user=None if who is None else who.uid,
            group=None if who is None else who.gid,
            extra_groups=None if who is None else who.groups,
            umask=-1 if launch.umask is None else launch.umask,
        )
    finally:
        if door is not None:
            os.close(door)
    child.returncode = 0  # it is ours to reap: Popen must neither wait for it nor warn about it
    return child.pid


def _explained(error: OSError, program: str) -> SpawnFailed:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in OURS:
        return SpawnFailed(f"the machine starts no further process: {reason}", LIMITS, ours=True)
    if error.errno == errno.ENOENT:
        return SpawnFailed(f"program {program} is there, its loader is not", "was it built for this system?")
    if error.errno == errno.E2BIG:
        return SpawnFailed("arguments and environment together are too long for the kernel", "shorten them")
    return SpawnFailed(
        f"program {program} could not be started: {reason} ({error.filename})", "try it by hand, as the same user"
    )


def _firsts(carriers: list[proc.Stat], since: float) -> list[proc.Stat]:
    """Who may be the spawned process: it leads a session, and all others with the mark came later and from it."""
    leaders = [stat for stat in carriers if stat.session == stat.pid and stat.started / proc.TICKS >= since - ROUNDING]
    earliest = min((stat.started for stat in leaders), default=0)
    firsts = [stat for stat in leaders if stat.started == earliest]
    if len(firsts) > 1:
        marked = {stat.pid for stat in carriers}
        firsts = [stat for stat in firsts if stat.parent not in marked] or firsts
    return firsts


def _kill(target: proc.Stat) -> None:
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(target.pid)
        try:
            now = proc.stat(target.pid)
            if now is not None and now.started == target.started:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
