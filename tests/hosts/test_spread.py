"""What comes in at one branch is spread over the hosts by their size, and not one more than they have room for."""

from collections import Counter

import pytest

from branchd.client import ApiProblem
from tests.hosts.conftest import Maker

SLOTS = {"small": 6, "middle": 18, "large": 36}


async def test_sixty_creates_through_one_branch_are_spread_by_capacity_and_the_next_is_refused(
    neighbourhood: Maker,
) -> None:
    hosts = await neighbourhood(SLOTS).start()
    small = hosts["small"]
    await hosts.put_app(small)
    reserved: Counter[str] = Counter()
    for number in range(sum(SLOTS.values())):
        # Three branches are all asked, so it is the one that is the least full with it.
        levels = {name: (reserved[name] + 1) / slots for name, slots in SLOTS.items()}
        made = await hosts.create(small, f"w-{number}" if number % 2 else None)
        assert levels[made["branch"]] == pytest.approx(min(levels.values())), (number, reserved)
        reserved[made["branch"]] += 1
    assert reserved == SLOTS
    await hosts.check()

    for branch in hosts.branches.values():
        with pytest.raises(ApiProblem) as refused:
            await hosts.create(branch, "beyond")
        assert refused.value.status == 409
        assert refused.value.type.endswith("no-capacity")
        assert all(name in refused.value.detail for name in SLOTS), "each says why"
    await hosts.check()

    # Room that becomes free is found from anywhere.
    freed = hosts.on(hosts["middle"])[0]
    await hosts.delete(hosts["large"], freed)
    assert (await hosts.create(small, "beyond"))["branch"] == "middle"
    await hosts.check()
