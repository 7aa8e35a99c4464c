"""What can happen to a neighbourhood, as values that hypothesis draws, shrinks and prints, and how each is done.

A step begins something and lets so many seconds pass: what it began goes on beside the steps after it. All chance but
that of hypothesis comes from the seed of the run, the ids of requests too. Between two processes the order of a set of
texts differs: PYTHONHASHSEED=0 makes a run that was printed by one of them the same in another.
"""

import asyncio
import secrets
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import strategies as st

from tests.simulation.life import Crashed
from tests.simulation.neighbourhood import APP, Neighbourhood

#: apps: one whose definition is written and deleted, one that is deleted with all its instances, one of replicas
PLAIN, MORTAL, CREW = "web", "temp", "crew"

#: as they are written first: what is deleted with its instances takes its time to stop
SPECS = {PLAIN: APP, MORTAL: {**APP, "stop": [{"signal": "TERM", "patience": 3}]}}

#: of a branch; the steps of a smaller neighbourhood begin at 0 again
BRANCHES = st.integers(0, 4)

NAMES = st.sampled_from(["a", "b", "c"])
APPS = st.sampled_from([PLAIN, MORTAL])

#: seconds between two steps: less than a message takes, than a question waits, than a heartbeat, than a guard
WAITS = st.sampled_from([0.0, 0.0015, 0.004, 0.01, 0.05, 0.05, 0.3, 0.3, 1.2, 6.0, 25.0, 70.0])

#: how the network is: shares of what is lost, doubled and overtaken, and seconds of delay
WEATHER = st.tuples(
    st.sampled_from([0.0, 0.02, 0.2]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.05, 0.8]),
)

JUMPS = st.sampled_from([-600.0, -50.0, -2.0, 2.0, 50.0, 600.0])


def _step(word: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(word), *arguments)


_WORK = (
    _step("create", BRANCHES, APPS, NAMES),
    _step("create", BRANCHES, APPS, NAMES),
    _step("race", BRANCHES, BRANCHES, APPS, NAMES),
    _step("rush", APPS),
    _step("unnamed", BRANCHES, APPS),
    _step("keyed", BRANCHES, APPS, st.integers(0, 1)),
    _step("pin", BRANCHES, APPS),
    _step("delete", BRANCHES, st.integers(0, 9)),
    _step("put", BRANCHES, APPS, st.integers(1, 2)),
    _step("replicas", BRANCHES, st.integers(0, 4)),
    _step("bury", BRANCHES, APPS),
    _step("drain", BRANCHES),
    _step("undrain", BRANCHES),
)
_HARM = (
    _step("crash", BRANCHES),
    _step("power", BRANCHES),
    _step("stop", BRANCHES),
    _step("bounce", BRANCHES, st.booleans()),
    _step("restart"),
    _step("restart"),
    _step("partition", BRANCHES, st.booleans()),
    _step("heal"),
    _step("heal"),
    _step("broker", st.sampled_from(["stop", "pause", "bounce"])),
    _step("weather", WEATHER),
    _step("clock", BRANCHES, JUMPS),
    _step("clone", BRANCHES),
)

#: work is twice as likely as harm
STEPS = st.tuples(WAITS, st.one_of(st.one_of(*_WORK), st.one_of(*_WORK), st.one_of(*_HARM)))


def stories(most: int) -> st.SearchStrategy["Story"]:
    """With up to so many steps, any number of them as likely as another."""
    steps = st.integers(0, most).flatmap(lambda count: st.lists(STEPS, min_size=count, max_size=count))
    slots = st.lists(st.integers(1, 5), min_size=2, max_size=5)
    return st.builds(Story, st.integers(0, 1 << 16), slots, st.integers(0, 5), steps)


@dataclass(frozen=True)
class Story:
    seed: int
    slots: Sequence[int]  #: of each branch
    instances: int  #: so many there are at the beginning
    steps: Sequence[tuple[float, tuple[Any, ...]]]  #: each with the seconds that pass then


