"""Processes in memory, for tests of who uses the port: passes tests/adapters/conformance_process.py."""

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from msgspec.structs import replace

from branchd.branch.ports import Lost
from branchd.core.errors import SpawnFailed
from branchd.core.machine import ProcessFacts
from branchd.core.spec import Limits
from branchd.core.values import Exit, Identity, Key, Launch

BOOT = "00000000-0000-4000-8000-000000000000"


class FakeProcess:
    def __init__(self, machine: "FakeProcesses", key: Key, nonce: str, launch: Launch, identity: Identity) -> None:
        self._machine = machine
        self.key = key
        self.nonce = nonce
        self.launch = launch
        self.identity = identity
        self.on_exit: Callable[[Exit], None] | None = None

    @property
    def running(self) -> bool:
        return self.identity.pid in self._machine.running

    def signal(self, number: int) -> None:
        if self.running:
            self._machine.signals.append((self.identity.pid, number))
            if number == signal.SIGKILL:
                self._machine.end(self.identity.pid, Exit(signal=number))

    def kill_tree(self) -> None:
        if self.running:
            self._machine.killed_trees.append(self.identity.pid)
            self._machine.end(self.identity.pid, Exit(signal=signal.SIGKILL))

    def cpu_seconds(self) -> float | None:
        return 0.0 if self.running else None

    def tree_usage(self) -> Mapping[str, float]:
        return {}


class FakeProcesses:
    """One machine. Only KILL, a killed tree and `end` end a process; `on_exit` comes with the loop's next turn."""

    def __init__(self, clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)) -> None:
        self._clock = clock  # seconds since boot
        self.running: dict[int, FakeProcess] = {}  #: by pid
        self.spawned: list[FakeProcess] = []  #: all that were ever started, in order
        self.signals: list[tuple[int, int]] = []  #: (pid, number)
        self.killed_trees: list[int] = []
        self.swept: list[tuple[Key, str]] = []
        self.refused_limits: dict[str, str] = {}  #: limits that cannot be enforced, and why
        self.missing: set[str] = set()  #: programs (argv[0]) that are not there
        self.failure: SpawnFailed | None = None  #: what every spawn raises as long as it stands
        self.ambiguous: set[str] = set()  #: nonces for which `find` cannot tell

    def end(self, pid: int, how: Exit) -> None:
        """The program ends."""
        process = self.running.pop(pid)
        if process.on_exit is not None:
            asyncio.get_running_loop().call_soon(process.on_exit, how)

    def crash(self) -> None:
        """The daemon ends suddenly and another one comes: all that runs goes on, and nobody is told of it any more."""
        for process in self.running.values():
            process.on_exit = None

    async def spawn(
        self,
        key: Key,
        nonce: str,
        launch: Launch,
        output: AbstractContextManager[tuple[int, int]],
        on_exit: Callable[[Exit], None],
        sure: asyncio.Future[None] | None = None,
    ) -> FakeProcess:
        if sure is not None:
            await sure
        if self.failure is not None:
            raise self.failure
        with output:
            pass
        if launch.argv[0] in self.missing:
            raise SpawnFailed(f"program {launch.argv[0]} does not exist", "install it, or correct the path")
        identity = Identity(BOOT, 1000 + len(self.spawned), int(self._clock() * 100))
        process = FakeProcess(self, key, nonce, replace(launch, env=dict(launch.env)), identity)
        process.on_exit = on_exit
        self.spawned.append(process)
        self.running[identity.pid] = process
        return process

    def adopt(
        self, key: Key, nonce: str, identity: Identity, limits: Limits, on_exit: Callable[[Exit], None]
    ) -> FakeProcess | None:
        process = self.running.get(identity.pid)
        if process is None or process.identity != identity:
            return None
        process.on_exit = on_exit
        return process

    def find(self, lost: Mapping[str, Lost]) -> Mapping[str, Identity | None]:
        return {
            process.nonce: None if process.nonce in self.ambiguous else process.identity
            for process in self.running.values()
            if process.nonce in lost and process.identity.started / 100 >= lost[process.nonce].since - 0.05
        }

    def facts(self) -> ProcessFacts:
        return ProcessFacts()

    def unenforceable(self, limits: Limits) -> Mapping[str, str]:
        return {name: why for name, why in self.refused_limits.items() if getattr(limits, name) is not None}

    def sweep(self, key: Key, nonce: str) -> None:
        self.swept.append((key, nonce))
