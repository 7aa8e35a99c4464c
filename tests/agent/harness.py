"""Real Celery workers with the agent in them, and the daemon's end of its line."""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from celery import Celery

from branchd.adapters.channel import AgentChannel
from branchd.core.health import Phase
from branchd.core.values import QueueDeclaration
from branchd.wire import agent
from branchd.wire.agent import Heartbeat
from tests.waiting import until

AGENT = Path(__file__).parents[2] / "branchd" / "agent"
PROJECT = Path(__file__).parent / "project"
#: seconds for anything that takes one or two on an idle machine
PATIENCE = 30


class Daemon:
    """Listens for agents and remembers what they said."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.beats: dict[int, list[Heartbeat]] = {}
        self.channel = AgentChannel(path)

    def listen(self) -> None:
        self.channel.listen(lambda pid, beat: self.beats.setdefault(pid, []).append(beat), lambda pid: None)

    def restart(self, pids: Sequence[int]) -> None:
        """As another process would: nothing is remembered but whom to admit."""
        self.channel.close()
        self.beats.clear()
        self.channel = AgentChannel(self.path)
        for pid in pids:
            self.channel.admit(pid)
        self.listen()


class Worker:
    def __init__(self, daemon: Daemon, process: subprocess.Popen[bytes], log: Path) -> None:
        self.daemon = daemon
        self.process = process
        self.pid = process.pid
        self._log = log

    @property
    def last(self) -> Heartbeat:
        """What it said last; one that says nothing before it did."""
        return self.daemon.beats.get(self.pid, [Heartbeat()])[-1]

    async def shows(self, condition: Callable[[Heartbeat], object]) -> Heartbeat:
        """The first heartbeat for which the condition holds, from now on or said last."""
        await until(lambda: self._alive() and condition(self.last), PATIENCE, f"{self.last}, see {self.log()}")
        return self.last

    async def is_up(self) -> Heartbeat:
        return await self.shows(lambda beat: beat.phase == Phase.UP)

    async def ask(self, command: Mapping[str, Any]) -> Any:
        return await self.daemon.channel.ask(self.pid, command, PATIENCE)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    async def ends(self) -> int:
        await until(lambda: self.process.poll() is not None, PATIENCE, "the worker ends")
        return self.process.wait()

    def _alive(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the worker ended with {self.process.returncode}: {self.log()}")
        return True


@contextlib.asynccontextmanager
async def daemon(folder: Path) -> AsyncIterator[Daemon]:
    listening = Daemon(folder / "agents.sock")
    listening.listen()
    try:
        yield listening
    finally:
        listening.channel.close()


@contextlib.contextmanager
def worker(
    listening: Daemon,
    broker: str,
    *arguments: str,
    name: str = "worker",
    queues: Sequence[QueueDeclaration] = (),
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[Worker]:
    """A worker that has been started, killed at the end if it still runs. Its tasks come by the queue of its name."""
    log = listening.path.parent / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(python, str(AGENT), "-A", "proj", "worker", "-n", f"{name}@test", "-l", "INFO"),
                *("--without-gossip", "--without-mingle", *arguments),
            ],
            env={
                "PATH": os.environ["PATH"],
                "CELERY_BROKER_URL": broker,
                "PYTHONDONTWRITEBYTECODE": "1",
                agent.SETTINGS_VARIABLE: agent.settings(str(listening.path), queues),
                **(environment or {}),
            },
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    listening.channel.admit(process.pid)
    try:
        yield Worker(listening, process, log)
    finally:
        listening.channel.dismiss(process.pid)
        process.kill()  # prefork's children end with it: the kernel tells them
        process.wait()


def publish(broker: str, task: str, *arguments: str, **where: Any) -> None:
    """Sends a task as a user's program would: queue=..., or exchange=... and routing_key=..."""
    with Celery(broker=broker, set_as_current=False) as client:
        client.conf.broker_transport_options = where.pop("transport_options", {})
        client.send_task(task, arguments, **where)
