"""The tour: what branchd is for, done for real over its HTTP API, each claim checked as it is made."""

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from typing import Any

from branchd.cli.demo.asking import WORKER, Asking, shop
from branchd.cli.demo.daemon import Daemon
from branchd.cli.demo.processes import alive
from branchd.cli.demo.steps import Failed, Voice, until

#: the application's own program, run under its own interpreter: sends tasks and prints their results as JSON
SEND = """
import json, sys
import shop
queue, jobs = json.loads(sys.argv[1])
sent = [getattr(shop, name).apply_async(arguments, **({"queue": queue} if queue else {})) for name, arguments in jobs]
print(json.dumps([result.get(timeout=60) for result in sent]))
"""


class Tour:
    def __init__(self, daemon: Daemon, broker: str | None, voice: Voice) -> None:
        """`broker`: URL, or None for Celery's transport over files."""
        self._daemon = daemon
        self._client = daemon.client
        self._broker = broker
        self._asking = Asking(daemon.client, voice)
        self._voice = voice
        #: names of queues that nobody else on that broker uses
        self._queue = f"branchd-demo-{secrets.token_hex(4)}"
        self._bulk = f"{self._queue}-bulk"
        self._shop = shop(daemon.folder, self._queue, broker)

    async def run(self) -> None:
        await self._start()
        await self._create()
        await self._tasks()
        await self._consumer()
        await self._autoscale()
        await self._kill_worker()
        await self._crasher()
        await self._kill_daemon()

    async def _start(self) -> None:
        self._voice.step("Start a branch: one daemon, no server beside it")
        self._voice.did(f"branchd run --listen unix:{self._daemon.socket}")
        took = await self._daemon.start()
        branch = (await self._client.branches())["items"][0]
        self._voice.came({name: branch[name] for name in ("name", "state", "slots", "version")})
        self._voice.holds(branch["state"] == "up", f"it answers after {took * 1000:.0f} ms, pid {self._daemon.pid}")

    async def _create(self) -> None:
        self._voice.step("Create apps and instances by HTTP: two Celery workers, a plain program, one that crashes")
        await self._asking.put_app("shop", self._shop)
        await self._asking.put_app("tools", {"kind": "command", "env": {"GREETING": "hello"}})
        await self._asking.create("shop", {"name": "mail-1", "autoscale": {"min": 1, "max": 2}})
        await self._asking.create("shop", {"name": "mail-2", "pool": "threads", "concurrency": 4})
        await self._asking.create("tools", {"name": "clock", "command": [
            "/bin/sh", "-c", 'while :; do echo "$GREETING, it is $(date +%T)"; sleep 1; done']})  # fmt: skip
        await self._asking.create("tools", {
            "name": "crasher", "command": ["/bin/sh", "-c", "echo no disk today >&2; exit 3"],
            "restart": {"max_restarts": 3, "ceiling": 0.2}})  # fmt: skip
        for app, name in (("shop", "mail-1"), ("shop", "mail-2"), ("tools", "clock")):
            status = await self._asking.running(app, name)
            self._voice.came(f"{app}:{name}  {status['state']}  pid {status['pid']}")
        self._voice.holds(True, "both workers are connected to their broker and ready")

    async def _tasks(self) -> None:
        self._voice.step("Run 20 real tasks")
        self._voice.did("shop.add.delay(n, n) for n in range(20)")
        results = await self._send(None, [("add", [number, number]) for number in range(20)])
        self._voice.came(" ".join(map(str, results)))
        self._voice.holds(results == [2 * number for number in range(20)], "20 results, all right")

    async def _consumer(self) -> None:
        self._voice.step("Add a consumer at run time")
        await self._asking.put_queue("shop", self._bulk, {"exchange": self._bulk, "routing_key": "bulk"})
        self._voice.did(f"PUT /v1/apps/shop/instances/mail-1/queues/{self._bulk}")
        consumer = await self._client.add_consumer("shop", "mail-1", self._bulk)
        self._voice.came(consumer)
        self._voice.holds(consumer["consuming"], "the worker says that it consumes from it")
        self._voice.did(f"shop.nap.apply_async([0.1], queue={self._bulk!r})")
        results = await self._send(self._bulk, [("nap", [0.1])])
        self._voice.holds(results == ["slept 0.1 s"], f"a task of that queue is done: {results[0]}")

    async def _autoscale(self) -> None:
        self._voice.step("Change autoscale and see the pool follow")
        self._voice.did('PUT /v1/apps/shop/instances/mail-1/autoscale {"min": 3, "max": 4}')
        self._voice.came(await self._client.set_autoscale("shop", "mail-1", 3, 4))

        async def followed() -> Any:
            scale = await self._client.autoscale("shop", "mail-1")
            return scale if (scale["actual"] or 0) >= 3 else None

        scale = await until(followed, WORKER, "three processes in the pool")
        self._voice.holds(scale["actual"] >= 3, f"the pool has {scale['actual']} processes")

    async def _kill_worker(self) -> None:
        self._voice.step("kill -9 a worker")
        before = (await self._asking.status("shop", "mail-1"))["pid"]
        self._voice.did(f"kill -9 {before}")
        began = time.monotonic()
        os.kill(before, signal.SIGKILL)

        async def replaced() -> Any:
            status = await self._asking.status("shop", "mail-1")
            return status if status["pid"] not in (None, before) else None

        status = await until(replaced, 10, "a new process")
        self._voice.holds(
            True, f"its replacement, pid {status['pid']}, after {(time.monotonic() - began) * 1000:.0f} ms"
        )
        await self._asking.running("shop", "mail-1")
        self._voice.holds(True, f"ready again after {time.monotonic() - began:.1f} s; it ended: {status['last_exit']}")

        async def as_wanted() -> bool:
            queues = {
                item["queue"] for item in (await self._client.consumers("shop", "mail-1"))["items"] if item["consuming"]
            }
            return (
                queues == {self._queue, self._bulk} and (await self._client.autoscale("shop", "mail-1"))["actual"] >= 3
            )

        await until(as_wanted, WORKER, "its consumers and its pool to be as wanted")
        self._voice.holds(True, "its consumers and its autoscale are as wanted again")

    async def _crasher(self) -> None:
        self._voice.step("Look at the program that crashes on purpose")

        async def fatal() -> Any:
            status = await self._asking.status("tools", "crasher")
            return status if status["state"] == "FATAL" else None

        status = await until(fatal, 30, "the crasher to be given up")
        self._voice.came({name: status[name] for name in ("state", "reason", "last_exit")})
        words = b"".join([piece async for piece in self._client.logs("tools", "crasher", tail=1)])
        self._voice.came(words.decode())
        self._voice.holds(b"no disk today" in words, "it was tried four times, and its log says why it ended")

    async def _kill_daemon(self) -> None:
        self._voice.step("kill -9 the daemon")
        before = await self._asking.pids()
        self._voice.did(f"kill -9 {self._daemon.pid}")
        self._daemon.kill()
        self._voice.holds(all(map(alive, before.values())), f"all workers go on without it: {before}")
        results = await self._send(None, [("add", [20, 22])])
        self._voice.holds(results == [42], "and do their work: 20 + 22 = 42")
        self._voice.did("branchd run")
        took = await self._daemon.start()
        after = await self._asking.pids()
        self._voice.came(after)
        self._voice.holds(after == before, f"started again in {took * 1000:.0f} ms: the same pids, adopted")
        self._voice.holds(
            (await self._asking.status("tools", "crasher"))["state"] == "FATAL", "and the crasher is still FATAL"
        )
        await self._asking.running("shop", "mail-1")
        os.kill(after["tools:clock"], signal.SIGKILL)

        async def supervised() -> bool:
            return (await self._asking.pids()).get("tools:clock") not in (None, after["tools:clock"])

        await until(supervised, 10, "the adopted program to be started again")
        self._voice.holds(True, "and supervised again: the clock was killed, and runs")

    async def _send(self, queue: str | None, jobs: list[tuple[str, list[Any]]]) -> Any:
        env = {**os.environ, **self._shop["env"], **({"CELERY_BROKER_URL": self._broker} if self._broker else {})}
        sender = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SEND, json.dumps([queue, jobs]), cwd=self._daemon.folder, env=env,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            output, errors = await sender.communicate()
        finally:
            if sender.returncode is None:  # the tour was interrupted
                sender.kill()
                await sender.wait()
        if sender.returncode != 0:
            raise Failed(f"the tasks did not come back:\n{errors.decode(errors='replace')[-2000:]}")
        return json.loads(output)
