"""The daemon as PID 1 of a container, without an init: it reaps zombies, TERM runs the stop plans, it exits with 0."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.branch import RunningBranch
from tests.e2e.conftest import Maker
from tests.waiting import until

#: leaves orphans behind, each in a session of its own, that write their pids to files in $0 and end: they are PID 1's
ORPHANS = (
    """for number in 1 2 3 4 5; do (setsid sh -c 'echo $$ >"$0"' "$0/orphan-$number" &) ; done; exec sleep 100000"""
)


class Container(RunningBranch):
    """`branchd run` is PID 1 in a pid namespace of its own, with a /proc of its own."""

    def command(self, *arguments: str) -> list[str]:
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return [*unshare, *super().command(*arguments)]

    def inside(self) -> int:
        """The pid of the daemon, as this machine sees it."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0])

    def processes(self) -> set[int]:
        """What is in the container, zombies too, by its pid in there."""
        space = os.readlink(f"/proc/{self.inside()}/ns/pid")
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                lines = (entry / "status").read_text().splitlines()
                if os.readlink(entry / "ns" / "pid") == space:
                    found.add(int(next(line for line in lines if line.startswith("NSpid:")).split()[-1]))
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
    for name, argv in (("orphans", ["sh", "-c", ORPHANS, str(tmp_path)]), ("trap", ["sh", "-c", script])):
        await container.client.create_instance("shop", {"name": name, "command": argv}, wait=30)

    def orphans() -> set[int]:
        files = [path.read_text() for path in tmp_path.glob("orphan-*")]
        return {int(text) for text in files if text.endswith("\n")}

    await until(lambda: len(orphans()) == 5, 60, "the orphans to have run")
    await until(lambda: not orphans() & container.processes(), 60, "all of them reaped")
    os.kill(container.inside(), signal.SIGTERM)
    assert container.wait() == 0
    assert told.read_text() == "stopped\n"


async def test_a_second_interrupt_kills_what_does_not_stop(container: Container) -> None:
    spec = {"name": "deaf", "command": ["sh", "-c", "trap '' TERM INT; while :; do sleep 0.05; done"],
            "stop": [{"signal": "TERM", "patience": 3600}]}  # fmt: skip
    await container.client.create_instance("shop", spec, wait=30)
    os.kill(container.inside(), signal.SIGINT)
    await until(lambda: "event=stopping" in container.log, 60, "the stop plans")
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


@pytest.mark.parametrize("cured", [True, False])
async def test_a_pid_1_that_does_not_come_up_after_a_reload_tries_again_while_what_runs_goes_on(
    container: Container, cured: bool
) -> None:
    await container.client.create_instance("shop", {"name": "a", "command": ["sleep", "100000"]})
    pid = (await container.state("shop", "a", "RUNNING"))["pid"]
    container.socket.unlink()
    container.socket.write_text("in the way")
    os.kill(container.inside(), signal.SIGHUP)
    await until(lambda: "not up after the reload" in container.log, 60, "the new code to fail")
    assert "something else than a socket stands there" in container.log
    assert pid in container.processes()
    if not cured:
        os.kill(container.inside(), signal.SIGTERM)
        assert container.wait() == 1
        return
    container.socket.unlink()
    await until(container._ready, 60, "the daemon to be there again")
    assert (await container.status("shop", "a"))["pid"] == pid
    os.kill(container.inside(), signal.SIGTERM)
    assert container.wait() == 0
