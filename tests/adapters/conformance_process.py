"""What every Processes must do; run for the real ones and for the fake by test_process.py."""

import asyncio
import contextlib
import os
import signal
import time
import uuid
from dataclasses import dataclass, field
from typing import Protocol

import pytest
from msgspec.structs import replace

from branchd.branch.ports import Lost, Process, Processes
from branchd.core.errors import SpawnFailed
from branchd.core.spec import Limits
from branchd.core.values import Exit, Key, Launch
from tests.waiting import until

#: nonces: others may run these tests beside us
ONE, TWO = uuid.uuid4().hex, uuid.uuid4().hex

KEY = Key("shop", "worker-1")
OTHER = Key("shop", "worker-2")


class World(Protocol):
    """A machine with one daemon on it."""

    processes: Processes
    launch: Launch  #: a program that runs till it is ended
    missing: Launch  #: a program that is not there

    async def end_with_seven(self, process: Process) -> None:
        """Has that program exit with code 7 by itself."""

    def restart_daemon(self) -> None:
        """What runs goes on, and `processes` is another daemon's."""


@dataclass
class Exits:
    """An on_exit that remembers."""

    seen: list[Exit] = field(default_factory=list)

    def __call__(self, how: Exit) -> None:
        self.seen.append(how)

    async def one(self) -> Exit:
        await until(lambda: self.seen, what="an exit")
        assert len(self.seen) == 1
        return self.seen[0]


async def spawn(world: World, exits: Exits, nonce: str, key: Key = KEY, launch: Launch | None = None) -> Process:
    with open(os.devnull, "wb") as sink:  # noqa: ASYNC230  waits for nothing
        output = contextlib.nullcontext((sink.fileno(), sink.fileno()))
        return await world.processes.spawn(key, nonce, launch or world.launch, output, exits)


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ProcessesConformance:
    """Subclasses give a fixture `world`."""

    async def test_what_is_spawned_runs(self, world: World) -> None:
        exits = Exits()
        first, second = await spawn(world, exits, ONE), await spawn(world, exits, TWO, OTHER)
        assert first.identity != second.identity
        assert first.identity.boot == second.identity.boot
        assert first.cpu_seconds() is not None
        assert exits.seen == []

    async def test_an_exit_code_is_told_once(self, world: World) -> None:
        exits = Exits()
        process = await spawn(world, exits, ONE)
        await world.end_with_seven(process)
        assert await exits.one() == Exit(code=7)
        assert process.cpu_seconds() is None

    async def test_a_fatal_signal_is_told(self, world: World) -> None:
        exits = Exits()
        (await spawn(world, exits, ONE)).signal(signal.SIGKILL)
        assert await exits.one() == Exit(signal=signal.SIGKILL)

    async def test_killing_the_tree_ends_the_main_process_and_never_calls_back_at_once(self, world: World) -> None:
        exits = Exits()
        process = await spawn(world, exits, ONE)
        process.kill_tree()
        assert exits.seen == []
        assert await exits.one() == Exit(signal=signal.SIGKILL)

    async def test_one_that_has_ended_takes_everything_in_silence(self, world: World) -> None:
        exits = Exits()
        process = await spawn(world, exits, ONE)
        process.signal(signal.SIGKILL)
        await exits.one()
        process.signal(signal.SIGTERM)
        process.kill_tree()
        world.processes.sweep(KEY, ONE)
        world.processes.sweep(KEY, ONE)
        await asyncio.sleep(0)
        assert len(exits.seen) == 1

    async def test_a_sweep_leaves_the_next_run_alone(self, world: World) -> None:
        ended, running = Exits(), Exits()
        (await spawn(world, ended, ONE)).signal(signal.SIGKILL)
        await ended.one()
        second = await spawn(world, running, TWO)
        world.processes.sweep(KEY, ONE)
        await world.end_with_seven(second)
        assert await running.one() == Exit(code=7)

    async def test_what_cannot_be_started_fails_in_words(self, world: World) -> None:
        with pytest.raises(SpawnFailed) as failure:
            await spawn(world, Exits(), ONE, launch=world.missing)
        assert world.missing.argv[0] in failure.value.detail
        assert failure.value.hint
        assert not failure.value.ours

    async def test_another_daemon_adopts_what_runs(self, world: World) -> None:
        before, after = Exits(), Exits()
        identity = (await spawn(world, before, ONE)).identity
        world.restart_daemon()
        process = world.processes.adopt(KEY, ONE, identity, Limits(), after)
        assert process is not None
        assert process.identity == identity
        await world.end_with_seven(process)
        assert await after.one() == Exit(code=7)
        assert before.seen == []

    async def test_only_that_very_process_is_adopted(self, world: World) -> None:
        exits = Exits()
        process = await spawn(world, exits, ONE)
        identity = process.identity
        for other in (
            replace(identity, started=identity.started + 1),
            replace(identity, boot="another"),
            replace(identity, pid=2**22 - 1),
        ):
            assert world.processes.adopt(KEY, ONE, other, Limits(), exits) is None
        process.signal(signal.SIGKILL)
        await exits.one()
        assert world.processes.adopt(KEY, ONE, identity, Limits(), exits) is None

    async def test_a_lost_one_is_found_by_its_nonce(self, world: World) -> None:
        before = now()
        identity = (await spawn(world, Exits(), ONE)).identity
        await spawn(world, Exits(), TWO, OTHER)
        world.restart_daemon()
        wanted = Lost(KEY, before, os.geteuid())
        assert world.processes.find({ONE: wanted, uuid.uuid4().hex: wanted}) == {ONE: identity}
        assert world.processes.find({ONE: Lost(KEY, now() + 5, os.geteuid())}) == {}
