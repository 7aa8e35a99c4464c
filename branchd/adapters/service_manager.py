"""What the commands of our unit ask of systemd, and do to the daemon and its cgroup. docs/decisions/0023-reload.md.

They run beside the daemon, as other processes: ExecStop= and ExecStopPost=. Units themselves stand in cli/units.py.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from branchd.adapters import proc
from branchd.adapters.cgroup import visible

#: seconds for an answer of systemd's
ANSWER = 10.0

#: seconds that a daemon has to let go, before it is killed: what it runs goes on all the same
LET_GO = 30.0

#: where systemd runs the commands of a unit whose cgroup it has delegated, below that cgroup
CONTROL = ".control"


def restarting(unit: str, *, of_user: bool) -> bool:
    """Whether systemd stops the unit only to start it again: `restart` and what comes down to that.

    Its job is a restart as long as the unit stops, and a start afterwards. False where systemd does not answer.
    """
    scope = ["--user"] if of_user else []
    try:
        asked = subprocess.run(
            ["systemctl", *scope, "list-jobs", "--no-legend", "--no-pager", "--plain", "--full"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    jobs = (line.split() for line in asked.stdout.splitlines())
    return any(job[1:3] == [unit, "restart"] for job in jobs)


def let_go(pid: int) -> bool:
    """Has the daemon end without what it runs, and waits for its end; True where it had to be killed for that.

    To return before its end would have systemd send a TERM beside the QUIT, and of two signals at once either may be
    handled first.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGQUIT)
            if select.select([pidfd], [], [], LET_GO)[0]:
                return False
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return bool(select.select([pidfd], [], [], LET_GO)[0])
        return False
    finally:
        os.close(pidfd)


def turn_controllers_off() -> None:
    """In the unit's cgroup and below, for systemd 252 starts nothing in a cgroup with a controller on (219/CGROUP).

    The limits of what runs on are gone with them, till the next daemon sets them again. Nothing is raised.
    """
    own = proc.cgroup("self")
    unit = visible(own) if own is not None else None
    if unit is not None and unit.name == CONTROL:
        unit = unit.parent
    if unit is not None:
        for folder in _deepest_first(unit):
            _turn_off(folder / "cgroup.subtree_control")


def _deepest_first(folder: Path) -> Iterator[Path]:
    for path, _, _ in os.walk(folder, topdown=False):
        yield Path(path)


def _turn_off(file: Path) -> None:
    with contextlib.suppress(OSError):
        for controller in file.read_text().split():
            with contextlib.suppress(OSError):
                file.write_text(f"-{controller}")
