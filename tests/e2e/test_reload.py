"""A daemon that takes up new code and configuration in place, and one that lets go: what runs is not touched."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from branchd.client import ApiProblem
from tests.e2e.branch import RunningBranch, alive
from tests.e2e.conftest import Maker
from tests.waiting import until


async def started(branch: RunningBranch) -> RunningBranch:
    await branch.start()
    await branch.client.put_app("shop", {"kind": "command", "command": ["sleep", "100000"]})
    return branch


async def create(branch: RunningBranch, name: str) -> int:
    made = await branch.client.create_instance("shop", {"name": name}, wait=30)
    return int(made["status"]["pid"])


async def started_at(branch: RunningBranch) -> str:
    return str((await branch.client.branch("here"))["started_at"])


async def reloaded(branch: RunningBranch) -> None:
    """Asks for it over the API, and waits for the new code."""
    before = await branch.client.reload("here")

    async def anew() -> bool:
        return await branch.client.ready() and await started_at(branch) != before["started_at"]

    await until(anew, 60, "the new code")


def open_files(pid: int) -> str:
    """The limit of a process."""
    return next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in line)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def open_now(pid: int) -> list[str]:
    """What its descriptors are of."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it has just begun, and opens and closes its libraries
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


async def test_a_reload_keeps_pid_processes_exit_codes_and_descriptors(make_branch: Maker, tmp_path: Path) -> None:
    branch = await started(make_branch())
    pid, worker, inode = branch.pid, await create(branch, "a"), os.stat(branch.socket).st_ino
    gate = tmp_path / "gate"
    script = f"while ! test -e {gate}; do sleep 0.05; done; exit 7"
    spec = {"name": "seven", "command": ["sh", "-c", script], "restart": {"policy": "never"}}
    await branch.client.create_instance("shop", spec, wait=30)
    await reloaded(branch)
    once = descriptors(pid)
    await reloaded(branch)
    await reloaded(branch)

    await until(lambda: descriptors(pid) <= once + 1)  # more for a moment: for this very question, for looks at /proc
    assert (branch.pid, (await branch.pids())["shop:a"]) == (pid, worker)
    assert os.stat(branch.socket).st_ino == inode
    gate.touch()
    assert (await branch.state("shop", "seven", "EXITED"))["last_exit"]["code"] == 7
    # what the next image is told is for it alone
    after = await create(branch, "after")
    assert "BRANCHD_INHERITED" not in Path(f"/proc/{after}/environ").read_text()  # noqa: ASYNC240
    assert open_files(after) == open_files(worker)
    inherited = open_now(after)
    assert not [name for name in inherited if name.startswith("socket:") or name.endswith("/lock")]
    assert branch.stop() == 0
    assert not alive(worker)
    assert not branch.socket.exists()


async def test_what_ends_while_no_code_runs_has_its_exit_code_all_the_same(make_branch: Maker) -> None:
    branch = await started(make_branch())
    spec = {"name": "brief", "command": ["sh", "-c", "sleep 0.2; exit 9"]}
    await branch.client.patch_app("shop", {"restart": {"ceiling": 0.1, "max_restarts": 10_000}})
    await branch.client.create_instance("shop", spec, wait=30)
    for _ in range(2):
        await reloaded(branch)
    events = [event async for event in branch.client.events(tail=1000, follow=False, app="shop", instance="brief")]
    ends = {event["data"]["exit"] for event in events if "exit" in event["data"]}
    assert ends == {"exit code 9"}


async def test_a_hangup_takes_up_another_configuration(make_branch: Maker, tmp_path: Path) -> None:
    file = tmp_path / "branchd.toml"
    file.write_text("")
    branch = await started(make_branch("--config", str(file)))
    worker, before = await create(branch, "a"), await started_at(branch)
    file.write_text('[branch]\nlabels = { zone = "b" }\n')
    os.kill(branch.pid, signal.SIGHUP)

    async def changed() -> bool:
        return (await branch.client.branch("here"))["labels"] == {"zone": "b"}

    await until(changed, 60, "the new configuration")
    assert await started_at(branch) != before
    assert (await branch.pids())["shop:a"] == worker


