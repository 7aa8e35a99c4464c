"""Two creates of one name at one time, each at another branch: at most one of them is told that it made it."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from branchd.adapters import keys
from branchd.client import ApiProblem
from tests.e2e.branch import RunningBranch
from tests.e2e.conftest import Maker
from tests.rabbitmq import RabbitMQ
from tests.waiting import until

#: they take 15 s on 2 cores
RACES = 1000

#: races at one time: each has its own name, so they only load each other
AT_ONCE = 8

#: takes a name and a slot, and no process
BODY = {"command": ["true"], "wanted": "down"}


@pytest.fixture
async def pair(make_branch: Maker, rabbitmq: RabbitMQ, folder: Path) -> tuple[RunningBranch, RunningBranch]:
    keys.new(folder / "key")
    made = []
    for name in ("left", "right"):
        (folder / name).mkdir()
        mesh = ("--name", name, "--broker", rabbitmq.url, "--neighbourhood", folder.name)
        # The load of this machine is no reason to refuse, and there is room for all.
        env = {
            "BRANCHD_KEY_FILE": str(folder / "key"),
            "BRANCHD_SLOTS": "10000",
            "BRANCHD_PEER_SCOPE": "admin",
            "BRANCHD_GUARD_MEMORY": "0",
            "BRANCHD_GUARD_LOAD": "10000",
            "BRANCHD_GUARD_DISK": "0",
        }
        made.append(make_branch(*mesh, where=folder / name, env=env))
    left, right = await asyncio.gather(*(branch.start() for branch in made))
    await left.client.put_app("shop", {"kind": "command"})

    async def joined() -> bool:
        both = [len((await branch.client.branches())["items"]) == 2 for branch in (left, right)]
        return all(both) and bool((await right.client.apps())["items"])

    await until(joined, 60, "both to know each other and the app")
    return left, right


async def status(branch: RunningBranch, name: str) -> int:
    try:
        await branch.client.create_instance("shop", {"name": name, **BODY})
    except ApiProblem as problem:
        return problem.status
    return 201


async def listed(branch: RunningBranch) -> Counter[str]:
    instances = await branch.client.instances("shop")
    assert not instances["partial"], instances["unreachable"]
    return Counter(item["name"] for item in instances["items"])


async def test_of_two_creates_of_one_name_at_two_branches_never_both_are_told_that_they_made_it(
    pair: tuple[RunningBranch, RunningBranch],
) -> None:
    running = asyncio.Semaphore(AT_ONCE)

    async def race(name: str) -> tuple[int, ...]:
        async with running:
            return tuple(sorted(await asyncio.gather(*(status(branch, name) for branch in pair))))

    names = [f"race-{number}" for number in range(RACES)]
    outcomes = dict(zip(names, await asyncio.gather(*map(race, names)), strict=True))
    counts = Counter(outcomes.values())
    assert not counts[201, 201], counts
    assert {answer for both in counts for answer in both} <= {201, 409, 503}, counts
    won = {name for name, answers in outcomes.items() if 201 in answers}
    for branch in pair:
        assert await listed(branch) == Counter(won), counts

    # Where both were told to try again, one who does gets it.
    async def all_made() -> bool:
        won.update([name for name in names if name not in won and await status(pair[0], name) == 201])
        return len(won) == RACES

    await until(all_made, 60, "the others to be made")
    for branch in pair:
        assert await listed(branch) == Counter(names)
