"""The tour of a neighbourhood: branches on this machine that share a broker, each claim checked as it is made."""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from branchd.adapters import keys
from branchd.cli.demo.asking import Asking, shop
from branchd.cli.demo.daemon import Daemon
from branchd.cli.demo.processes import alive
from branchd.cli.demo.steps import Failed, Voice, until

#: of the branches, in this order; they may be as many
NAMES = ("oak", "elm", "ash", "fir", "yew")

#: slots of the first branch, and how many each one has more than the one before it: few enough for all to get something
SLOTS, MORE = 4, 2

#: seconds for branches to find each other, or to find that one is gone, on a busy machine
PATIENCE = 60.0


def neighbours(folder: Path, count: int, broker: str | None) -> list[Daemon]:
    """Branches that are not started yet, with room for more the later they come. `broker`: URL, or None for files."""
    settings = {
        "BRANCHD_BROKER": broker or f"filesystem://{folder / 'mesh'}",
        "BRANCHD_NEIGHBOURHOOD": f"demo-{secrets.token_hex(4)}",
        "BRANCHD_KEY_FILE": str(folder / "key"),
        # Whoever starts the demo is the admin of all of them.
        "BRANCHD_PEER_SCOPE": "admin",
        # A machine that is short of something would refuse what the tour wants to see placed.
        "BRANCHD_GUARD_MEMORY": "0", "BRANCHD_GUARD_LOAD": "10000", "BRANCHD_GUARD_DISK": "0",
    }  # fmt: skip
    return [
        Daemon(folder / name, name, settings | {"BRANCHD_SLOTS": str(SLOTS + MORE * number)})
        for number, name in enumerate(NAMES[:count])
    ]


