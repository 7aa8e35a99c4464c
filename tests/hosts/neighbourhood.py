"""Branches on hosts of a network, and what must hold of them, judged from outside: by what every one of them tells
over its API, and by the processes that run.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
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

#: seconds that it may take in any case: a machine may pause for some
PAUSES = 30.0


class HostBranch(RunningBranch):
    def __init__(self, name: str, host: Host, slots: int, folder: Path, env: Mapping[str, str], *mesh: str) -> None:
        """`mesh`: the arguments that make it one of a neighbourhood."""
        folder.mkdir()
        super().__init__(folder, "--name", name, env={**env, "BRANCHD_SLOTS": str(slots)})
        self.name = name
        self.host = host
        self.slots = slots
        self.mesh = mesh

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def command(self, *arguments: str) -> list[str]:
        return [*self.host.within, *super().command(*self.mesh, *arguments)]

    def kill(self) -> None:
        """As a power cut would; nothing when it does not run."""
        if self.runs:
            super().kill()

    async def roster(self) -> dict[str, str]:
        """The state of each branch that it knows, itself included, by name."""
        return {branch["name"]: branch["state"] for branch in (await self.client.branches())["items"]}


@dataclass(frozen=True, slots=True)
class Live:
    """An instance that was accepted, and is to run in one and the same process for as long as nobody asks otherwise."""

    branch: str
    mark: str  #: by which Programs knows its process
    pid: int | None = None  #: None: not seen yet


class Neighbourhood:
    """Create, delete and define through this: it remembers what was confirmed, and check() holds the branches to it."""

    def __init__(
        self, network: Network, broker: RabbitMQ, branches: Collection[HostBranch], programs: Programs
    ) -> None:
        self.network = network
        self.broker = broker
        self.branches = {branch.name: branch for branch in branches}
        self.programs = programs
        self.live: dict[str, Live] = {}
        self.apps: dict[str, Object] = {}
        self._unsure: set[str] = set()  # marks of what may have been made or deleted: no answer came, or an unsure one
        self._unsure_apps: set[str] = set()
        self._marks = 0

    def __getitem__(self, name: str) -> HostBranch:
        return self.branches[name]

    async def start(self) -> "Neighbourhood":
        """All are up and know each other."""
        await asyncio.gather(*(branch.start() for branch in self.branches.values()))
        await self.check()
        return self

    # What is asked of it. ApiProblem, Unreachable.

    async def put_app(self, via: HostBranch, app: str = APP, **spec: Any) -> None:
        """And waits till all branches have it."""
        await self.define(via, app, **spec)
        await self.check()

    async def define(self, via: HostBranch, app: str = APP, **spec: Any) -> None:
        self.apps[app] = {"kind": "command", **spec}
        self._unsure_apps.add(app)
        await via.client.put_app(app, self.apps[app])
        self._unsure_apps.remove(app)

    async def create(self, via: HostBranch, name: str | None = None, **spec: Any) -> Object:
        """The instance, whose process runs."""
        made = await self.ask_for(via, name, **spec)
        await until(lambda: self._seen(made["name"]), 30, f"the process of {made['name']}")
        return made

    async def ask_for(self, via: HostBranch, name: str | None = None, **spec: Any) -> Object:
        """The same without waiting for its process."""
        mark = f"{name or 'unnamed'}-{self._marks}"
        self._marks += 1
        body = {**({} if name is None else {"name": name}), "command": self.programs.waiting(mark), **spec}
        self._unsure.add(mark)
        try:
            made = await via.client.create_instance(APP, body)
        except ApiProblem as problem:
            if problem.status in {409, 503}:  # it was not made, for sure
                self._unsure.remove(mark)
            raise
        self._unsure.remove(mark)
        assert made["name"] not in self.live, "two were told that they made it"
        self.live[made["name"]] = Live(made["branch"], mark)
        return made

    async def delete(self, via: HostBranch, name: str) -> None:
        live = self.live.pop(name)
        self._unsure.add(live.mark)
        await via.client.delete_instance(APP, name, wait=30)
        self._unsure.remove(live.mark)

    def runs_again(self, name: str, before: Live) -> None:
        """It was stopped, and has another process now."""
        self.live[name] = replace(before, pid=self.programs.only(before.mark))

    def on(self, branch: HostBranch) -> list[str]:
        """The names of the instances that were accepted there."""
        return [name for name, live in self.live.items() if live.branch == branch.name]

    # What must hold

    async def check(self, seconds: float = AGREEMENT) -> None:
        """The invariants of the design (4-mesh.md), within so many seconds, as the branches that run tell it.

        Everything accepted runs in the process that it had, and nothing else does. Each branch tells of all of these
        once and of no other, where they are and with their pids; of no branch more than its slots; of the same
        branches, all up; of the apps as they were written last. Of what nobody was sure they tell all the same.
        """
        try:
            await until(self.agree, seconds)
        except AssertionError:
            wrong = "\n".join(self.processes() + await self._disagreements())
            logs = "\n".join(f"--- {branch.name}\n{branch.log[-3000:]}" for branch in self._running())
            raise AssertionError(f"not within {seconds} s:\n{wrong}\n{logs}") from None
        self._unsure_apps.clear()

    async def agree(self) -> bool:
        """Whether it holds now."""
        return not self.processes() and not await self._disagreements()

    def processes(self) -> list[str]:
        """What runs otherwise than it was accepted, in words."""
        running = self.programs.running()
        for name in self.live:
            self._seen(name, running)
        wanted = {live.mark: [live.pid] for live in self.live.values()}
        return [
            f"{mark} runs as {running.get(mark)}, not as {wanted.get(mark)}"
            for mark in running.keys() | wanted.keys()
            if running.get(mark) != wanted.get(mark) and mark not in self._unsure
        ]

    def _seen(self, name: str, running: Mapping[str, list[int]] | None = None) -> bool:
        """Whether its process is known; it is what is found first."""
        live = self.live[name]
        pids = (self.programs.running() if running is None else running).get(live.mark, ())
        if live.pid is None and len(pids) == 1:
            self.live[name] = live = replace(live, pid=pids[0])
        return live.pid is not None

    def _running(self) -> list[HostBranch]:
        return [branch for branch in self.branches.values() if branch.runs]

    async def _disagreements(self) -> list[str]:
        """How what they tell differs from what was confirmed, or from what the others tell, in words."""
        try:
            told = [await _Told.by(branch) for branch in self._running()]
        except (ApiProblem, Unreachable) as error:
            return [f"one does not tell: {error}"]
        up = {branch.name: "up" for branch in self._running()}
        faults = [f"{one.branch}: {fault}" for one in told for fault in self._faults(one, up)]
        faults += [
            f"{one.branch} and {told[0].branch} tell differently: {one}, {told[0]}"
            for one in told[1:]
            if one.instances != told[0].instances or one.apps != told[0].apps
        ]
        return faults or self._decided(told[0])

    def _faults(self, told: "_Told", up: Mapping[str, str]) -> list[str]:
        faults = [f"no answer from {branch}" for branch in told.unreachable]
        faults += [f"{name} still stops, to be deleted" for name in told.deleting]
        sure = Counter({each: many for each, many in told.instances.items() if each.mark not in self._unsure})
        wanted = Counter(_Item(name, live.branch, live.mark, live.pid) for name, live in self.live.items())
        faults += [f"lacks {item}" for item in wanted - sure] + [f"beyond that has {item}" for item in sure - wanted]
        if told.roster != up:
            faults.append(f"knows {told.roster}, not {up}")
        many = Counter(item.branch for item in told.instances.elements())
        faults += [f"{name} has {many[name]}" for name, branch in self.branches.items() if many[name] > branch.slots]
        for app in told.apps.keys() | self.apps.keys():
            if app not in self._unsure_apps and told.apps.get(app) != self.apps.get(app):
                faults.append(f"app {app} is {told.apps.get(app)}, not {self.apps.get(app)}")
        return faults

    def _decided(self, told: "_Told") -> list[str]:
        """All tell the same: so it is clear what became of what nobody was sure of."""
        running = self.programs.running()
        unsure = [item for item in told.instances.elements() if item.mark in self._unsure]
        faults = [f"{item} runs as {running.get(item.mark)}" for item in unsure if running.get(item.mark) != [item.pid]]
        there = {item.mark for item in unsure}
        faults += [f"{mark} runs, and nobody tells of it" for mark in (self._unsure & running.keys()) - there]
        if not faults:
            self._unsure.clear()
            self.live |= {item.name: Live(item.branch, item.mark, item.pid) for item in unsure}
            self.apps = dict(told.apps)
        return faults

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
    """Waits for the condition, for SLACK times the goal or for PAUSES; what it took is told at the end of the tests."""
    began = time.monotonic()
    await until(condition, max(goal * SLACK, PAUSES), what)
    measured(what, time.monotonic() - began, goal)


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    branch: str
    mark: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class _Told:
    """What one branch tells of all of them."""

    branch: str
    instances: Counter[_Item]
    deleting: Sequence[str]
    unreachable: Sequence[str]
    roster: Mapping[str, str]
    apps: Mapping[str, Object]

    @classmethod
    async def by(cls, branch: HostBranch) -> "_Told":
        client = branch.client
        instances, roster, apps = await asyncio.gather(client.instances(), branch.roster(), client.apps())
        items = [
            _Item(item["name"], item["branch"], _mark(item["effective"]["command"]), item["status"]["pid"])
            for item in instances["items"]
        ]
        deleting = [item["name"] for item in instances["items"] if item["status"]["deleting"]]
        given = {app["name"]: _given(app["spec"]) for app in apps["items"]}
        return cls(branch.name, Counter(items), deleting, instances["unreachable"], roster, given)


def _given(spec: Mapping[str, Any]) -> Object:
    return {name: value for name, value in spec.items() if value is not None}


def _mark(command: Sequence[str]) -> str:
    """Of a command that Programs made."""
    return command[3].partition(":")[2]
