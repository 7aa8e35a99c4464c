"""The demo's daemon: a real `branchd run` as a process of its own, in folders of its own, that can be killed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from branchd.cli.demo.steps import Failed, until
from branchd.client import BranchdClient, Unreachable

#: seconds that a daemon has to answer, and to stop
PATIENCE = 60.0


class Daemon:
    def __init__(self, folder: Path, name: str = "demo", settings: Mapping[str, str] = MappingProxyType({})) -> None:
        """`settings`: variables of the daemon's environment, for a broker's URL has a password."""
        self.folder = folder
        self.name = name
        self._settings = settings
        self.socket = folder / "run" / "api.sock"
        self.client = BranchdClient(f"unix:{self.socket}")
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> float:
        """Where it does not run. Returns when its API says that it is ready: seconds that it took."""
        began = time.monotonic()
        if self._process is None or self._process.poll() is not None:
            self._launch()
        await until(self._ready, PATIENCE, "the daemon to answer")
        self._answered = True
        return time.monotonic() - began

    def _launch(self) -> None:
        command = [
            sys.executable, "-m", "branchd.cli.daemon", "run", "--name", self.name, "--listen", f"unix:{self.socket}",
            "--state", str(self.folder / "state"), "--run", str(self.folder / "run"),
        ]  # fmt: skip
        # What the caller has configured for a branch of his own is not meant for this one.
        env = {name: value for name, value in os.environ.items() if not name.startswith("BRANCHD_")}
        env.update(self._settings)
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / "branchd.log", "ab") as log:
            self._process = subprocess.Popen(
                command, env=env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    async def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise Failed(f"the daemon ended with {self._process.returncode}:\n{self.last_words()}")
        try:
            return await self.client.ready()
        except Unreachable:
            return False

    def kill(self) -> None:
        """As a crash would: no chance to say goodbye."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """TERM, which stops every instance by its stop plan; the exit code, 0 where nothing was asked of it yet.

        Ctrl-C meanwhile, or one that takes too long: what still runs is killed.
        """
        if self._process is None:
            return 0
        if not self._answered:
            self.kill()
            return 0
        try:
            with suppress(Failed):  # it was just about to end: its socket is gone before its process is
                asyncio.run(self.start())
            asyncio.run(self.start())  # what one that crashed has left running, the next one adopts, and can stop
            self._process.send_signal(signal.SIGTERM)
            return self._process.wait(PATIENCE)
        except (Failed, subprocess.TimeoutExpired, KeyboardInterrupt):
            for _ in range(2):  # the second INT kills what still runs
                self._process.send_signal(signal.SIGINT)
            return self._process.wait(PATIENCE)

    def last_words(self, lines: int = 20) -> str:
        """ "" where it was not started."""
        log = self.folder / "branchd.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])
