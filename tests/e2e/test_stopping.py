"""What a stop does to the tasks that run, and to what they left running."""

import asyncio
from pathlib import Path

import pytest

from branchd.core.spec import Pool, Spec
from branchd.drivers.celery import CeleryDriver
from tests.e2e.branch import RunningBranch, alive
from tests.e2e.work import PATIENCE, Work
from tests.rabbitmq import RabbitMQ
from tests.waiting import until

POOLS = ("prefork", "threads", "solo")


async def start(branch: RunningBranch, work: Work, app: str, **spec: object) -> None:
    """One worker of each pool, each with a queue of its own."""
    await branch.client.put_app(app, {**work.spec, "concurrency": 1, **spec})
    for pool in POOLS:
        await branch.client.create_instance(app, {"name": pool, "pool": pool, "queues": [f"{app}-{pool}"]})
    for pool in POOLS:
        await branch.ready(app, pool)


async def test_a_running_task_finishes_and_is_not_delivered_again(
    branch: RunningBranch, rabbitmq: RabbitMQ, folder: Path
) -> None:
    work = Work(rabbitmq.url, folder)
    await start(branch, work, "naps")
    journals = {pool: folder / f"{pool}.journal" for pool in POOLS}
    sent = {pool: work.send("nap", 3, str(journals[pool]), queue=f"naps-{pool}") for pool in POOLS}
    for journal in journals.values():
        await until(journal.exists, PATIENCE, "the task to begin")

    stopped = await asyncio.gather(*(branch.client.stop("naps", pool, wait=PATIENCE) for pool in POOLS))

    for pool, instance in zip(POOLS, stopped, strict=True):
        assert instance["status"]["state"] == "STOPPED", pool
        assert instance["status"]["last_exit"]["code"] == 0, pool
        assert sent[pool].get(timeout=0.1, disable_sync_subtasks=False) == "slept 3 s", pool
        assert work.queue(f"naps-{pool}") == (0, 0), pool
        assert journals[pool].read_text() == "began\n", pool


async def test_a_stop_that_outlives_its_patience_kills_the_tree(
    branch: RunningBranch, rabbitmq: RabbitMQ, folder: Path
) -> None:
    work = Work(rabbitmq.url, folder)
    await start(branch, work, "runaways", stop=[{"signal": "TERM", "patience": 0.5}])
    files = {pool: folder / f"{pool}.pid" for pool in POOLS}
    sent = {pool: work.send("run_away", str(files[pool]), queue=f"runaways-{pool}") for pool in POOLS}
    for file in files.values():
        await until(file.exists, PATIENCE, "the task to begin")
    grandchildren = {pool: int(file.read_text()) for pool, file in files.items()}
    assert all(map(alive, grandchildren.values()))
    for pool in ("prefork", "threads"):
        for _ in range(2):  # a report follows each answer; the second answer comes after the first report
            await branch.client.stats("runaways", pool)
    after = await branch.client.last_event()

    stopped = await asyncio.gather(*(branch.client.stop("runaways", pool, wait=PATIENCE) for pool in POOLS))

    for pool, instance in zip(POOLS, stopped, strict=True):
        assert instance["status"]["state"] == "STOPPED", pool
        assert instance["status"]["last_exit"]["signal"] == "SIGKILL", pool
        await until(lambda pool=pool: not alive(grandchildren[pool]), what=f"the grandchild of {pool} to end")
    in_flight = {}
    async for event in branch.client.events(after):
        if event["data"].get("to") == "STOPPED":
            in_flight[event["instance"]] = event["data"]["tasks_in_flight"]
        if len(in_flight) == len(POOLS):
            break
    for pool in ("prefork", "threads"):  # solo could not be asked while its task ran
        assert in_flight[pool] == [sent[pool].id]


async def test_quit_gives_the_task_of_a_prefork_worker_back(
    branch: RunningBranch, rabbitmq: RabbitMQ, folder: Path
) -> None:
    work, journal = Work(rabbitmq.url, folder), folder / "journal"
    plan = [{"signal": "TERM", "patience": 0.5}, {"signal": "QUIT", "patience": PATIENCE}]
    await branch.client.put_app("quits", {**work.spec, "concurrency": 1, "stop": plan, "queues": ["quits"]})
    await branch.client.create_instance("quits", {"name": "prefork"})
    await branch.ready("quits", "prefork")
    work.send("nap", 600, str(journal), queue="quits")
    await until(journal.exists, PATIENCE, "the task to begin")

    stopped = await branch.client.stop("quits", "prefork", wait=PATIENCE)

    assert stopped["status"]["state"] == "STOPPED"
    assert stopped["status"]["last_exit"]["signal"] is None
    assert work.queue("quits") == (1, 0)


@pytest.mark.parametrize("pool", list(Pool))
def test_only_prefork_gets_quit_by_default(pool: Pool) -> None:
    driver = CeleryDriver(agent="", socket="", python="", cpus=1)
    expected = ["TERM", "QUIT"] if pool is Pool.PREFORK else ["TERM"]
    assert [step.signal for step in driver.stop_plan(Spec(pool=pool))] == expected
