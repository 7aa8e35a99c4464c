"""Real programs: one that is slow to stop delays nobody, and what needs another comes after it and goes before."""

import asyncio
import os
import signal
from pathlib import Path

from tests.e2e.branch import RunningBranch
from tests.e2e.programs import Programs
from tests.waiting import until

#: one TERM that is not heard, and a minute of patience
SLOW = [{"signal": "TERM", "patience": 60}]

#: what a test waits for in seconds, well below that minute
SOON = 30.0


async def test_a_stop_of_a_minute_delays_nothing_else(branch: RunningBranch, programs: Programs) -> None:
    client = branch.client
    await client.put_app("shop", {"kind": "command"})
    await client.create_instance("shop", {"name": "slow", "command": programs.stubborn("slow"), "stop": SLOW})
    for name in ("stops", "starts", "restarts", "crashes", "goes"):
        await client.create_instance("shop", {"name": name, "command": programs.waiting(name)})
    for name in ("slow", "stops", "starts", "restarts", "crashes", "goes"):
        await branch.state("shop", name, "RUNNING")
    assert (await client.stop("shop", "starts", wait=SOON))["status"]["state"] == "STOPPED"
    before = await branch.pids()

    assert (await client.stop("shop", "slow"))["status"]["state"] == "STOPPING"
    crashed = before["shop:crashes"]
    os.kill(crashed, signal.SIGKILL)
    done = await asyncio.gather(
        client.stop("shop", "stops", wait=SOON),
        client.start("shop", "starts", wait=SOON),
        client.restart("shop", "restarts", wait=SOON),
        client.create_instance("shop", {"name": "new", "command": programs.waiting("new")}, wait=SOON),
        client.delete_instance("shop", "goes", wait=SOON),
    )
    assert [one["status"]["state"] for one in done[:4]] == ["STOPPED", "RUNNING", "RUNNING", "RUNNING"]
    assert done[4] is True
    assert done[2]["status"]["pid"] != before["shop:restarts"]
    await until(lambda: programs.running().get("crashes", [crashed]) != [crashed], SOON, "another process of `crashes`")
    await branch.state("shop", "crashes", "RUNNING")
    operation = await client.rolling_restart("shop", ["new"])
    await until(lambda: _over(branch, operation["id"]), SOON)
    assert await client.ready()
    assert (await branch.status("shop", "slow"))["state"] == "STOPPING"
    os.kill(programs.only("slow"), signal.SIGKILL)


async def _over(branch: RunningBranch, operation: str) -> bool:
    return bool((await branch.client.operation(operation))["state"] == "done")


async def test_what_depends_on_another_starts_after_it_is_ready_and_stops_before_it(
    branch: RunningBranch, programs: Programs, folder: Path
) -> None:
    client = branch.client
    journal = folder / "journal"
    flag = folder / "ready"
    script = f"""trap 'echo "$2 ends" >>{journal}; exit 0' TERM; echo "$2 begins" >>{journal}; while :; do
        read -t 0.1 _ <>"$1"; done"""

    def program(name: str) -> list[str]:
        return ["/bin/bash", *programs.shell(name, script, name)[1:]]

    await client.put_app("shop", {"kind": "command"})
    await client.create_instance("shop", {"name": "web", "command": program("web"), "depends_on": ["db"]})
    probe = {"exec": ["test", "-e", str(flag)], "period": 0.1}
    await client.create_instance("shop", {"name": "db", "command": program("db"), "ready": {"probe": probe}})
    await until(journal.exists)
    status = await branch.status("shop", "web")
    assert (status["state"], status["pid"]) == ("STARTING", None)
    assert status["reason"] == "waits for shop:db to be ready"
    flag.touch()
    await branch.state("shop", "web", "RUNNING")
    await until(lambda: "web begins" in journal.read_text())
    assert branch.stop() == 0
    assert journal.read_text().splitlines() == ["db begins", "web begins", "web ends", "db ends"]


async def test_what_waits_is_told_again_by_the_next_daemon(branch: RunningBranch, programs: Programs) -> None:
    client = branch.client
    await client.put_app("shop", {"kind": "command"})
    await client.create_instance("shop", {"name": "db", "command": programs.waiting("db"), "wanted": "down"})
    await client.create_instance("shop", {"name": "web", "command": programs.waiting("web"), "depends_on": ["db"]})
    branch.kill()
    await branch.start()
    status = await branch.status("shop", "web")
    assert (status["state"], status["reason"]) == ("STARTING", "waits for shop:db, which is not wanted up")
    await client.start("shop", "db")
    await branch.state("shop", "web", "RUNNING")
    assert (await branch.pids())["shop:web"] == programs.only("web")
