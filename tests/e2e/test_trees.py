"""The whole tree ends: with cgroups, and where the daemon may make none."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.branch import RunningBranch, alive
from tests.e2e.programs import ESCAPING, Programs, catches, ignores, stop_plan
from tests.waiting import until

#: an account without rights, nobody's; reading is allowed, for the tests' Python may stand in root's own folder
UNPRIVILEGED = (
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
)  # fmt: skip


class Unprivileged(RunningBranch):
    """May make no cgroups, so that it ends trees without."""

    def command(self, *arguments: str) -> Sequence[str]:
        return [*UNPRIVILEGED, *super().command(*arguments)]


@pytest.fixture(params=["cgroups", "session"])
def branch(request: pytest.FixtureRequest, folder: Path, programs: Programs) -> Iterator[RunningBranch]:
    """Not started yet."""
    assert os.geteuid() == 0, "these tests want root"
    if request.param == "session":
        os.chown(folder, 65534, 65534)
        made: RunningBranch = Unprivileged(folder)
    else:
        made = RunningBranch(folder)
    yield made
    made.clean_up()


async def start(branch: RunningBranch) -> None:
    await branch.start()
    await branch.client.put_app("shop", {"kind": "command"})


async def escaping(branch: RunningBranch, programs: Programs) -> tuple[int, int]:
    """Creates shop:main; the pids of its main process, deaf to TERM, and of what left its session twice."""
    body = {"name": "main", "command": programs.escaping("main", "escaped"), "stop": stop_plan(0.5)}
    await branch.client.create_instance("shop", body, wait=30)
    await until(lambda: settled(programs.running()) and ignores(programs.only("main"), signal.SIGTERM))
    main, escaped = programs.only("main"), programs.only("escaped")
    assert in_cgroup(main) is not isinstance(branch, Unprivileged), "these tests want a cgroup2 mount"
    return main, escaped


def in_cgroup(pid: int) -> bool:
    return "/branchd-" in Path(f"/proc/{pid}/cgroup").read_text()


def settled(running: dict[str, list[int]]) -> bool:
    """One of each, the second in a session of its own."""
    if any(len(running.get(name, ())) != 1 for name in ("main", "escaped")):
        return False
    (main,), (escaped,) = running["main"], running["escaped"]
    try:
        return os.getsid(escaped) == escaped != os.getsid(main)
    except ProcessLookupError:
        return False


async def replaced(programs: Programs, main: int, escaped: int) -> None:
    """Waits for the next run; nothing of the one before is left, and the new one is alone."""

    def reached() -> bool:
        running = programs.running()
        return settled(running) and running["main"] != [main] and running["escaped"] != [escaped]

    await until(reached, 30, "the next run, alone")
    assert not alive(escaped)


async def test_a_stop_that_outlives_its_patience_kills_the_whole_tree_and_no_other(
    branch: RunningBranch, programs: Programs
) -> None:
    await start(branch)
    await escaping(branch, programs)
    body = {"name": "other", "command": programs.escaping("other", "other-escaped"), "stop": stop_plan(0.5)}
    await branch.client.create_instance("shop", body, wait=30)
    await until(lambda: programs.running().keys() == {"main", "escaped", "other", "other-escaped"})
    stopped = await branch.client.stop("shop", "main", wait=30)
    assert stopped["status"]["state"] == "STOPPED"
    assert stopped["status"]["last_exit"]["signal"] == "SIGKILL"
    await until(lambda: programs.running().keys() == {"other", "other-escaped"}, what="all of the tree to end")


async def test_so_does_one_by_the_next_daemon(branch: RunningBranch, programs: Programs) -> None:
    await start(branch)
    before = await escaping(branch, programs)
    branch.kill()
    await branch.start()
    assert (programs.only("main"), programs.only("escaped")) == before
    stopped = await branch.client.stop("shop", "main", wait=30)
    assert stopped["status"]["state"] == "STOPPED"
    await until(lambda: not programs.running(), what="all of the tree to end")


async def test_what_a_crash_leaves_does_not_live_into_the_next_run(branch: RunningBranch, programs: Programs) -> None:
    await start(branch)
    main, escaped = await escaping(branch, programs)
    os.kill(main, signal.SIGKILL)
    await replaced(programs, main, escaped)


async def test_nor_does_what_one_left_that_the_next_daemon_adopted(branch: RunningBranch, programs: Programs) -> None:
    await start(branch)
    main, escaped = await escaping(branch, programs)
    branch.kill()
    await branch.start()
    os.kill(main, signal.SIGKILL)
    await replaced(programs, main, escaped)


async def test_nor_does_what_one_left_that_crashed_while_no_daemon_was_there(
    branch: RunningBranch, programs: Programs
) -> None:
    await start(branch)
    main, escaped = await escaping(branch, programs)
    branch.kill()
    os.kill(main, signal.SIGKILL)
    await until(lambda: not alive(main))
    assert alive(escaped)
    await branch.start()
    await replaced(programs, main, escaped)


async def test_a_main_process_that_ends_in_time_takes_its_tree_with_it(
    branch: RunningBranch, programs: Programs
) -> None:
    await start(branch)
    obedient = ESCAPING.replace("trap '' TERM", "trap 'exit 0' TERM")
    command = programs.shell("main", obedient, programs.escaping("x", "escaped")[-1])
    await branch.client.create_instance("shop", {"name": "main", "command": command, "stop": stop_plan(600)}, wait=30)
    await until(lambda: settled(programs.running()) and catches(programs.only("main"), signal.SIGTERM))
    stopped = await branch.client.stop("shop", "main", wait=30)
    assert (stopped["status"]["state"], stopped["status"]["last_exit"]["code"]) == ("STOPPED", 0)
    await until(lambda: not programs.running(), what="all of the tree to end")


async def test_term_goes_to_the_main_process_only(branch: RunningBranch, programs: Programs) -> None:
    await start(branch)
    told = programs.folder / "told"
    told.mkdir(mode=0o777)
    told.chmod(0o777)
    wait = 'while :; do read _ <>"$1"; done'
    child = (
        f"trap ': >{told}/child-TERM' TERM; trap ': >{told}/child-HUP' HUP; trap ': >{told}/child-USR1' USR1; {wait}"
    )
    main = f"""sh -c "$2" "$3" "$1" & trap ': >{told}/main-TERM' TERM; {wait}"""
    command = programs.shell("main", main, child, programs.waiting("child")[3])
    await branch.client.create_instance("shop", {"name": "main", "command": command, "stop": stop_plan(600)}, wait=30)
    await until(
        lambda: {"main", "child"} <= programs.running().keys() and catches(programs.only("main"), signal.SIGTERM)
    )
    pid = programs.only("child")
    await until(lambda: catches(pid, signal.SIGUSR1))
    await branch.client.stop("shop", "main")
    await until((told / "main-TERM").exists)
    # what the child hears now comes after whatever the stop has sent it
    for name, number in (("HUP", signal.SIGHUP), ("USR1", signal.SIGUSR1)):
        os.kill(pid, number)
        await until((told / f"child-{name}").exists)
    assert not (told / "child-TERM").exists()
    os.kill(programs.only("main"), signal.SIGKILL)
    await branch.state("shop", "main", "STOPPED")
    await until(lambda: not programs.running(), what="the child to end with it")