class Neighbourhood:
    def __init__(self, folder: Path, daemons: Sequence[Daemon], broker: str | None, voice: Voice) -> None:
        """`daemons`: as neighbours() made them for that folder and broker."""
        self._folder = folder
        self._daemons = daemons
        self._first, self._second, self._last = daemons[0], daemons[1], daemons[-1]
        self._broker = broker
        self._asking = Asking(self._first.client, voice)
        self._voice = voice
        #: the name of a queue that nobody else on that broker uses
        self._queue = f"branchd-demo-{secrets.token_hex(4)}"
        self._owners: dict[str, str] = {}  #: the branch of each instance, by "app:name"

    async def run(self) -> None:
        await self._start()
        await self._create()
        await self._read()
        await self._restart()
        await self._worker()
        pids = await self._kill()
        await self._return(pids)

    async def _start(self) -> None:
        self._voice.step(f"Start {len(self._daemons)} branches that share a broker and a key")
        self._voice.did(f"branchd key new {self._folder / 'key'}")
        self._voice.came(f"key {keys.new(self._folder / 'key').seals.id}")
        for daemon in self._daemons:
            self._voice.did(f"branchd run --name {daemon.name} --listen unix:{daemon.socket}")
        began = time.monotonic()
        await asyncio.gather(*(daemon.start() for daemon in self._daemons))
        await self._all_know_all()
        self._voice.came(await self._branchctl(self._first, "branch", "ls"))
        self._voice.holds(True, f"each has all of them in its roster after {time.monotonic() - began:.1f} s")

    async def _create(self) -> None:
        first, count = self._first.name, 2 * len(self._daemons)
        self._voice.step(f"Define apps once, create instances at {first}: each goes where most room is")
        await self._asking.put_app("shop", shop(self._folder, self._queue, self._broker))
        await self._asking.put_queue("shop", "bulk", {"exchange": f"{self._queue}-bulk"})
        await self._asking.put_app("tools", {"kind": "command", "command": [
            "/bin/sh", "-c", 'while :; do echo "hello, it is $(date +%T)"; sleep 1; done']})  # fmt: skip
        await self._place("shop", {"name": "mail", "pool": "solo"})
        for number in range(count):
            await self._place("tools", {"name": f"clock-{number + 1}"})
        took = set(self._owners.values())
        self._voice.holds(len(took) == len(self._daemons), f"all asked of {first}, and every branch has its share")

    async def _place(self, app: str, body: Mapping[str, Any]) -> None:
        """Creates it at the first branch; Failed where it lands on another than the emptiest."""
        before = (await self._first.client.branches(fresh=True))["items"]
        levels = {branch["name"]: (branch["reserved"] + 1) / branch["slots"] for branch in before}
        made = await self._asking.create(app, body)
        self._owners[f"{app}:{made['name']}"] = made["branch"]
        filled = "  ".join(f"{one['name']} {one['reserved']}/{one['slots']}" for one in before)
        self._voice.came(f"it was {filled}; {made['name']} is on {made['branch']}")
        if levels[made["branch"]] > min(levels.values()):
            raise Failed(f"{made['name']} is on {made['branch']}, which is not the emptiest")

    async def _read(self) -> None:
        self._voice.step(f"Ask {self._second.name} for what was created at {self._first.name}")
        self._voice.came(await self._branchctl(self._second, "ps"))
        await self._complete(self._second)
        self._voice.holds(True, "one branch answers for all: the list is complete, each instance with its branch")
        name = self._clock(other_than=self._second)
        self._voice.did(f"GET /v1/apps/tools/instances/{name}/logs?tail=1")

        async def written() -> bytes:
            return b"".join([piece async for piece in self._second.client.logs("tools", name, tail=1)])

        line = await until(written, PATIENCE, f"{name} to have written something")
        self._voice.came(line.decode())
        self._voice.holds(b"hello, it is" in line, f"the log of {name} comes from {self._owners[f'tools:{name}']}")

    async def _restart(self) -> None:
        name = self._clock(other_than=self._first)
        owner = self._owners[f"tools:{name}"]
        self._voice.step(f"Restart, at {self._first.name}, an instance of {owner}")
        before = await self._asking.running("tools", name)
        self._voice.did(f"POST /v1/apps/tools/instances/{name}/actions/restart")
        await self._first.client.restart("tools", name, wait=PATIENCE)
        after = await self._asking.running("tools", name)
        self._voice.holds(after["pid"] != before["pid"], f"pid {before['pid']} is now {after['pid']}, still on {owner}")

    async def _worker(self) -> None:
        owner = self._owners["shop:mail"]
        self._voice.step(f"Give, at {self._first.name}, the Celery worker of {owner} one more queue to consume from")
        status = await self._asking.running("shop", "mail")
        self._voice.came(f"shop:mail  {status['state']}  pid {status['pid']}")
        self._voice.did("PUT /v1/apps/shop/instances/mail/queues/bulk")
        consumer = await self._first.client.add_consumer("shop", "mail", "bulk")
        self._voice.came(consumer)
        self._voice.holds(consumer["consuming"], "the worker says that it consumes from it")

    async def _kill(self) -> dict[str, int]:
        """The pids of all that run, by "app:name"."""
        dead, asked = self._last, self._first
        self._voice.step(f"kill -9 the daemon of {dead.name}")
        pids = await self._asking.pids()
        workers = {name: pid for name, pid in pids.items() if self._owners[name] == dead.name}
        self._voice.did(f"kill -9 {dead.pid}")
        dead.kill()
        began = time.monotonic()
        self._voice.holds(workers and all(map(alive, workers.values())), f"its instances go on without it: {workers}")
        self._voice.did(f"GET /v1/instances, at {asked.name}")
        answer = await asked.client.instances()
        self._voice.came({"items": len(answer["items"]), **{name: answer[name] for name in ("partial", "unreachable")}})
        self._voice.holds(
            answer["partial"] and answer["unreachable"] == [dead.name] and _owners(answer) == self._without(dead),
            f"the list is what the others have, and says that {dead.name} is missing",
        )

        async def gone() -> bool:
            return all([await self._states(daemon, dead.name) != {dead.name: "up"} for daemon in self._daemons[:-1]])

        await until(gone, PATIENCE, f"the others to find that {dead.name} is gone")
        took = time.monotonic() - began
        self._voice.came(await self._branchctl(asked, "branch", "ls"))
        self._voice.holds(True, f"{took:.1f} s after it was killed no roster has it as up any more")
        return pids

    async def _return(self, pids: Mapping[str, int]) -> None:
        back = self._last
        self._voice.step(f"Start {back.name} again")
        self._voice.did(f"branchd run --name {back.name}")
        took = await back.start()
        await self._all_know_all()
        self._voice.holds(True, f"it answers after {took * 1000:.0f} ms, and is in every roster again")
        await self._complete(self._first)
        self._voice.holds(await self._asking.pids() == pids, "every pid is as it was: what ran was adopted")
        self._voice.came(await self._branchctl(self._first, "ps"))
        self._voice.holds(True, f"and {self._first.name} answers for all of them")

    # What it looks at

    async def _all_know_all(self) -> None:
        everybody = {daemon.name: "up" for daemon in self._daemons}

        async def known() -> bool:
            return all([await self._states(daemon) == everybody for daemon in self._daemons])

        await until(known, PATIENCE, "all branches to know each other")

    async def _states(self, daemon: Daemon, *names: str) -> dict[str, str]:
        """What it believes of all branches, or of those."""
        known = (await daemon.client.branches())["items"]
        return {branch["name"]: branch["state"] for branch in known if not names or branch["name"] in names}

    async def _complete(self, daemon: Daemon) -> None:
        """Returns once its list has the parts of all branches; Failed where an instance is missing then."""

        async def whole() -> Any:
            answer = await daemon.client.instances()
            return None if answer["partial"] else answer

        answer = await until(whole, PATIENCE, "a complete list")
        if _owners(answer) != self._owners:
            raise Failed(f"the list has {_owners(answer)}, not {self._owners}")

    def _without(self, daemon: Daemon) -> dict[str, str]:
        return {name: branch for name, branch in self._owners.items() if branch != daemon.name}

    def _clock(self, *, other_than: Daemon) -> str:
        """The name of one that another branch has."""
        return next(name.removeprefix("tools:") for name in self._without(other_than) if name.startswith("tools:"))

    async def _branchctl(self, daemon: Daemon, *words: str) -> str:
        """What it prints."""
        self._voice.did(f"branchctl --url unix:{daemon.socket} {' '.join(words)}")
        command = [sys.executable, "-m", "branchd.cli.control", "--url", f"unix:{daemon.socket}", *words]
        env = {name: value for name, value in os.environ.items() if not name.startswith("BRANCHD_")}
        asking = await asyncio.create_subprocess_exec(
            *command, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output = (await asking.communicate())[0].decode(errors="replace")
        if asking.returncode != 0:
            raise Failed(f"branchctl {' '.join(words)} ended with {asking.returncode}: {output}")
        return output


def _owners(answer: Any) -> dict[str, str]:
    """The branch of each instance of a list, by "app:name"."""
    return {f"{item['app']}:{item['name']}": item["branch"] for item in answer["items"]}
