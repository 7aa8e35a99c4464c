"""A real daemon in a folder of its own, for the tests of what talks to one."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.free_port import free_port
from tests.waiting import until_sync


class RunningDaemon:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="br-"))  # short: a socket stands in it
        self.run = self.folder / "run"
        self.url = f"unix:{self.run}/api.sock"
        self.port = free_port()
        self.tcp = f"http://127.0.0.1:{self.port}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BRANCHD_")}
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "branchd.cli.daemon", "run", "--name", "here", "--state", str(self.folder / "state"),
             "--run", str(self.run), "--listen", self.url, "--listen", f"127.0.0.1:{self.port}"],
            env=environment, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        until_sync(self._ready, 60, "the daemon is ready")

    def _ready(self) -> bool:
        said = (self.folder / "log").read_text()
        assert self._process.poll() is None, said
        return "event=ready" in said

    @property
    def token(self) -> str:
        return (self.folder / "state" / "admin.token").read_text().strip()

    def stop(self) -> None:
        """With all that it runs."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0, (self.folder / "log").read_text()
        self._log.close()
        shutil.rmtree(self.folder)
