"""Two branches on one machine and one broker: neither sees nor disturbs what the other runs."""

import os
import signal
from pathlib import Path

from tests.e2e.branch import alive
from tests.e2e.conftest import Maker
from tests.e2e.work import PATIENCE, Work
from tests.rabbitmq import RabbitMQ
from tests.waiting import until


async def test_two_branches_do_not_disturb_each_other(make_branch: Maker, rabbitmq: RabbitMQ, folder: Path) -> None:
    branches, works = {}, {}
    for name in ("left", "right"):
        (folder / name).mkdir()
        branches[name] = await make_branch("--name", name, where=folder / name).start()
        works[name] = Work(rabbitmq.url, folder / name)
        await branches[name].client.put_app("shop", {**works[name].spec, "pool": "threads", "queues": [f"two-{name}"]})
        await branches[name].client.create_instance("shop", {"name": "worker"})
    before = {name: await branch.ready("shop", "worker") for name, branch in branches.items()}
    assert before["left"]["pid"] != before["right"]["pid"]
    for name, branch in branches.items():
        assert await branch.pids() == {"shop:worker": before[name]["pid"]}
        assert await works[name].result(works[name].send("add", 1, 2, queue=f"two-{name}")) == 3

    # A daemon that finds its own again takes nobody else's; one that stops ends nobody else's.
    branches["left"].kill()
    await branches["left"].start()
    assert await branches["left"].pids() == {"shop:worker": before["left"]["pid"]}
    os.kill(before["left"]["pid"], signal.SIGKILL)

    async def replaced() -> bool:
        return (await branches["left"].pids()).get("shop:worker") not in {None, before["left"]["pid"]}

    await until(replaced, PATIENCE, "a new process on the left")
    await branches["left"].ready("shop", "worker")
    left = await branches["left"].pids()
    assert branches["left"].stop() == 0
    assert not any(map(alive, left.values()))

    status = await branches["right"].ready("shop", "worker")
    assert (status["pid"], status["restarts"]) == (before["right"]["pid"], 0)
    assert await works["right"].result(works["right"].send("add", 3, 4, queue="two-right")) == 7
