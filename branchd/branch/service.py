"""The branch: its life from adoption to the last stop plan, and the way to its use cases."""

import asyncio
from collections.abc import Mapping
from typing import Any

from branchd.branch.apps import Apps, Queues
from branchd.branch.celery import Celery
from branchd.branch.events import KEPT, EventLog
from branchd.branch.fleet import Fleet
from branchd.branch.instances import REPLIES_KEPT, Instances
from branchd.branch.journal import Journal
from branchd.branch.ports import LogFiles
from branchd.branch.records import Expire, Snapshot
from branchd.branch.tokens import Tokens
from branchd.branch.world import Policies, World
from branchd.core.capacity import capacity
from branchd.wire.agent import Heartbeat
from branchd.wire.resources import Branch, Stats, timestamp

#: seconds between two clean-ups of old replies and events
EXPIRE_EVERY = 600.0


class Service:
    def __init__(self, world: World, policies: Policies, snapshot: Snapshot, admin_token: str, version: str) -> None:
        self._world = world
        self._policies = policies
        self._version = version
        self.id = snapshot.branch_id
        self.name = policies.name
        self.addresses: tuple[str, ...] = ()  #: of its API
        self.events = EventLog(world.store, snapshot.last_event)
        self._journal = Journal(world.store, self.events, world.wall)
        self._fleet = Fleet(world, policies, snapshot, self._journal)
        self.apps = Apps(self._fleet)
        self.queues = Queues(self._fleet)
        self.instances = Instances(self._fleet, snapshot.replies)
        self.celery = Celery(self._fleet, self.instances)
        self.tokens = Tokens(world.store, snapshot.tokens, world.wall, admin_token)
        self.logs: LogFiles = world.logs
        self._timer: asyncio.TimerHandle | None = None
        self._why_not_ready = "starting: looking for what an earlier daemon left"

    async def begin(self) -> None:
        """Adopts what runs, starts what is wanted. Returns when every instance is in its supervisor's hands."""
        self._world.channel.listen(self._heard, self._hung_up)
        supervisors = self._fleet.all()
        lost = dict(supervisor.lost for supervisor in supervisors if supervisor.lost)
        found = self._world.processes.find(lost) if lost else {}
        for supervisor in supervisors:
            nonce = supervisor.lost[0] if supervisor.lost else ""
            supervisor.resume(found.get(nonce), nonce in found and found[nonce] is None)
        for supervisor in supervisors:
            await supervisor.idle()
        await self._journal.commit(events=[("branch.started", None, None, {"version": self._version})])
        self._why_not_ready = ""
        self._expire()

    async def end(self) -> None:
        """Runs every stop plan, all at once, and returns when nothing runs any more. What is wanted stays wanted."""
        self._fleet.stopping = True
        self._why_not_ready = "stopping"
        self.events.close()
        for supervisor in self._fleet.all():
            supervisor.retire()
        for supervisor in self._fleet.all():
            while not supervisor.settled:
                await supervisor.changed()
        self.close()

    def remaining(self) -> list[str]:
        """Instances that still have a process, or one on its way."""
        return [str(supervisor.key) for supervisor in self._fleet.all() if not supervisor.settled]

    def kill(self) -> None:
        """While end() waits: no more patience."""
        for supervisor in self._fleet.all():
            supervisor.kill()

    def close(self) -> None:
        """Lets go of everything; what runs goes on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def ready(self) -> bool:
        return not self._why_not_ready

    def problems(self) -> list[str]:
        return [self._why_not_ready] if self._why_not_ready else []

    def branch(self) -> Branch:
        reserved = (supervisor.spec.weight for supervisor in self._fleet.all())
        room = capacity(self._policies.slots, self._world.host.cpus, reserved)
        return Branch(
            id=self.id,
            name=self.name,
            state="up",
            version=self._version,
            slots=room.slots,
            reserved=room.reserved,
            labels=self._policies.labels,
            address=next(iter(self.addresses), None),
            seen_at=timestamp(self._world.wall()),
            load=self._world.host.load(),
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
            worker=await self.celery.stats(supervisor),
        )

    def _expire(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EXPIRE_EVERY, self._expire)
        before = self._world.wall() - REPLIES_KEPT
        self.instances.expire(before)
        self._fleet.later(self._world.store.write(Expire(before, KEPT)))

    def _heard(self, pid: int, report: Heartbeat) -> None:
        if supervisor := self._fleet.of_pid(pid):
            supervisor.heard(report)

    def _hung_up(self, pid: int) -> None:
        if supervisor := self._fleet.of_pid(pid):
            supervisor.hung_up()


def _whole(usage: Mapping[str, Any], name: str) -> int | None:
    return int(usage[name]) if name in usage else None
