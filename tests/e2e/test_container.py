"""The daemon as PID 1 of a container, without an init: zombies are reaped, TERM runs the stop plans, it exits with 0."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.branch import RunningBranch
from tests.e2e.conftest import Maker
from tests.waiting import until

#: leaves orphans behind, each in a session of its own, that end at once and belong to PID 1 then
ORPHANS = "for number in 1 2 3 4 5; do (setsid sh -c 'exit 3' &) ; done; exec sleep 100000"


class Container(RunningBranch):
    """`branchd run` is PID 1 in a pid namespace of its own, with a /proc of its own."""

    def command(self, *arguments: str) -> list[str]:
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return [*unshare, *super().command(*arguments)]

    def inside(self) -> int:
        """The pid of the daemon, as this machine sees it."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0])

    def processes(self) -> dict[int, str]:
        """What is in the container, by pid as this machine sees it: the state of each."""
        space = os.readlink(f"/proc/{self.inside()}/ns/pid")
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "ns" / "pid") == space:
                    found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
        return found


@pytest.fixture
async def container(make_branch: Maker) -> AsyncIterator[Container]:
    folder = make_branch().folder
    branch = Container(folder)
    await branch.start()
    await branch.client.put_app("shop", {"kind": "command"})
    yield branch
    if branch.running:
        branch.kill()


async def test_orphans_are_reaped_and_a_term_runs_the_stop_plans(container: Container, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"trap 'echo stopped >{told}; exit 0' TERM; while :; do sleep 0.05; done"
    for name, command in (("orphans", ORPHANS), ("trap", script)):
        await container.client.create_instance("shop", {"name": name, "command": ["sh", "-c", command]}, wait=30)
    await until(lambda: "Z" not in container.processes().values(), 20, "no zombies")
    # they were there, and nobody else could have waited for them
    assert Path(f"/proc/{container.inside()}/status").read_text().count("NSpid") == 1
    os.kill(container.inside(), signal.SIGTERM)
    assert container.wait() == 0
    assert told.read_text() == "stopped\n"


async def test_a_second_interrupt_kills_what_does_not_stop(container: Container) -> None:
    spec = {"name": "deaf", "command": ["sh", "-c", "trap '' TERM INT; while :; do sleep 0.05; done"],
            "stop": [{"signal": "TERM", "patience": 3600}]}  # fmt: skip
    await container.client.create_instance("shop", spec, wait=30)
    os.kill(container.inside(), signal.SIGINT)
    await until(lambda: "event=stopping" in container.log, 20, "the stop plans")
    os.kill(container.inside(), signal.SIGINT)
    assert container.wait() == 0


async def test_a_reload_as_pid_1_touches_nothing(container: Container) -> None:
    made = await container.client.create_instance("shop", {"name": "a", "command": ["sleep", "100000"]}, wait=30)
    before = await container.client.reload("here")

    async def anew() -> bool:
        ready = await container.client.ready()
        return ready and (await container.client.branch("here"))["started_at"] != before["started_at"]

    await until(anew, 60, "the new code")
    assert (await container.status("shop", "a"))["pid"] == made["status"]["pid"]
    os.kill(container.inside(), signal.SIGTERM)
    assert container.wait() == 0


def test_the_daemon_in_a_namespace_of_its_own_sees_itself_as_pid_1() -> None:
    """What the others stand on."""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "1\n"
