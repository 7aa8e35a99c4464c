"""N complete branches over one broker in memory, in one loop of virtual time: what can be done to them, and with them.

Use it inside tests.simulation.loop.run. Each step of time is looked at by a Witness.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from branchd.branch.records import Put, Remember
from branchd.core.errors import BranchdError, Conflict
from branchd.core.values import Key
from tests.fakes.bus import Faults, MemoryBroker
from tests.simulation.life import Crashed
from tests.simulation.machine import Machine
from tests.simulation.witness import Created, Witness, now

#: seconds of virtual time between two looks
LOOK = 0.25

#: seconds without disturbance after which all is as it should be, beside the time of asking for the names again
QUIET = 60.0

#: an app whose programs run until they are told to end, and then end at once
APP = {"kind": "command", "command": ["serve"], "stop": [{"signal": "KILL", "patience": 1}]}


class Neighbourhood:
    """Branches are named by their numbers, from 0. What fails is returned, so that a random life can go on."""

    def __init__(self, seed: int = 0, *, definite: bool = True, local: bool = False) -> None:
        self.broker = MemoryBroker(seed, definite=definite)
        self.witness = Witness()
        self.machines: list[Machine] = []
        self._chance = Random(seed)
        self._local = local  #: each branch alone, without a broker
        self.count = 0  #: without clones
        self._buried: Counter[tuple[int, str]] = Counter()  #: how often an app was deleted with all, and through whom

    # Branches

    async def start(self, count: int, slots: Sequence[int] = ()) -> None:
        """So many more, all at once; their slots, 4 where none are given."""
        new = []
        for index in range(count):
            number = len(self.machines)
            machine = Machine(number, None if self._local else self.broker, slots[index] if index < len(slots) else 4)
            self.machines.append(machine)
            self.witness.watch(machine)
            new.append(machine)
        self.count = len(self.machines)
        self._disturb()
        await asyncio.gather(*(machine.start() for machine in new))

    async def crash(self, *branches: int, power: bool = False) -> None:
        """kill -9 of their daemons; power: of their machines."""
        self._disturb()
        for branch in branches:
            if power:
                self.witness.unpin(self.machines[branch])
            await self.machines[branch].crash(power=power)

    async def stop(self, branch: int) -> None:
        self._disturb()
        self.witness.unpin(self.machines[branch])
        if self.machines[branch].ready:
            await self.machines[branch].stop()

    async def restart(self, *branches: int) -> None:
        """Those that do not run."""
        self._disturb()
        await asyncio.gather(*(self._restart(self.machines[branch]) for branch in branches))

    async def _restart(self, machine: Machine) -> None:
        if not machine.up:
            await machine.start()
            self.witness.pin_running(machine)

    async def clone(self, branch: int) -> None:
        """Another machine with the same id, as of a state folder that was copied before it had any instances."""
        self._disturb()
        original = self.machines[branch]
        known = original.kept()
        clone = Machine(len(self.machines), self.broker, original.slots, original.id)
        facts = (Remember(name, value) for name, value in known.facts.items())
        await clone.store.write(*facts, *map(Put, known.entries))
        self.machines.append(clone)
        self.witness.watch(clone)
        await clone.start()

    async def remove_clones(self) -> None:
        """They were a mistake; what was placed on them is lost."""
        for machine in self.machines[self.count :]:
            self.witness.forget(machine)
            await machine.close()
        del self.machines[self.count :]

    async def close(self) -> None:
        for machine in self.machines:
            await machine.close()

    # The network and the broker

    def partition(self, *branches: int, at_once: bool = False) -> None:
        self._disturb()
        self.broker.partition(*(self.machines[branch].id for branch in branches), at_once=at_once)

    def heal(self, *branches: int) -> None:
        """All where none is named; the broker runs after it."""
        self._disturb()
        self.start_broker()
        self.broker.heal(*(self.machines[branch].id for branch in branches))

    def start_broker(self) -> None:
        self._disturb()
        self.broker.start()
        self.broker.resume()

    def stop_broker(self) -> None:
        self._disturb()
        self.broker.stop()

    def pause_broker(self) -> None:
        self._disturb()
        self.broker.pause()

    def calm(self) -> None:
        """The network loses, doubles and delays nothing any more."""
        self.broker.faults = Faults()

    # Time

    async def advance(self, seconds: float) -> None:
        end = now() + seconds
        while now() < end:
            await asyncio.sleep(min(LOOK, end - now()))
            self.witness.check()

    def quiet_time(self) -> float:
        """Seconds: until everybody is connected again, and has asked for all its names twice, and 60 more."""
        return 25 + 0.2 * len(self.placed()) + QUIET

    async def quiet(self, seconds: float = QUIET) -> None:
        """Heals all, starts all, waits, and looks whether all is as it should be."""
        self.calm()
        self.heal()
        await self.restart(*range(len(self.machines)))
        await self.advance(seconds)
        self.witness.check_quiet()

    # Operations through any branch

    async def create(
        self, branch: int, app: str, name: str | None = None, key: str | None = None, **spec: Any
    ) -> str | BranchdError | Crashed:
        """The name of the instance, or why there is none, or none is known of."""
        body = spec if name is None else {"name": name, **spec}
        asked = now()
        try:
            made, new = await self.machines[branch].call(lambda entrance: entrance.create(app, body, key))
        except (BranchdError, Crashed) as error:
            if isinstance(error, Conflict) and key is not None:
                self.witness.has_refused(key)
            return error
        if new:
            self.witness.has_created(Created(Key(app, made), asked, now(), branch, key))
        return made

    async def create_pinned(self, branch: int, app: str, name: str, **spec: Any) -> str | BranchdError | Crashed:
        machine = self.machines[branch]
        buried = self._buried[branch, app]
        try:
            made = await machine.call(lambda entrance: entrance.create_pinned(app, {"name": name, **spec}))
        except (BranchdError, Crashed) as error:
            return error
        if not machine.stopping and self._buried[branch, app] == buried:
            self.witness.pin(machine, Key(app, made))
        return made

    async def delete(self, branch: int, app: str, name: str) -> BranchdError | Crashed | None:
        key = Key(app, name)
        since = self.witness.deletes(key)
        try:
            await self.machines[branch].call(lambda entrance: entrance.delete(app, name))
        except (BranchdError, Crashed) as error:
            return error
        self.witness.has_deleted(key, since)
        return None

    async def put_app(self, branch: int, app: str, spec: Mapping[str, Any] = APP) -> BranchdError | Crashed | None:
        try:
            await self.machines[branch].call(lambda entrance: entrance.put_app(app, spec))
        except (BranchdError, Crashed) as error:
            return error
        return None

    async def delete_app(self, branch: int, app: str, *, cascade: bool = False) -> BranchdError | Crashed | None:
        if cascade:
            self._buried[branch, app] += 1
            self.witness.buries(self.machines[branch], app)
        try:
            await self.machines[branch].call(lambda entrance: entrance.delete_app(app, cascade))
        except (BranchdError, Crashed) as error:
            return error
        return None

    async def drain(self, branch: int) -> BranchdError | Crashed | None:
        try:
            await self.machines[branch].call(lambda entrance: entrance.drain())
        except (BranchdError, Crashed) as error:
            return error
        return None

    async def undrain(self, branch: int) -> BranchdError | Crashed | None:
        try:
            await self.machines[branch].call(lambda entrance: entrance.undrain())
        except (BranchdError, Crashed) as error:
            return error
        return None

    # What a test may look at

    def placed(self) -> list[Key]:
        """All that are placed anywhere, whether or not their branches are up."""
        records = (record for machine in self.machines for record in machine.kept().instances)
        return sorted({record.key for record in records if record.placed is not None})

    def where(self, app: str, name: str) -> list[int]:
        """The machines on which it runs."""
        return [machine.number for machine in self.machines if Key(app, name) in machine.running()]

    def _disturb(self) -> None:
        self.witness.disturbed = now()


@asynccontextmanager
async def neighbourhood(
    count: int, slots: Sequence[int] = (), seed: int = 0, *, definite: bool = True, local: bool = False
) -> AsyncIterator[Neighbourhood]:
    """That many branches, begun."""
    made = Neighbourhood(seed, definite=definite, local=local)
    try:
        await made.start(count, slots)
        yield made
    finally:
        await made.close()
