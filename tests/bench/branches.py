"""A process of `make bench` with several branches of one neighbourhood; the harness stands in mesh.py.

A branch here is the daemon's own, with the bus, the seal, the store and the logs that it has in production; only its
programs are fakes, so that none is started, and there is no HTTP before it. A bare one does nothing but to probe and to
offer, in plain messages over the same bus: no seal, no store, no names, nothing that is checked.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from branchd.adapters.bus import open_bus
from branchd.adapters.host import LocalHost
from branchd.adapters.logs import FileLogs
from branchd.adapters.precheck import Accounts
from branchd.adapters.store import SqliteStore
from branchd.branch.mesh.mesh import Membership
from branchd.branch.own_log import OwnLog
from branchd.branch.service import Service
from branchd.branch.world import Policies, World
from branchd.cli.config import LogLevel
from branchd.cli.logging import configure_logging
from branchd.core.access import Principal, Scope
from branchd.core.admission import Guards
from branchd.core.brokers import parse
from branchd.core.errors import BranchdError
from branchd.core.peers import Address, inbox
from branchd.core.placement import DRAWN
from branchd.core.spec import Kind
from branchd.drivers.command import CommandDriver
from branchd.wire.sealing import KEY_SIZE, KeyRing, NeighbourhoodKey, NeighbourhoodSeal
from tests.fakes.channel import FakeChannel
from tests.fakes.hooks import FakeTeller
from tests.fakes.probes import FakeProber
from tests.fakes.process import FakeProcesses
from tests.simulation.door import SimulatedDoor
from tests.waiting import until

APP = "bench"

#: the fakes' programs know no other end than KILL
DEFINITION = {"kind": "command", "command": ["serve"], "stop": [{"signal": "KILL", "patience": 1}]}

#: no branch is ever full, whatever the machine does besides
SLOTS = 100_000
NO_GUARDS = Guards(memory_available=0.0, load_per_core=float("inf"), disk_free=0.0)

#: seconds for all branches to know each other
JOINED_WITHIN = 120.0

OPERATOR = Principal("operator", Scope.ADMIN)


class Branch(Protocol):
    async def begin(self) -> None: ...

    @property
    def joined(self) -> bool:
        """Whether it knows all that it should."""

    async def create(self, *names: str | None) -> None:
        """One instance for each, in one request; None: it is given a name. RuntimeError where one is not made."""


class Complete:
    def __init__(self, number: int, count: int, broker: str, neighbourhood: str, folder: Path) -> None:
        self._first, self._count = number == 0, count
        home = folder / f"branch-{number}"
        home.mkdir()
        self._store = SqliteStore(home)
        snapshot = self._store.load()
        world = World(
            processes=FakeProcesses(),
            logs=FileLogs(home / "logs"),
            store=self._store,
            channel=FakeChannel(),
            host=LocalHost(home, Accounts()),
            prober=FakeProber(),
            teller=FakeTeller(),
            drivers={Kind.COMMAND: CommandDriver()},
            clock=lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
            wall=time.time,
            chance=random.random,
        )
        policies = Policies(
            f"branch-{number}", {}, SLOTS, "{app}:{name}@{branch}", None, None, Scope.ADMIN, guards=NO_GUARDS
        )
        me = Address(snapshot.branch_id, os.urandom(16).hex())
        key = NeighbourhoodKey(neighbourhood.encode().ljust(KEY_SIZE, b"-")[:KEY_SIZE])
        seal = NeighbourhoodSeal(KeyRing((key,)), neighbourhood, me, time.time)
        bus = open_bus(parse(broker), neighbourhood, me.id)
        membership = Membership(bus, seal, me, SimulatedDoor(), "guest", "/")
        self._service = Service(world, policies, snapshot, "", "0.0.0", membership)
        assert self._service.mesh is not None
        self._mesh = self._service.mesh

    async def begin(self) -> None:
        await self._service.begin()
        if self._first:
            await self._service.apps.put(APP, DEFINITION)

    @property
    def joined(self) -> bool:
        apps = [app.name for app in self._service.apps.list()]
        return self._mesh.presence.joined and len(self._mesh.others()) == self._count - 1 and APP in apps

    async def create(self, *names: str | None) -> None:
        name = names[0]
        body = {} if name is None else {"name": name}
        for made in await self._mesh.create(OPERATOR, APP, body, [None] * len(names)):
            if isinstance(made, BranchdError):
                raise RuntimeError(made.detail)


class Bare:
    def __init__(self, number: int, count: int, broker: str, neighbourhood: str, _: Path) -> None:
        self._id = _bare_id(number)
        self._others = [_bare_id(other) for other in range(count) if other != number]
        self._bus = open_bus(parse(broker), neighbourhood, self._id)
        self._reserved = 0
        self._questions = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        await self._bus.open(self._take, lambda _: None)

    @property
    def joined(self) -> bool:
        return self._bus.state.connected

    async def create(self, *names: str | None) -> None:
        await asyncio.gather(*(self._place() for _ in names))

    async def _place(self) -> None:
        asked = random.sample(self._others, DRAWN)
        rooms = await asyncio.gather(*(self._ask(one, {"kind": "probe", "app": APP}) for one in asked))
        _, target = min(zip((room["reserved"] for room in rooms), asked, strict=True))
        await self._ask(target, {"kind": "offer", "app": APP, "name": os.urandom(6).hex(), "spec": {}})

    async def _ask(self, to: str, question: dict[str, Any]) -> Any:
        number = next(self._questions)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        await self._send(to, {"from": self._id, "ask": number, **question})
        return await answer

    async def _send(self, to: str, message: dict[str, Any]) -> None:
        if not await self._bus.send(inbox(to), json.dumps(message).encode()):
            raise RuntimeError(f"{to} is not there")

    def _take(self, _: str, body: bytes | None) -> None:
        assert body is not None  # none of ours is so long
        message = json.loads(body)
        if "to" in message:
            self._waiting.pop(message["to"]).set_result(message)
            return
        self._reserved += message["kind"] == "offer"
        answer = {"to": message["ask"], "slots": SLOTS, "reserved": self._reserved}
        task = asyncio.get_running_loop().create_task(self._send(message["from"], answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


KINDS: dict[str, Callable[[int, int, str, str, Path], Branch]] = {"complete": Complete, "bare": Bare}


def _bare_id(number: int) -> str:
    return f"{number:032x}"


class Runner:
    """Does what the harness asks for with the branches of this process."""

    def __init__(self, branches: Sequence[Branch]) -> None:
        self._branches = branches

    async def busy(self, seconds: float, at_once: int) -> dict[str, float]:
        """So many creates at any time, through all branches in turn: how many were made, and their CPU seconds."""
        loop = asyncio.get_running_loop()
        end, cpu = loop.time() + seconds, _cpu_seconds()
        turn = itertools.cycle(self._branches)

        async def customer() -> int:
            made = 0
            while loop.time() < end:
                await next(turn).create(None)
                made += 1
            return made

        made = sum(await asyncio.gather(*(customer() for _ in range(at_once))))
        return {"made": made, "cpu": _cpu_seconds() - cpu}

    async def idle(self, seconds: float) -> dict[str, float]:
        """Nothing; the CPU seconds of that."""
        cpu = _cpu_seconds()
        await asyncio.sleep(seconds)
        return {"cpu": _cpu_seconds() - cpu}

    async def single(self, times: int, named: bool) -> dict[str, list[float]]:
        """One after the other through one branch: the milliseconds of each."""
        took = []
        for number in range(times):
            began = time.perf_counter()
            await self._branches[0].create(f"named-{number}" if named else None)
            took.append(1000 * (time.perf_counter() - began))
        return {"took": took}

    async def together(self, count: int) -> dict[str, float]:
        """All in one request through one branch: the seconds that it took."""
        began = time.perf_counter()
        await self._branches[0].create(*[None] * count)
        return {"took": time.perf_counter() - began}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def serve(arguments: argparse.Namespace) -> None:
    """Says when its branches know all the others, then answers each line on stdin with one on stdout."""
    make = KINDS[arguments.kind]
    numbers = range(arguments.first, arguments.count, arguments.step)
    branches = [
        make(number, arguments.count, arguments.broker, arguments.neighbourhood, arguments.folder) for number in numbers
    ]
    for branch in branches:
        await branch.begin()
    await until(lambda: all(branch.joined for branch in branches), JOINED_WITHIN, "all branches know each other")
    runner = Runner(branches)
    _say({})
    while line := await asyncio.to_thread(sys.stdin.readline):
        what, options = json.loads(line)
        work: Coroutine[Any, Any, dict[str, Any]] = getattr(runner, what)(**options)
        _say(await work)


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("broker")
    parser.add_argument("neighbourhood")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, help="branches of the neighbourhood")
    parser.add_argument("--first", type=int, help="number of this process's first branch")
    parser.add_argument("--step", type=int, help="from one of its branches to its next: the number of processes")
    configure_logging(LogLevel.INFO, OwnLog())
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
