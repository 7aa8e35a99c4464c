"""A broker's password appears nowhere: not while it works, not when the broker goes away."""

import asyncio
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import redis

from tests.e2e.branch import RunningBranch
from tests.e2e.work import PATIENCE, Work, truth
from tests.redis_server import redis_server
from tests.waiting import until


async def test_the_password_of_the_broker_appears_nowhere(branch: RunningBranch, folder: Path) -> None:
    password, client = secrets.token_hex(8), branch.client
    seen: list[Any] = []
    with redis_server() as open_url:
        with redis.Redis.from_url(open_url) as server:
            server.config_set("requirepass", password)
        work = Work(open_url.replace("redis://", f"redis://:{password}@"), folder)
        seen.append(await client.put_app("shop", work.spec))
        for name, pool in (("first", "prefork"), ("second", "threads")):
            spec = {"name": name, "pool": pool, "queues": [name], "concurrency": 1, "broker": work.broker}
            seen.append(await client.create_instance("shop", spec))
            await branch.ready("shop", name)
            assert await work.result(work.send("add", 1, 2, queue=name)) == 3
            seen.append(await client.add_consumer("shop", name, f"{name}-more"))
            seen.append(await client.stats("shop", name))
            assert seen[-1]["worker"]["broker"]
        arguments = command_lines()
        assert "shop worker -n" in arguments

    for name in ("first", "second"):

        async def says_why(name: str = name) -> bool:
            return truth(await branch.status("shop", name), "Ready")[0] == "False"

        await until(says_why, PATIENCE, f"{name} to notice that its broker is gone")
    arguments += command_lines()
    seen += [
        await client.apps(),
        await client.app("shop"),
        await client.instances(),
        await client.instance("shop", "first"),
    ]
    logs = [b"".join([piece async for piece in client.logs("shop", name, tail=1000)]) for name in ("first", "second")]
    await client.stop("shop", "first", wait=PATIENCE)
    last = await client.last_event()
    async for event in client.events(0):
        seen.append(event)
        if event["id"] == last:
            break
    shown = [await branchctl(branch, "show", "shop:second", *form) for form in ((), ("-o", "json"))]

    assert "***" in json.dumps(seen) or "hidden" in json.dumps(seen)
    for place, text in {
        "a command line": arguments, "an answer or an event": json.dumps(seen), "the daemon's log": branch.log,
        "a worker's log": b"".join(logs).decode(), "branchctl show": "".join(shown),
    }.items():  # fmt: skip
        assert password not in text, place


def command_lines() -> str:
    """Of every process of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return "\n".join(found)


async def branchctl(branch: RunningBranch, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("branchctl"), "--url", f"unix:{branch.socket}", *arguments,
        env={name: value for name, value in os.environ.items() if not name.startswith("BRANCHD_")},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    assert b"shop" in output
    return output.decode()