async def live(story: Story) -> None:
    """AssertionError where an invariant does not hold."""
    with seeded(story.seed):
        hood = Neighbourhood(story.seed)
        play = Play(hood)
        try:
            await hood.start(len(story.slots), story.slots)
            await hood.advance(2)
            for app, spec in SPECS.items():
                await hood.put_app(0, app, spec)
            await hood.advance(1)
            await hood.create_pinned(0, PLAIN, "pinned")
            await hood.create_pinned(1, MORTAL, "pinned")
            for number in range(story.instances):
                await hood.create(0, (PLAIN, MORTAL)[number % 2], f"n{number}")
            await hood.advance(1)
            for wait, (word, *arguments) in story.steps:
                getattr(play, word)(*arguments)
                await hood.advance(wait)
                play.look()
            await play.end()
        finally:
            await play.close()
            await hood.close()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it nobody draws a random text that another run of the same would not."""
    chance, real = Random(seed), secrets.token_hex

    def token_hex(nbytes: int | None = None) -> str:
        return chance.randbytes(32 if nbytes is None else nbytes).hex()

    secrets.token_hex = token_hex
    try:
        yield
    finally:
        secrets.token_hex = real


class Play:
    def __init__(self, hood: Neighbourhood) -> None:
        self._hood = hood
        self._count = 0
        self._under_way: list[asyncio.Task[Any]] = []

    def look(self) -> None:
        """What was found by what has ended."""
        for task in [task for task in self._under_way if task.done()]:
            self._under_way.remove(task)
            task.result()

    async def end(self) -> None:
        """Everything is healed, and after a while everything is as it should be."""
        hood = self._hood
        hood.calm()
        hood.heal()
        while self._under_way:
            await hood.advance(1)
            self.look()
        await hood.remove_clones()
        await hood.quiet(hood.quiet_time())

    async def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    # Work

    def create(self, branch: int, app: str, name: str) -> None:
        self._begin(self._hood.create(self._through(branch), app, name))

    def race(self, one: int, other: int, app: str, name: str) -> None:
        self.create(one, app, name)
        self.create(other, app, name)

    def rush(self, app: str) -> None:
        """One through every branch at once."""
        for branch in range(self._hood.count):
            self.unnamed(branch, app)

    def unnamed(self, branch: int, app: str) -> None:
        self._begin(self._hood.create(self._through(branch), app))

    def keyed(self, branch: int, app: str, number: int) -> None:
        """A second one is a retry, until what it made was deleted: what is gone is remembered where it was."""
        key = f"{app}-{number}-{self._hood.witness.deletions(app)}"
        self._begin(self._hood.create(self._through(branch), app, key=key))

    def pin(self, branch: int, app: str) -> None:
        self._count += 1
        self._begin(self._hood.create_pinned(self._through(branch), app, f"pinned-{self._count}"))

    def delete(self, branch: int, number: int) -> None:
        if held := self._hood.placed():
            key = held[number % len(held)]
            self._begin(self._hood.delete(self._through(branch), key.app, key.name))

    def put(self, branch: int, app: str, weight: int) -> None:
        self._count += 1
        spec = {**SPECS[app], "env": {"N": f"{self._count}"}, "weight": weight}
        self._begin(self._hood.put_app(self._through(branch), app, spec))

    def replicas(self, branch: int, count: int) -> None:
        self._begin(self._hood.put_app(self._through(branch), CREW, {**APP, "replicas": count}))

    def bury(self, branch: int, app: str) -> None:
        self._begin(self._hood.delete_app(self._through(branch), app, cascade=app == MORTAL))

    def drain(self, branch: int) -> None:
        self._begin(self._hood.drain(self._through(branch)))

    def undrain(self, branch: int) -> None:
        self._begin(self._hood.undrain(self._through(branch)))

    # Harm

    def crash(self, branch: int) -> None:
        self._begin(self._hood.crash(self._at(branch)))

    def power(self, branch: int) -> None:
        self._begin(self._hood.crash(self._at(branch), power=True))

    def stop(self, branch: int) -> None:
        self._begin(self._hood.stop(self._at(branch)))

    def bounce(self, branch: int, power: bool) -> None:
        """Crashes, and is there again at once."""

        async def bounce() -> None:
            await self._hood.crash(self._at(branch), power=power)
            await self._hood.restart(self._at(branch))

        self._begin(bounce())

    def restart(self) -> None:
        for machine in range(self._hood.count):
            self._begin(self._hood.restart(machine))

    def partition(self, branch: int, at_once: bool) -> None:
        self._hood.partition(self._at(branch), at_once=at_once)

    def heal(self) -> None:
        self._hood.heal()

    def broker(self, what: str) -> None:
        if what == "pause":
            self._hood.pause_broker()
        else:
            self._hood.stop_broker()
        if what == "bounce":
            self._hood.start_broker()

    def weather(self, how: tuple[float, float, float, float]) -> None:
        faults = self._hood.broker.faults
        faults.loss, faults.duplication, faults.reordering, faults.jitter = how

    def clock(self, branch: int, seconds: float) -> None:
        self._hood.machines[self._at(branch)].wall.offset += seconds

    def clone(self, branch: int) -> None:
        self._begin(self._hood.clone(self._at(branch)))

    def _at(self, branch: int) -> int:
        return branch % self._hood.count

    def _through(self, branch: int) -> int:
        """One that can be spoken to, where there is one."""
        ready = [machine.number for machine in self._hood.machines[: self._hood.count] if machine.ready]
        return ready[branch % len(ready)] if ready else self._at(branch)

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        async def begun() -> None:
            with suppress(Crashed):
                await work

        self._under_way.append(asyncio.get_running_loop().create_task(begun()))
