"""Programs that become ready late, hang or give up, and who is told of it."""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.e2e.branch import RunningBranch, alive
from tests.e2e.conftest import Maker
from tests.e2e.work import truth
from tests.free_port import free_port
from tests.waiting import until

#: answers on the port $1 as soon as the file $2 is there
SERVER = """
import http.server, pathlib, sys, time
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.02)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def serving(port: int, door: Path) -> dict[str, Any]:
    return {"kind": "command", "command": [sys.executable, "-c", SERVER, str(port), str(door)]}


async def given_up(branch: RunningBranch, words: list[str]) -> dict[str, Any]:
    """The status of web:one once it is FATAL with these last words: they are read a moment after it is."""
    await branch.state("web", "one", "FATAL")

    async def said() -> dict[str, Any] | None:
        status = await branch.status("web", "one")
        return status if status["last_words"] == words else None

    return await until(said, what=f"the last words {words}")


async def test_one_that_becomes_ready_late_is_running_from_then_on_and_killed_when_it_hangs(
    branch: RunningBranch, folder: Path
) -> None:
    client, port, door = branch.client, free_port(), folder / "door"
    probe = {"http": f"http://127.0.0.1:{port}/", "period": 0.2, "timeout": 2, "failures": 2}
    await client.put_app("web", serving(port, door))
    await client.create_instance("web", {"name": "one", "ready": {"probe": probe}, "alive": probe})

    async def refused() -> bool:
        status = await branch.status("web", "one")
        return status["state"] == "STARTING" and "connection refused" in truth(status, "Ready")[1]

    await until(refused)
    door.touch()
    status = await branch.ready("web", "one")
    assert status["restarts"] == 0
    pid = status["pid"]

    os.kill(pid, signal.SIGSTOP)

    async def replaced() -> bool:
        now = await branch.status("web", "one")
        return now["state"] == "RUNNING" and now["pid"] != pid

    await until(replaced, 60)
    assert not alive(pid)
    async for event in client.events(0):
        if event["data"].get("exit"):
            assert event["data"]["reason"].startswith(f"not alive: GET http://127.0.0.1:{port}/: no answer within 2 s")
            break


async def test_one_that_is_never_ready_ends_fatal_and_says_why_also_to_the_next_daemon(
    branch: RunningBranch, folder: Path
) -> None:
    probe = {"exec": ["sh", "-c", "echo not yet; exit 1"], "period": 0.1}
    spec = {
        "kind": "command", "command": ["sh", "-c", "echo I wait for something; exec sleep 1000"],
        "ready": {"probe": probe, "within": 2}, "restart": {"max_restarts": 1, "ceiling": 0.1},
        "logs": {"stderr": "join"},
    }  # fmt: skip
    await branch.client.put_app("web", spec)
    await branch.client.create_instance("web", {"name": "one"})
    status = await given_up(branch, ["I wait for something"] * 2)
    assert status["reason"].startswith("not ready within 2 s: run sh: exit code 1: not yet (")
    assert status["reason"].endswith("which is too often; start it to try again")
    assert branch.stop() == 0
    await branch.start()
    await branch.client.patch_instance("web", "one", {"restart": {"max_restarts": 0}})
    status = await given_up(branch, ["I wait for something"] * 3)
    branch.kill()
    await branch.start()
    assert (await branch.status("web", "one"))["last_words"] == status["last_words"]


async def test_hooks_are_told_by_command_and_by_url(make_branch: Maker, folder: Path) -> None:
    branch = await make_branch().start()
    heard: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        heard.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    told = folder / "told"
    spec = {
        "kind": "command", "command": ["sh", "-c", "echo out of paper >&2; exit 7"], "env": {"TO": str(told)},
        "restart": {"max_restarts": 1, "ceiling": 0.1}, "hooks": {
            "on_exit": {"command": ["sh", "-c", 'echo "$BRANCHD_EVENT $BRANCHD_INSTANCE $(cat)" >>"$TO"']},
            "on_fatal": {"url": f"http://127.0.0.1:{runner.addresses[0][1]}/"},
        },
    }  # fmt: skip
    await branch.client.put_app("web", spec)
    await branch.client.create_instance("web", {"name": "one"})
    await given_up(branch, ["out of paper"] * 2)
    await until(lambda: heard, what="the webhook to be told")
    await until(lambda: told.exists() and len(told.read_text().splitlines()) == 2, what="the command to be told twice")
    await runner.cleanup()
    [fatal] = heard
    kept = {event["id"]: event async for event in branch.client.events(0, follow=False)}
    assert fatal == kept[fatal["id"]]
    assert (fatal["data"]["to"], fatal["data"]["last_words"]) == ("FATAL", ["out of paper"] * 2)
    for line in told.read_text().splitlines():
        name, instance, body = line.split(" ", 2)
        assert (name, instance) == ("on_exit", "web:one")
        event = json.loads(body)
        assert event == kept[event["id"]]
        assert event["data"]["exit"] == "exit code 7"


async def test_the_watchdog_is_fed_from_the_beginning_of_a_start_on(make_branch: Maker, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        branch = make_branch(env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"})
        await branch.start()
        told: list[str] = []

        def ready() -> bool:
            try:
                while True:
                    told.append(manager.recv(4096).decode())
            except BlockingIOError:
                return any("READY=1" in one for one in told)

        await until(ready, 60, "the daemon to say that it is ready")
    before = told[: next(number for number, one in enumerate(told) if "READY=1" in one)]
    assert before.count("WATCHDOG=1") >= 2  # when the process began, and when its loop did
