"""A real `branchd run` for tests: a process of its own, in folders of its own, that can be killed and started again."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from branchd.client import BranchdClient, Unreachable
from tests.waiting import until, until_sync

#: a Celery application of a user; see its text for what it takes from its environment
PROJECT = Path(__file__).with_name("project")


class RunningBranch:
    def __init__(self, folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """The folder's path must be short: a unix socket stands in it. `arguments` go to `branchd run`."""
        self.folder = folder
        self.socket = folder / "api.sock"
        self.client = BranchdClient(f"unix:{self.socket}")
        self._arguments = arguments
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "daemon.log").read_text(errors="replace")

    def command(self, *arguments: str) -> Sequence[str]:
        return [
            sys.executable, "-m", "branchd.cli.daemon", "run", "--name", "here", "--state", str(self.folder / "state"),
            "--run", str(self.folder / "run"), "--listen", f"unix:{self.socket}", *self._arguments, *arguments,
        ]  # fmt: skip

    def launch(self) -> subprocess.Popen[bytes]:
        """Does not wait for anything."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("BRANCHD_")}
        with open(self.folder / "daemon.log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(), env=env | self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self._process

    async def start(self) -> "RunningBranch":
        self.launch()
        await until(self._ready, 60, "the daemon to be ready")
        return self

    async def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the daemon ended with {self._process.returncode}:\n{self.log}"
        try:
            return await self.client.ready()
        except Unreachable:
            return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float = 60) -> int:
        """The exit code, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self, seconds: float = 60) -> int:
        """TERM; the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(seconds)

    def clean_up(self) -> None:
        """Ends the daemon and all that it runs, also after a kill: one more daemon adopts it and stops it."""
        if self._process is not None and self._process.poll() is not None and self._process.returncode != 0:
            begun = self.log.count("event=ready")
            process = self.launch()
            # Before it has adopted what runs, TERM would end the daemon alone.
            until_sync(lambda: process.poll() is not None or self.log.count("event=ready") > begun, 60)
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            for _ in range(3):
                try:
                    self._process.wait(20)
                    return
                except subprocess.TimeoutExpired:
                    self._process.send_signal(signal.SIGINT)
            self._process.kill()

    # What tests ask again and again

    async def status(self, app: str, name: str) -> dict[str, Any]:
        status: dict[str, Any] = (await self.client.instance(app, name))["status"]
        return status

    async def state(self, app: str, name: str, state: str, seconds: float = 60) -> dict[str, Any]:
        async def reached() -> dict[str, Any] | None:
            status = await self.status(app, name)
            return status if status["state"] == state else None

        found = await until(reached, seconds, f"{app}:{name} to be {state}")
        assert found is not None
        return found

    async def ready(self, app: str, name: str, seconds: float = 60) -> dict[str, Any]:
        """RUNNING, with the condition Ready."""

        async def reached() -> dict[str, Any] | None:
            status = await self.status(app, name)
            truths = {condition["type"]: condition["status"] for condition in status["conditions"]}
            return status if status["state"] == "RUNNING" and truths["Ready"] == "True" else None

        found = await until(reached, seconds, f"{app}:{name} to be ready")
        assert found is not None
        return found

    async def pids(self) -> dict[str, int]:
        items = (await self.client.instances())["items"]
        return {f"{item['app']}:{item['name']}": item["status"]["pid"] for item in items if item["status"]["pid"]}


def alive(pid: int) -> bool:
    """A zombie answers kill(pid, 0) as well: its state tells."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False
