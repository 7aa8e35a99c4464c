"""What is defined at one branch is defined at all."""

from branchd.client import ApiProblem
from tests.hosts.conftest import Maker
from tests.hosts.neighbourhood import Measured, timed

#: seconds, by the design, until all agree on what was written
AGREED = 1


async def test_what_is_written_at_any_branch_is_read_at_every_other(neighbourhood: Maker, measured: Measured) -> None:
    hosts = await neighbourhood({"a": 1, "b": 1, "c": 1}).start()
    for branch in hosts.branches.values():
        for labels in ({"by": branch.name}, {"by": branch.name, "again": "yes"}):
            await hosts.define(branch, labels=labels)
            await timed(f"an app written at {branch.name} is read by all", AGREED, hosts.agree, measured)
    await hosts["a"].client.put_queue("shop", "mail", {"exchange": "mail"})

    async def queue() -> bool:
        try:
            return all([(await branch.client.queue("shop", "mail"))["exchange"] for branch in hosts.branches.values()])
        except ApiProblem as problem:
            if problem.status != 404:
                raise
            return False

    await timed("a queue written at a is read by all", AGREED, queue, measured)
    await hosts["b"].client.delete_app("shop")
    hosts.apps.clear()
    await timed("an app deleted at b is gone for all", AGREED, hosts.agree, measured)
    await hosts.check()
