"""A create that is asked again under its key, wherever and whatever became of its target meanwhile, is made once."""

import asyncio
import os
import random
import secrets
from collections import Counter

import pytest

from branchd.client import ApiProblem, Unreachable
from tests.hosts.conftest import Maker
from tests.hosts.neighbourhood import AGREEMENT, APP, HostBranch, Neighbourhood
from tests.waiting import until

#: set it to what a failed run printed, to have the same moments again
SEED = int(os.environ.get("BRANCHD_TEST_SEED") or secrets.randbits(32))

ROUNDS = int(os.environ.get("BRANCHD_TEST_ROUNDS") or 12)


async def create(hosts: Neighbourhood, via: HostBranch, key: str) -> str:
    """The name of the one under that key, which runs marked as it; "" where nobody can tell now."""
    body = {"command": hosts.programs.waiting(key)}
    try:
        name: str = (await via.client.create_instance(APP, body, key=key))["name"]
    except (ApiProblem, Unreachable) as error:
        if isinstance(error, ApiProblem) and error.status not in {503, 504}:
            raise
        return ""
    return name


async def wrong(hosts: Neighbourhood, made: dict[str, str]) -> list[str]:
    """What is not as it should be, in words: each is told of once by each branch, and runs once."""
    running = hosts.programs.running()
    wanted = Counter((name, tuple(running.get(key, ()))) for key, name in made.items())
    found = [f"{key} runs too" for key in running.keys() - made.keys()]
    for branch in hosts.branches.values():
        items = (await branch.client.instances())["items"]
        told = Counter((item["name"], (item["status"]["pid"],)) for item in items)
        if told != wanted:
            found.append(f"{branch.name}: beyond it {told - wanted}, lacking {wanted - told}")
    return found


@pytest.mark.faults
@pytest.mark.timeout(1800)
async def test_a_create_whose_target_was_killed_meanwhile_is_made_once_by_those_who_ask_again(
    neighbourhood: Maker,
) -> None:
    hosts = await neighbourhood({"left": 20, "middle": 20, "right": 1000}).start()
    left, middle, right = hosts.branches.values()
    await hosts.put_app(left)
    chance = random.Random(SEED)
    made: dict[str, str] = {}
    for number in range(ROUNDS):
        key = f"key-{number}"
        asked = asyncio.create_task(create(hosts, left, key))
        await asyncio.sleep(chance.uniform(0, 0.06))  # the random moment
        right.kill()
        first = await asked
        made[key] = await until(lambda key=key: create(hosts, middle, key), AGREEMENT, "an answer to the retry")
        assert first in {"", made[key]}
        await right.start()

        async def right_again() -> bool:
            return not await wrong(hosts, made)

        try:
            await until(right_again, AGREEMENT)
        except AssertionError:
            logs = "\n".join(f"--- {branch.name}\n{branch.log[-3000:]}" for branch in hosts.branches.values())
            pytest.fail(f"again with BRANCHD_TEST_SEED={SEED}: {key} {first!r} {await wrong(hosts, made)}\n{logs}")
