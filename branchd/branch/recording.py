"""What is on record of one instance and its process: by it a later daemon finds the process, and goes on from there.

Here the record changes and is committed, with the event that tells of it. When it does, and to which state, is the
supervisor's.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence

import structlog
from msgspec.structs import replace

from branchd.branch.journal import Journal
from branchd.branch.records import Put, RunRecord
from branchd.branch.transitions import last_words, transition
from branchd.branch.world import World
from branchd.core.errors import StorageFailed
from branchd.core.lifecycle import Machine, State
from branchd.core.spec import Logs
from branchd.core.values import Exit, Identity, Key

log = structlog.get_logger(__name__)


class Recording:
    def __init__(
        self, world: World, journal: Journal, key: Key, run: RunRecord | None, on_change: Callable[[], None]
    ) -> None:
        """`run`: as an earlier daemon left it. `on_change` is called when save() has more to show."""
        self._world = world
        self._journal = journal
        self._on_change = on_change
        self._in_flight: tuple[str, ...] = ()  #: tasks that the process before ran when it ended
        self.run = run or RunRecord(key, Machine(), world.host.boot)
        self.saved = True
        self._refusal: StorageFailed | None = None  #: why it was not ended to be started again, as it stands now

    @property
    def of_this_boot(self) -> bool:
        return self.run.boot == self._world.host.boot

    @property
    def lost(self) -> tuple[str, float] | None:
        """Nonce and time of a spawn of this boot whose process is not on record."""
        run = self.run
        begun = run.machine.state in (State.STARTING, State.STOPPING) and not run.machine.held
        pending = run.nonce and run.identity is None and begun
        return (run.nonce, run.intent) if pending and self.of_this_boot else None

    def rebooted(self) -> None:
        """Another boot: nothing of what ran then exists, and no time of then means anything."""
        run = self.run
        self.run = RunRecord(run.key, Machine(run=run.machine.run), self._world.host.boot, last_exit=run.last_exit,
                             last_exit_at=run.last_exit_at)  # fmt: skip

    def forget(self) -> None:
        """All but how many processes there were."""
        self.run = RunRecord(self.run.key, Machine(run=self.run.machine.run), self._world.host.boot)
        self.saved = False

    def moved(self, machine: Machine) -> None:
        if machine != self.run.machine:
            self.run = replace(self.run, machine=machine)
            self.saved, self._refusal = False, None

    def intends(self, generation: int, launched: str) -> None:
        """A process is to be started. `generation`, `launched`: of the spec."""
        self.run = replace(
            self.run,
            nonce=secrets.token_hex(16),
            intent=self._world.clock(),
            identity=None,
            started_at=None,
            observed_generation=generation,
            launched=launched,
        )
        self.saved = False

    def started(self, identity: Identity, generation: int, launched: str) -> None:
        """The start goes with the next commit: a later daemon finds the process by its nonce until then."""
        self.run = replace(
            self.run,
            started_at=self._world.wall(),
            observed_generation=generation,
            launched=launched,
            identity=identity,
        )

    def found(self, identity: Identity) -> None:
        """An earlier daemon started it."""
        run = self.run
        since = run.started_at
        if since is None:
            since = self._world.wall() - self._world.clock() + run.intent
        self.run = replace(run, started_at=since, identity=identity)

    def observed(self, generation: int) -> None:
        """Its process does as the spec of that generation says."""
        self.run = replace(self.run, observed_generation=generation)
        self.saved = False

    def ended(self, exit: Exit, tasks: Sequence[str]) -> None:
        """`tasks`: ids of those that it ran when it was last heard."""
        # One that ended well had ended its tasks; of another the last report tells what it was at.
        self._in_flight = tuple(tasks) if exit.code != 0 else ()
        self.run = replace(self.run, identity=None, last_exit=exit, last_exit_at=self._world.wall())

    async def ends(self, machine: Machine) -> bool:
        """Goes over to the end of what runs, once that is committed, with its event. False: it stays as it was."""
        before = self.run
        ending = replace(before, machine=machine, last_words=())
        told = transition(before.machine, ending, self._in_flight, ())
        try:
            await self._journal.commit(Put(ending), events=[told], durable=False)
        except StorageFailed as failure:
            log.error("not restarted", instance=str(before.key), reason=failure.detail)
            self._refusal = failure
            return False
        self.saved = self.run is before  # else it changed meanwhile
        self.run, self._refusal = replace(self.run, machine=machine, last_words=()), None
        return True

    def check(self) -> None:
        """StorageFailed where the last restart was refused, and nothing has changed since."""
        if self._refusal is not None:
            detail = f"{self.run.key} runs on, because it could not be started again: {self._refusal.detail}"
            raise StorageFailed(detail, self._refusal.hint)

    async def save(self, before: Machine, logs: Logs) -> None:
        """Commits it, with an event where the state is another than before. It is not `saved` where that fails."""
        words: tuple[str, ...] = ()
        if self._moved_on(before):
            words = await last_words(self._world, self.run.key, logs, self.run.machine.state)
        try:
            await self.begin(before, words)
        except StorageFailed as failure:
            self.failed(failure)

    def begin(self, before: Machine, words: tuple[str, ...] = ()) -> asyncio.Future[None]:
        """The same, under way when this returns, with those last words; StorageFailed, which failed() is to be told."""
        events = []
        if self._moved_on(before):
            self.run = replace(self.run, last_words=words if self.run.machine.state is State.FATAL else ())
            self._on_change()
            events = [transition(before, self.run, self._in_flight, words)]
        self.saved = True  # now: what changes while this is committed is not in it
        return self._journal.begin(Put(self.run), events=events)

    def failed(self, failure: StorageFailed) -> None:
        """What was committed was not."""
        log.error("not saved", instance=str(self.run.key), reason=failure.detail)
        self.saved = False

    def _moved_on(self, before: Machine) -> bool:
        return self.run.machine.state is not before.state or self.run.machine.run != before.run
