"""Small programs for instances to run, each known over /proc by a mark of its own among its arguments."""

import contextlib
import os
import signal
import uuid
from pathlib import Path
from typing import Any

from tests.waiting import until_sync

#: waits for good, without a child; $1 is a named pipe that nobody writes to
WAIT = 'read _ <>"$1"'

#: has no ear for TERM
STUBBORN = f"trap '' TERM; {WAIT}"

#: leaves a process two sessions away, marked $2, whose parent has ended; then as STUBBORN
ESCAPING = f"""setsid sh -c 'setsid sh -c "read _ <>\\"\\$1\\"" "$0" "$1" &' "$2" "$1"; {STUBBORN}"""


class Programs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = f"mark-{uuid.uuid4().hex}"
        self._pipe = folder / "never"
        os.mkfifo(self._pipe)
        self._pipe.chmod(0o666)

    def shell(self, name: str, script: str, *arguments: str) -> list[str]:
        """A command whose $0 is the mark and whose $1 is a pipe that never gives anything."""
        return ["/bin/sh", "-c", script, f"{self._mark}:{name}", str(self._pipe), *arguments]

    def waiting(self, name: str) -> list[str]:
        return self.shell(name, WAIT)

    def stubborn(self, name: str) -> list[str]:
        return self.shell(name, STUBBORN)

    def escaping(self, name: str, escaped: str) -> list[str]:
        return self.shell(name, ESCAPING, f"{self._mark}:{escaped}")

    def running(self) -> dict[str, list[int]]:
        """The pids of all that run now, by name; a zombie has no arguments any more."""
        found: dict[str, list[int]] = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            arguments = _arguments(pid)
            if marked := [word for word in arguments if word.startswith(f"{self._mark}:")]:
                found.setdefault(marked[0].partition(":")[2], []).append(int(pid))
        return found

    def only(self, name: str) -> int:
        """The pid of the one that runs under this name; AssertionError where there is another number of them."""
        pids = self.running().get(name, [])
        assert len(pids) == 1, f"{name} runs as {pids}"
        return pids[0]

    def end(self) -> None:
        """Whatever a test that failed has left."""

        def gone() -> bool:
            left = [pid for pids in self.running().values() for pid in pids]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        until_sync(gone, 60, "the tests' programs to end")


def _arguments(pid: str) -> list[str]:
    for _ in range(1000):
        try:
            content = Path(f"/proc/{pid}/cmdline").read_bytes()
            if not content:
                os.readlink(f"/proc/{pid}/exe")  # zombies and the kernel's own have none
        except OSError:
            break
        if content:
            return content.decode(errors="replace").split("\0")
        # in the midst of an exec, where the old arguments are gone and the new ones not there yet
    return []


def ignores(pid: int, number: int) -> bool:
    """Whether it has got so far as to ignore that signal."""
    return _has(pid, "SigIgn", number)


def catches(pid: int, number: int) -> bool:
    return _has(pid, "SigCgt", number)


def _has(pid: int, field: str, number: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in lines)
    return bool(int(fields[field], 16) >> (number - 1) & 1)


def stop_plan(patience: float) -> list[dict[str, Any]]:
    return [{"signal": "TERM", "patience": patience}]
