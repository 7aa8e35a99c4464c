"""Whatever fails on hosts, in any order and at any moment of their work: afterwards what was confirmed is so."""

import asyncio
import contextlib
import os
import random
import secrets
from collections.abc import Awaitable

import pytest

from branchd.client import ApiProblem, Unreachable
from tests.hosts.conftest import Maker
from tests.hosts.neighbourhood import HostBranch, Neighbourhood

#: set it to what a failed run printed, to have the same order again
SEED = int(os.environ.get("BRANCHD_TEST_SEED") or secrets.randbits(32))

from collections import Counter
W = Counter()
ROUNDS = int(os.environ.get("BRANCHD_TEST_ROUNDS") or 12)

#: seconds that a fault lasts at most: long enough for all to find a host silent, and for a broker to drop a dead link
LASTS = 40


class Work:
    """Creates, deletes and definitions at random branches, one after the other."""

    def __init__(self, hosts: Neighbourhood, chance: random.Random) -> None:
        self._hosts = hosts
        self._chance = chance
        self._names = 0

    async def go_on(self) -> None:
        while True:
            await self._step()
            await asyncio.sleep(0.1)

    async def _step(self) -> None:
        hosts, chance = self._hosts, self._chance
        via = chance.choice(list(hosts.branches.values()))
        calls: list[Awaitable[object]] = []
        match chance.choice(["create", "create", "race", "delete", "delete", "define"]):
            case "create":
                calls = [hosts.ask_for(via)]
            case "race":
                self._names += 1
                calls = [hosts.ask_for(branch, f"n-{self._names}") for branch in (via, hosts["left"])]
            case "delete" if hosts.live:
                calls = [hosts.delete(via, chance.choice(list(hosts.live)))]
            case "define":
                calls = [hosts.define(via, chance.choice(["one", "two"]), labels={"at": str(chance.random())})]
        for ended in await asyncio.gather(*calls, return_exceptions=True):
            W[(ended.status if isinstance(ended, ApiProblem) else type(ended).__name__)] += 1
            if isinstance(ended, BaseException) and not isinstance(ended, ApiProblem | Unreachable):
                raise ended


async def fail(hosts: Neighbourhood, chance: random.Random) -> str:
    """One fault and its end; which it was."""
    host = chance.choice(list(hosts.branches.values()))
    seconds = LASTS * chance.random() ** 2
    kind = chance.choice([cut, reset, lossy, kill, break_broker, pause_broker])
    await kind(hosts, host, seconds)
    return f"{kind.__name__} {host.name} {seconds:.1f} s"


async def cut(hosts: Neighbourhood, branch: HostBranch, seconds: float) -> None:
    hosts.network.cut(branch.host)
    await asyncio.sleep(seconds)
    hosts.network.heal(branch.host)


async def reset(hosts: Neighbourhood, branch: HostBranch, seconds: float) -> None:
    hosts.network.reset(branch.host)
    await asyncio.sleep(seconds / 10)
    hosts.network.reset(branch.host)


async def lossy(hosts: Neighbourhood, branch: HostBranch, seconds: float) -> None:
    async with hosts.network.lossy(branch.host):
        await asyncio.sleep(seconds)


async def kill(_: Neighbourhood, branch: HostBranch, seconds: float) -> None:
    branch.kill()
    await asyncio.sleep(seconds / 2)
    await branch.start()


async def break_broker(hosts: Neighbourhood, _: HostBranch, seconds: float) -> None:
    hosts.broker.kill()
    await asyncio.sleep(seconds / 2)
    await asyncio.to_thread(hosts.broker.start)


async def pause_broker(hosts: Neighbourhood, _: HostBranch, seconds: float) -> None:
    hosts.broker.pause()
    await asyncio.sleep(seconds)
    hosts.broker.resume()


@pytest.mark.faults
@pytest.mark.timeout(3600)
async def test_after_each_fault_of_a_random_life_all_agree_on_what_was_confirmed(neighbourhood: Maker) -> None:
    hosts = await neighbourhood({"left": 40, "middle": 60, "right": 80}).start()
    await hosts.put_app(hosts["left"])
    work = Work(hosts, random.Random(SEED))
    told: list[str] = []
    for number in range(ROUNDS):
        working = asyncio.create_task(work.go_on())
        chance = random.Random(SEED + number)
        await asyncio.sleep(chance.uniform(0, 3))
        told.append(await fail(hosts, chance))
        await asyncio.sleep(chance.uniform(0, 3))
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        try:
            import time; t0=time.time(); await hosts.check(120); print("ROUND", told[-1], len(hosts.live), "agreed in", round(time.time()-t0,1), W, flush=True)
        except AssertionError as failure:
            pytest.fail(f"again with BRANCHD_TEST_SEED={SEED}, after {told}:\n{failure}")
