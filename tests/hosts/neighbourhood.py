"""Branches on hosts of a network, and what must hold of them, judged from outside: by what every one of them tells
over its API, and by the processes that run.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from branchd.client import ApiProblem, Unreachable
from tests.e2e.branch import RunningBranch
from tests.e2e.programs import Programs
from tests.hosts.network import Host, Network
from tests.rabbitmq import RabbitMQ
from tests.waiting import until

Object = dict[str, Any]

#: the app of whatever the tests create, unless they say otherwise
APP = "shop"

#: seconds for all to agree again: the design gives 60 s of quiet, and the time of asking again for names (4-mesh.md)
AGREEMENT = 90

#: how many times the design's goal a machine may take that has other work too; what it took is printed
SLACK = 3.0


class HostBranch(RunningBranch):
    def __init__(
        self, name: str, host: Host, slots: int, folder: Path, *arguments: str, env: Mapping[str, str]
    ) -> None:
        folder.mkdir()
        super().__init__(folder, "--name", name, *arguments, env={**env, "BRANCHD_SLOTS": str(slots)})
        self.name = name
        self.host = host
        self.slots = slots

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def command(self, *arguments: str) -> list[str]:
        return [*self.host.within, *super().command(*arguments)]

    def kill(self) -> None:
        """As a power cut would; nothing when it does not run."""
        if self.runs:
            super().kill()

    async def roster(self) -> dict[str, str]:
        """The state of each branch that it knows, itself included, by name."""
        return {branch["name"]: branch["state"] for branch in (await self.client.branches())["items"]}


@dataclass(frozen=True, slots=True)
class Live:
    """An instance that was accepted, and is to run in this process for as long as nobody asks otherwise."""

    branch: str
    mark: str  #: by which Programs knows its process
    pid: int


class Neighbourhood:
    """Create and delete through this: it remembers what was accepted, and check() holds the branches to it."""

    def __init__(
        self, network: Network, broker: RabbitMQ, branches: Collection[HostBranch], programs: Programs
    ) -> None:
        self.network = network
        self.broker = broker
        self.branches = {branch.name: branch for branch in branches}
        self.programs = programs
        self.live: dict[str, Live] = {}
        self.apps: dict[str, Object] = {}
        self._marks = 0

    def __getitem__(self, name: str) -> HostBranch:
        return self.branches[name]

    async def start(self, seconds: float = AGREEMENT) -> "Neighbourhood":
        """All are up and know each other."""
        await asyncio.gather(*(branch.start() for branch in self.branches.values()))
        await self.check(seconds=seconds)
        return self

    async def put_app(self, via: HostBranch, app: str = APP, **spec: Any) -> None:
        """And waits till all branches have it."""
        await self.define(via, app, **spec)
        await self.check()

    async def define(self, via: HostBranch, app: str = APP, **spec: Any) -> None:
        self.apps[app] = {"kind": "command", **spec}
        await via.client.put_app(app, self.apps[app])

    async def create(self, via: HostBranch, name: str | None = None, **spec: Any) -> Object:
        """The instance, with its process. ApiProblem."""
        mark = f"{name or 'unnamed'}-{self._marks}"
        self._marks += 1
        body = {**({} if name is None else {"name": name}), "command": self.programs.waiting(mark), **spec}
        made = await via.client.create_instance(APP, body, wait=30)
        assert made["status"]["state"] == "RUNNING", made["status"]
        self.live[made["name"]] = Live(made["branch"], mark, self.programs.only(mark))
        return made

    async def delete(self, via: HostBranch, name: str) -> None:
        assert await via.client.delete_instance(APP, name, wait=30)
        del self.live[name]

    def runs_again(self, name: str, before: Live) -> None:
        """It was stopped, and has another process now."""
        self.live[name] = replace(before, pid=self.programs.only(before.mark))

    def on(self, branch: HostBranch) -> list[str]:
        """The names of the instances that were accepted there."""
        return [name for name, live in self.live.items() if live.branch == branch.name]

    async def check(self, seconds: float = AGREEMENT) -> None:
        """The invariants of the design (4-mesh.md), within so many seconds, as the branches that run tell it.

        Without waiting: everything accepted runs in the process that it had, and nothing else does. After it: each
        branch tells of all of these once and of no other, where they are and with their pids; of no branch more than
        its slots; of the same branches, all up; of the apps as they were written last.
        """
        assert not (wrong := self.processes()), wrong
        try:
            await until(self.agree, seconds)
        except AssertionError:
            logs = "\n".join(f"--- {branch.name}\n{branch.log[-3000:]}" for branch in self._running())
            raise AssertionError(f"not within {seconds} s: {await self._differences()}\n{logs}") from None
        assert not (wrong := self.processes()), wrong

    async def agree(self) -> bool:
        """Whether they tell so now."""
        return not await self._differences()

    async def _differences(self) -> list[str]:
        return [wrong for found in await asyncio.gather(*map(self._differs, self._running())) for wrong in found]

    def _running(self) -> list[HostBranch]:
        return [branch for branch in self.branches.values() if branch.runs]

    def processes(self) -> list[str]:
        """What runs otherwise than it was accepted, in words."""
        running = self.programs.running()
        wanted = {live.mark: [live.pid] for live in self.live.values()}
        return [
            f"{mark} runs as {running.get(mark)}, not as {wanted.get(mark)}"
            for mark in running.keys() | wanted.keys()
            if running.get(mark) != wanted.get(mark)
        ]

    async def _differs(self, branch: HostBranch) -> list[str]:
        """How what it tells differs from what is, in words."""
        client = branch.client
        try:
            instances, roster, apps = await asyncio.gather(client.instances(), client.branches(), client.apps())
        except (ApiProblem, Unreachable) as error:
            return [f"{branch.name}: {error}"]
        faults = []
        told = sorted(
            (item["name"], item["branch"], item["status"]["pid"]) for item in instances["items"] if item["app"] == APP
        )
        wanted = sorted((name, live.branch, live.pid) for name, live in self.live.items())
        if told != wanted:
            faults.append(f"instances {_difference(told, wanted)}")
        if instances["partial"] or instances["unreachable"]:
            faults.append(f"no answer from {instances['unreachable']}")
        states = {item["name"]: item["state"] for item in roster["items"]}
        if states != (up := {other.name: "up" for other in self._running()}):
            faults.append(f"branches {_difference(sorted(states.items()), sorted(up.items()))}")
        placed = Counter(item["branch"] for item in instances["items"] if item["placement"] == "placed")
        faults += [f"{name} has {placed[name]} placed" for name, it in self.branches.items() if placed[name] > it.slots]
        if (defined := {item["name"]: _given(item["spec"]) for item in apps["items"]}) != self.apps:
            faults.append(f"apps {defined}, not {self.apps}")
        return [f"{branch.name}: {fault}" for fault in faults]

    def close(self) -> None:
        """Whatever was done to it, the next test finds hosts and a broker that work."""
        for branch in self.branches.values():
            branch.kill()
            self.network.heal(branch.host)
        self.programs.end()
        if not self.broker.runs:
            self.broker.start()


Measured = Callable[[str, float, float], None]


async def timed(what: str, goal: float, condition: Callable[[], Awaitable[bool]], measured: Measured) -> None:
    """Waits for the condition, for SLACK times the goal; what it took is told at the end of the tests."""
    began = time.monotonic()
    await until(condition, goal * SLACK, what)
    measured(what, time.monotonic() - began, goal)


def _difference(told: list[Any], wanted: list[Any]) -> str:
    less, more = Counter(wanted) - Counter(told), Counter(told) - Counter(wanted)
    return f"lacking {sorted(less.elements())}, beyond {sorted(more.elements())}"


def _given(spec: Mapping[str, Any]) -> Object:
    return {name: value for name, value in spec.items() if value is not None}