async def test_a_hangup_while_it_starts_is_a_reload_when_it_has(make_branch: Maker) -> None:
    branch = make_branch()
    process = branch.launch()

    def held() -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = int(status.partition("SigBlk:")[2].split()[0], 16)
        # Or ready already, where this process was not given a CPU in the quarter of a second that they are held.
        return bool(mask & 1 << signal.SIGHUP - 1) or "event=ready" in branch.log

    await until(held, 60, "signals to be held")
    process.send_signal(signal.SIGHUP)
    await until(lambda: branch.log.count("event=ready") == 2, 60, "started, and reloaded")
    process.terminate()
    assert process.wait(30) == 0


async def test_a_configuration_that_would_not_start_is_refused_with_the_reason(
    make_branch: Maker, tmp_path: Path
) -> None:
    file = tmp_path / "branchd.toml"
    file.write_text("")
    branch = await started(make_branch("--config", str(file)))
    worker, before, pid = await create(branch, "a"), await started_at(branch), branch.pid
    file.write_text('[branch]\nslots = "many"\n')

    with pytest.raises(ApiProblem) as refused:
        await branch.client.reload("here")

    assert (refused.value.status, "slots" in refused.value.detail) == (409, True), refused.value.detail
    assert (await started_at(branch), branch.pid, (await branch.pids())["shop:a"]) == (before, pid, worker)
    assert not (branch.folder / "run" / "refused.json").exists()
    file.write_text("")
    await reloaded(branch)


async def test_a_stop_that_comes_during_a_reload_is_not_lost(make_branch: Maker) -> None:
    branch = await started(make_branch())
    worker = await create(branch, "a")
    for moment in ("trying the code", "event=reloading"):
        os.kill(branch.pid, signal.SIGHUP)
        await until(lambda moment=moment: moment in branch.log, 60, moment)
        os.kill(branch.pid, signal.SIGTERM)
        assert branch.stop() == 0
        assert not alive(worker)
        (branch.folder / "daemon.log").write_text("")
        await branch.start()
        worker = (await branch.ready("shop", "a"))["pid"]


async def test_a_daemon_that_lets_go_leaves_what_runs_to_the_next_one(make_branch: Maker) -> None:
    branch = await started(make_branch())
    workers = {"shop:a": await create(branch, "a"), "shop:b": await create(branch, "b")}
    os.kill(branch.pid, signal.SIGQUIT)
    assert branch.wait() == 0
    assert all(alive(pid) for pid in workers.values())
    await branch.start()
    assert await branch.pids() == workers


async def test_an_event_stream_ends_with_the_hint_when_to_come_again(make_branch: Maker) -> None:
    branch = await started(make_branch())
    reader, writer = await asyncio.open_unix_connection(str(branch.socket))
    writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    await reloaded(branch)
    stream = (await reader.read()).decode()
    assert "retry: 1000" in stream
    assert stream.endswith("0\r\n\r\n")  # whole, as chunks go
    writer.close()


async def test_what_was_asked_before_a_reload_is_answered(make_branch: Maker) -> None:
    branch = await started(make_branch())
    await branch.client.put_app("slow", {"kind": "command", "command": ["sleep", "100000"]})
    # an answer that waits for what does not come: it is given early, and whole
    spec = {"name": "never", "command": ["/nonexistent"]}
    await branch.client.create_instance("slow", spec)
    waiting = asyncio.create_task(branch.client.start("slow", "never", wait=60))
    await reloaded(branch)
    assert (await waiting)["name"] == "never"


async def test_a_socket_that_was_taken_away_is_there_again_after_a_reload(make_branch: Maker) -> None:
    branch = await started(make_branch())
    pid, worker = branch.pid, await create(branch, "a")
    branch.socket.unlink()
    os.kill(pid, signal.SIGHUP)
    await until(branch._ready, 60, "the socket to be back")
    assert (branch.pid, (await branch.pids())["shop:a"]) == (pid, worker)
    assert branch.stop() == 0
