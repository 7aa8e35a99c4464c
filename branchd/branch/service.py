"""The branch: its life from adoption to the last stop plan, and the way to its use cases."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from branchd.branch.adoption import resume
from branchd.branch.apps import Apps, Queues
from branchd.branch.celery import Celery
from branchd.branch.ending import Endings
from branchd.branch.events import KEPT, EventLog
from branchd.branch.file_definitions import Read
from branchd.branch.files import Files, nothing
from branchd.branch.fleet import Fleet
from branchd.branch.hooks import HookRunner
from branchd.branch.instances import Instances
from branchd.branch.journal import Journal
from branchd.branch.operations import Operations
from branchd.branch.order import ended
from branchd.branch.outcomes import KEPT as OUTCOMES_KEPT
from branchd.branch.ports import LogFiles
from branchd.branch.records import REQUEST, Expire, Snapshot
from branchd.branch.replicas import OwnReplicas
from branchd.branch.rolling import Rolling
from branchd.branch.tokens import Tokens
from branchd.branch.world import Policies, World
from branchd.core.access import Principal
from branchd.core.capacity import capacity
from branchd.core.diagnosis import Diagnosis, Level, definition_files, root_without_default_user
from branchd.core.diagnosis import mesh as diagnose
from branchd.core.errors import SpawnFailed, StorageFailed, Unavailable
from branchd.core.machine import MachineFacts, machine
from branchd.core.peers import BranchState
from branchd.wire.agent import Heartbeat
from branchd.wire.resources import Branch, Stats, timestamp

if TYPE_CHECKING:
    from branchd.branch.mesh.mesh import Membership, Mesh

log = structlog.get_logger(__name__)

#: seconds between two clean-ups of old outcomes and events
EXPIRE_EVERY = 600.0
#: seconds that a change waits for the branch to have begun; adopting takes a few of them at most
BEGUN_WITHIN = 30.0

#: seconds that letting go waits for what is begun: meanwhile nobody answers at the API
LET_GO_WITHIN = 3.0


class Service:
    def __init__(
        self,
        world: World,
        policies: Policies,
        snapshot: Snapshot,
        admin_token: str,
        version: str,
        membership: "Membership | None" = None,
        read_files: Read = nothing,
        endings: Endings | None = None,
    ) -> None:
        """`membership`: None for a branch that is alone. `read_files`: the definitions in files.

        `endings`: where it may have been asked to end already.
        """
        self._world = world
        self._policies = policies
        self._version = version
        self.id = snapshot.branch_id
        self.name = policies.name
        self.addresses: tuple[str, ...] = ()  #: of its API
        self.events = EventLog(world.store, snapshot.last_event)
        self._journal = Journal(world.store, self.events, world.wall)
        self._fleet = Fleet(world, policies, snapshot, self._journal)
        self.operations = Operations(policies.name, world.wall)
        self.mesh = None if membership is None else self._mesh(membership, snapshot.facts)
        if self.mesh is None:
            self.apps, self.queues = Apps(self._fleet), Queues(self._fleet)
        else:
            self.apps = Apps(self._fleet, self.mesh.sharing, self.mesh.instances_elsewhere)
            self.queues = Queues(self._fleet, self.mesh.sharing)
        self.instances = Instances(self._fleet)
        self.rolling = Rolling(self._fleet, self.operations)
        self._replicas = OwnReplicas(self._fleet)
        self.files = Files(self._fleet, policies, read_files)
        self.celery = Celery(self._fleet, self.instances)
        self.tokens = Tokens(world.store, snapshot.tokens, world.wall, admin_token)
        self.logs: LogFiles = world.logs
        self.endings = endings or Endings()
        self._hooks = HookRunner(world.teller, self.events, self._journal, self._fleet.find)
        self._started_at = timestamp(world.wall())
        self._timer: asyncio.TimerHandle | None = None
        self._begun = asyncio.Event()
        self._why_not_ready = "starting: looking for what an earlier daemon left"

    async def begin(self) -> None:
        """Adopts what runs, and begins what is wanted, in its order. Waits for no program that is slow to start."""
        self._world.channel.listen(self._heard, self._hung_up)
        self._hooks.begin()
        await self.files.settle()
        mesh = self.mesh
        await resume(self._fleet, lambda supervisor: mesh is not None and mesh.draining.holds(supervisor))
        started = ("branch.started", None, None, {"version": self._version})
        try:
            await self._journal.begin(events=[started])
        except StorageFailed as failure:  # a full disk is no reason to leave alone what runs
            log.error("not saved", reason=failure.detail)
        if self.mesh is not None:
            await self.mesh.begin()
        self._why_not_ready = ""
        self._begun.set()
        self.files.begin()
        self._replicas.begin()
        self._expire()

    def _mesh(self, membership: "Membership", facts: Mapping[str, str]) -> "Mesh":
        from branchd.branch.mesh.mesh import Mesh  # noqa: PLC0415  # a branch that is alone need not load it

        def happened(kind: str, app: str | None, name: str | None, data: Mapping[str, Any]) -> None:
            self._fleet.later(self._journal.commit(events=[(kind, app, name, data)]))

        return Mesh(
            membership,
            self._fleet,
            self._policies,
            self.operations,
            facts,
            self._version,
            lambda: next(iter(self.addresses), None),
            happened,
        )

    async def end(self) -> None:
        """Runs every stop plan, in the order of branch/order.py, and returns when nothing runs any more.

        What is wanted stays wanted.
        """
        self._fleet.stopping = True
        self._why_not_ready = "stopping"
        self.events.close()
        await self._fleet.order.end(self._fleet.all())
        for supervisor in self._fleet.all():
            await ended(supervisor)
        await self._hooks.end()
        await self.leave()
        self.close()

    async def leave(self, *, quietly: bool = False) -> None:
        """Ends what is under way for others, and belongs to no neighbourhood any more; what runs goes on.

        `quietly`: the others hear no goodbye, so that they hold its instances for there, and wait for its next daemon.
        """
        await self.operations.close()
        if self.mesh is not None:
            await self.mesh.end(quietly=quietly)

    async def let_go(self) -> None:
        """Commits what is under way and leaves quietly; close() is to follow at once. The next daemon adopts it all."""
        self._fleet.stopping = self._fleet.letting_go = True
        self._why_not_ready = "its next daemon takes over"
        self.events.close()
        await self.leave(quietly=True)
        await self._hooks.end()
        with suppress(TimeoutError):  # a start that hangs is found by the next daemon as after a kill -9, or made again
            async with asyncio.timeout(LET_GO_WITHIN):
                for supervisor in self._fleet.all():  # last: what is begun is told to the store, which is closed next
                    await supervisor.idle()

    def remaining(self) -> list[str]:
        """Instances that still have a process, or one on its way."""
        return [str(supervisor.key) for supervisor in self._fleet.all() if not supervisor.settled]

    def kill(self) -> None:
        """While end() waits: no more patience."""
        for supervisor in self._fleet.all():
            supervisor.kill()

    def close(self) -> None:
        """Lets go of everything; what runs goes on."""
        self._fleet.memory.close()
        self._hooks.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def ready(self) -> bool:
        return not self._why_not_ready

    async def take(self) -> None:
        """For whoever asks for a change: returns when changes are taken, at once or as soon as begin() is through.

        Unavailable where that takes too long, and when the branch ends.
        """
        if not self._begun.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(BEGUN_WITHIN):
                    await self._begun.wait()
        if not self.ready:
            raise Unavailable(self._why_not_ready)

    def problems(self) -> list[str]:
        return [self._why_not_ready] if self._why_not_ready else []

    def branch(self) -> Branch:
        if self.mesh is None:
            room = capacity(self._policies.slots, self._world.host.cpus, (self._fleet.weight,))
        else:
            room = self.mesh.capacity
        return Branch(
            id=self.id,
            name=self.name,
            state=BranchState.UP if self.mesh is None else self.mesh.state,
            version=self._version,
            slots=room.slots,
            reserved=room.reserved,
            labels=self._policies.labels,
            address=next(iter(self.addresses), None),
            seen_at=timestamp(self._world.wall()),
            load=self._world.host.load(),
            started_at=self._started_at,
        )

    async def stats(self, app: str, name: str) -> Stats:
        """What the machine says of the process and its children, and a Celery worker of itself; sampled now."""
        supervisor = self._fleet.get(app, name)
        process = supervisor.process
        if process is None:
            return Stats(pid=None)
        usage = self._world.host.usage(process.identity) or {}
        return Stats(
            pid=process.identity.pid,
            rss=_whole(usage, "rss"),
            cpu_seconds=usage.get("cpu_seconds"),
            processes=_whole(usage, "processes"),
            threads=_whole(usage, "threads"),
            open_files=_whole(usage, "open_files"),
            tree=process.tree_usage() or None,
            worker=await self.celery.stats(supervisor),
        )

    def diagnoses(self) -> list[Diagnosis]:
        """What is wrong here, the worst first, and what was looked at and is right."""
        root = self._world.host.uid(None) == 0
        found = [root_without_default_user(root, self._policies.default_user, self._policies.allow_users is not None)]
        if self._why_not_ready:
            found.append(Diagnosis("daemon", Level.WARNING, self._why_not_ready, "wait for it"))
        found += definition_files(self.files.faults, self.files.left)
        found += machine(self._machine())
        if self.mesh is not None:
            found += diagnose(self.mesh.facts())
        return sorted(found, key=lambda one: -list(Level).index(one.level))

    def _machine(self) -> MachineFacts:
        strangers: Counter[str] = Counter()
        unenforced = {}
        for supervisor in self._fleet.all():
            if refused := supervisor.unenforced:
                unenforced[str(supervisor.key)] = refused
            if (user := supervisor.spec.user) is not None:
                try:
                    self._world.host.uid(user)
                except SpawnFailed:
                    strangers[user] += 1
        return MachineFacts(
            processes=self._world.processes.facts(),
            instances=len(self._fleet.all()),
            disk_free=self._world.host.load().get("disk_free", 1.0),
            unenforced=unenforced,
            lost_logs=[str(one.key) for one in self._fleet.all() if self.logs.lost(one.key)],
            strangers=strangers,
        )

    def audit(self, principal: Principal, method: str, path: str, status: int, about: Mapping[str, str]) -> None:
        """Records who asked for a change, and what it was answered. `about`: its app and instance, where it names them.

        Returns at once: the answer does not wait for the record.
        """
        data = {
            "principal": principal.name, "via": principal.via, "via_id": principal.via_id,
            "method": method, "path": path, "status": status,
        }  # fmt: skip
        told = (REQUEST, about.get("app"), about.get("instance"), data)
        self._fleet.later(self._journal.commit(events=[told]))

    def _expire(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EXPIRE_EVERY, self._expire)
        before = self._world.wall() - OUTCOMES_KEPT
        self._fleet.outcomes.expire(before)
        self._fleet.later(self._world.store.write(Expire(before, KEPT)))

    def _heard(self, pid: int, report: Heartbeat) -> None:
        if attendance := self._fleet.attending(pid):
            attendance.heard(report)

    def _hung_up(self, pid: int) -> None:
        if attendance := self._fleet.attending(pid):
            attendance.hung_up()


def _whole(usage: Mapping[str, Any], name: str) -> int | None:
    return int(usage[name]) if name in usage else None
