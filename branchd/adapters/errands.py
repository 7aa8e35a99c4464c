"""Programs that are run beside an instance and soon end: probes and hooks. Run as the instance is, each with a session
of its own; whoever takes too long, or says too much, is killed with its whole tree.

How they are started is process.py's; what an instance itself runs is too.
"""

import asyncio
import os
import signal
from collections.abc import Callable

from branchd.adapters import precheck, proc, trees
from branchd.adapters.process import LinuxProcesses
from branchd.adapters.reaping import ExitWatch
from branchd.adapters.spawning import Begun
from branchd.core.errors import SpawnFailed
from branchd.core.values import Exit, Launch

#: errands at a time
AT_ONCE = 16

#: errands that are begun a second: many that fall due together leave the machine to others
A_SECOND = 100.0

#: bytes that one may write
MOST_OUTPUT = 1 << 20

#: bytes at the end of what it wrote that are kept, and characters of the last line that are told
TAIL = 4096
MOST_TOLD = 300


class Errands:
    def __init__(self, processes: LinuxProcesses) -> None:
        self._processes = processes
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._next = 0.0
        self._running: set[_Errand] = set()

    def close(self) -> None:
        """Kills what still runs."""
        for errand in list(self._running):
            errand.kill()

    async def run(
        self, launch: Launch, timeout: float, stdin: bytes = b"", begins: Callable[[], None] = lambda: None
    ) -> str | None:
        """None where it exits with 0, else why not, in words, with its last line. SpawnFailed.

        `begins` is called when its turn has come; from then on the timeout counts.
        """
        async with self._slots:
            await self._turn()
            begins()
            errand = _Errand(self._processes, launch, stdin)
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
    def __init__(self, processes: LinuxProcesses, launch: Launch, stdin: bytes) -> None:
        """Starts it. SpawnFailed."""
        self._loop = asyncio.get_running_loop()
        self._processes = processes
        self.ended: asyncio.Future[str | None] = self._loop.create_future()  #: why it failed; SpawnFailed
        self._mark = processes.errand_mark()
        self._watch: ExitWatch | None = None
        self._pid = 0
        self._unwanted = False
        self._written = 0
        self._tail = b""
        self._output, output = _pipe()
        os.set_blocking(self._output, False)
        self._loop.add_reader(self._output, self._read)
        # A task of its own: whoever gives up waiting must still learn of what has begun, and end it.
        self._starting = self._loop.create_task(self._start(launch, output, stdin))
        self._starting.add_done_callback(self._started)

    @property
    def last_line(self) -> str:
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return "".join(letter for letter in lines[-1] if letter.isprintable())[:MOST_TOLD] if lines else ""

    def kill(self) -> None:
        """The whole tree, where it has not ended by itself. Its main process is reaped when it is gone."""
        self._unwanted = True
        self._close_output()
        if self._watch is None or self._watch.pidfd < 0:
            return
        descendants = proc.descendants(self._pid)  # listed before any dies: they are known by their parents
        trees.kill_group(self._pid)
        self._watch.signal(signal.SIGKILL)
        for each in descendants:
            trees.kill(each)
        self._processes.kill_left(self._mark)  # whose parents had ended before

    async def _start(self, launch: Launch, output: int, stdin: bytes) -> Begun:
        try:
            return await self._processes.spawn_errand(launch, self._mark, output, stdin)
        finally:
            os.close(output)

    def _started(self, starting: asyncio.Task[Begun]) -> None:
        if starting.cancelled():  # the loop ends
            return
        if (failure := starting.exception()) is not None:
            if not self.ended.done():
                self.ended.set_exception(failure)
            return
        begun = starting.result()
        self._pid = begun.pid
        self._watch = ExitWatch(begun.pidfd, lambda: trees.kill_group(begun.pid), self._exited)
        if self._unwanted:
            self.kill()

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


def _pipe() -> tuple[int, int]:
    """SpawnFailed."""
    try:
        return os.pipe()
    except OSError as error:
        raise SpawnFailed(
            f"a program's output cannot be read: {error.strerror}", ours=error.errno in precheck.OURS
        ) from error
