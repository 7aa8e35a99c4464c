"""Programs that are run beside an instance and soon end: probes and hooks. Run as the instance is, each with a session
of its own, in the daemon's control group; whoever takes too long, or says too much, is killed with its whole tree.

What an instance itself runs is process.py's.
"""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import subprocess
import uuid

from branchd.adapters import precheck, proc
from branchd.adapters.reaping import ExitWatch
from branchd.core.errors import SpawnFailed
from branchd.core.values import Exit, Launch

#: errands at a time
AT_ONCE = 16

#: errands that are begun a second; each holds the daemon up for a millisecond, and more where it switches the user
A_SECOND = 100.0

#: bytes that one may write
MOST_OUTPUT = 1 << 20

#: bytes at the end of what it wrote that are kept, and characters of the last line that are told
TAIL = 4096
MOST_TOLD = 300

#: descriptors that it may have, as by default of the kernel; the daemon raises its own
DESCRIPTORS = 1024

#: rounds of killing what a tree forked while it was being killed
KILL_ROUNDS = 10

#: errno of a start that failed for want of something of the machine's or the daemon's
OURS = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class Errands:
    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._next = 0.0
        self._running: set[_Errand] = set()
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            self._resets_oom = int(file.read()) != 0

    def close(self) -> None:
        """Kills what still runs."""
        for errand in list(self._running):
            errand.kill()

    async def run(self, launch: Launch, timeout: float, stdin: bytes | None = None) -> str | None:
        """None where it exits with 0, else why not, in words, with its last line. SpawnFailed."""
        async with self._slots:
            await self._turn()
            errand = _Errand(launch, stdin, self._resets_oom)
            self._running.add(errand)
            try:
                async with asyncio.timeout(timeout):
                    failure = await errand.ended
            except TimeoutError:
                failure = f"not done within {timeout:g} s"
            finally:
                errand.kill()
                self._running.discard(errand)
        line = errand.last_line
        return f"{failure}: {line}" if failure is not None and line else failure

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        moment = max(self._next, loop.time())
        self._next = moment + 1 / A_SECOND
        if (delay := moment - loop.time()) > 0:
            await asyncio.sleep(delay)


class _Errand:
    def __init__(self, launch: Launch, stdin: bytes | None, resets_oom: bool) -> None:
        """Starts it. SpawnFailed."""
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str | None] = self._loop.create_future()
        self._mark = f"errand-{uuid.uuid4().hex}"
        self._written = 0
        self._tail = b""
        self._output, output = _pipe()
        os.set_blocking(self._output, False)
        try:
            self._pid = _start(launch, self._mark, stdin, output)
            self._watch = ExitWatch(_pidfd(self._pid), self._kill_group, self._exited)
        except SpawnFailed:
            os.close(self._output)
            raise
        finally:
            os.close(output)
        self._loop.add_reader(self._output, self._read)
        with contextlib.suppress(OSError):  # it may have ended already
            hard = resource.prlimit(self._pid, resource.RLIMIT_NOFILE)[1]
            resource.prlimit(self._pid, resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
        if resets_oom:
            with contextlib.suppress(OSError), open(f"/proc/{self._pid}/oom_score_adj", "w", encoding="ascii") as file:
                file.write("0")

    @property
    def last_line(self) -> str:
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return "".join(letter for letter in lines[-1] if letter.isprintable())[:MOST_TOLD] if lines else ""

    def kill(self) -> None:
        """The whole tree, where it has not ended by itself. Its main process is reaped when it is gone."""
        self._close_output()
        if self._watch.pidfd < 0:
            return
        descendants = proc.descendants(self._pid)  # listed before any dies: they are known by their parents
        self._kill_group()
        self._watch.signal(signal.SIGKILL)
        for each in descendants:
            _kill(each)
        for _ in range(KILL_ROUNDS):  # whose parents had ended before: they came to this process, a subreaper
            orphans = [pid for pid in proc.children(os.getpid()) if pid != self._pid and proc.mark(pid) == self._mark]
            if not orphans:
                return
            for pid in orphans:
                for stat in (proc.stat(pid), *proc.descendants(pid)):
                    if stat is not None:
                        _kill(stat)

    def _kill_group(self) -> None:
        """Only while its main process is not reaped: then its number may be another's."""
        with contextlib.suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)

    def _read(self) -> None:
        try:
            data = os.read(self._output, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_output()
            return
        self._tail = (self._tail + data)[-TAIL:]
        self._written += len(data)
        if self._written > MOST_OUTPUT:
            self._close_output()
            self._settle(f"it wrote more than {MOST_OUTPUT >> 20} MiB")

    def _close_output(self) -> None:
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1

    def _exited(self, how: Exit) -> None:
        if self._output >= 0:
            self._read()  # what it wrote last
        self._settle(None if how.code == 0 else str(how))

    def _settle(self, failure: str | None) -> None:
        if not self.ended.done():
            self.ended.set_result(failure)


def _start(launch: Launch, mark: str, stdin: bytes | None, output: int) -> int:
    """The pid of the new child, which is ours to reap. SpawnFailed."""
    who = precheck.credentials(launch.user, launch.group)
    program = precheck.program(launch, who)
    given = -1
    try:
        if stdin is not None:
            given = os.memfd_create("stdin")
            os.write(given, stdin)
            os.lseek(given, 0, os.SEEK_SET)
        child = subprocess.Popen(
            (program, *launch.argv[1:]),
            stdin=subprocess.DEVNULL if given < 0 else given,
            stdout=output,
            stderr=output,
            cwd=launch.directory,
            env={**launch.env, proc.MARK: mark},
            start_new_session=True,
            user=None if who is None else who.uid,
            group=None if who is None else who.gid,
            extra_groups=None if who is None else who.groups,
            umask=-1 if launch.umask is None else launch.umask,
        )
    except OSError as error:
        words = os.strerror(error.errno) if error.errno else str(error)
        raise SpawnFailed(f"program {program} could not be started: {words}", ours=error.errno in OURS) from error
    except ValueError as error:  # a NUL byte, or a '=' in a name
        raise SpawnFailed(f"command or environment cannot be handed over: {error}", "correct it") from error
    finally:
        if given >= 0:
            os.close(given)
    child.returncode = 0  # Popen must neither wait for it nor warn about it
    return child.pid


def _pipe() -> tuple[int, int]:
    """SpawnFailed."""
    try:
        return os.pipe()
    except OSError as error:
        raise SpawnFailed(f"a program's output cannot be read: {error.strerror}", ours=error.errno in OURS) from error


def _pidfd(pid: int) -> int:
    """SpawnFailed; the child is gone then."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise SpawnFailed(f"a program cannot be watched: {error.strerror}", ours=True) from error


def _kill(target: proc.Stat) -> None:
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(target.pid)
        try:
            now = proc.stat(target.pid)
            if now is not None and now.started == target.started:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
