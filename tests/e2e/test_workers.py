"""Workers of every pool on RabbitMQ: what is asked of them by HTTP is done. They live for the whole module."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from kombu import Connection, Queue

from branchd.client import ApiProblem, BranchdClient
from tests.e2e.branch import RunningBranch
from tests.e2e.work import PATIENCE, Work, truth
from tests.rabbitmq import RabbitMQ
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

POOLS: dict[str, dict[str, Any]] = {
    "prefork": {"autoscale": {"min": 1, "max": 1}},
    "threads": {"concurrency": 2},
    "solo": {},
}


@dataclass(frozen=True)
class Worker:
    branch: RunningBranch
    work: Work
    pool: str  #: its instance's name too
    queue: str  #: that it has consumed from since its start

    @property
    def client(self) -> BranchdClient:
        return self.branch.client

    async def status(self) -> dict[str, Any]:
        return await self.branch.status("shop", self.pool)

    async def consumes(self) -> set[str]:
        """By its own words."""
        return {
            item["queue"] for item in (await self.client.consumers("shop", self.pool))["items"] if item["consuming"]
        }

    async def works(self, **where: str) -> bool:
        return bool(await self.work.result(self.work.send("add", 20, 22, **where)) == 42)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers(rabbitmq: RabbitMQ) -> AsyncIterator[dict[str, Worker]]:
    folder = Path(tempfile.mkdtemp(prefix="br-"))
    branch, work = RunningBranch(folder), Work(rabbitmq.url, folder)
    mark = secrets.token_hex(4)
    try:
        await branch.start()
        await branch.client.put_app("shop", work.spec)
        for pool, spec in POOLS.items():
            await branch.client.create_instance(
                "shop", {"name": pool, "pool": pool, "queues": [f"{pool}-{mark}"], **spec}
            )
        for pool in POOLS:
            await branch.ready("shop", pool)
        yield {pool: Worker(branch, work, pool, f"{pool}-{mark}") for pool in POOLS}
    finally:
        branch.clean_up()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=list(POOLS))
def worker(request: pytest.FixtureRequest, workers: dict[str, Worker]) -> Worker:
    return workers[request.param]


async def test_it_runs_tasks_and_gives_their_results(worker: Worker) -> None:
    sent = [worker.work.send("add", number, number, queue=worker.queue) for number in range(10)]
    assert [await worker.work.result(each) for each in sent] == [2 * number for number in range(10)]


async def test_a_consumer_is_added_and_cancelled_while_it_runs(worker: Worker) -> None:
    queue = f"{worker.queue}-late"
    declaration = {"exchange": f"{queue}-exchange", "exchange_type": "topic", "routing_key": "late.*"}
    await worker.client.put_queue("shop", queue, declaration)
    answer = await worker.client.add_consumer("shop", worker.pool, queue)
    assert answer == {"queue": queue, "wanted": True, "consuming": True}
    assert await worker.works(exchange=declaration["exchange"], routing_key="late.today")
    assert worker.work.queue(queue) == (0, 1)

    await worker.client.cancel_consumer("shop", worker.pool, queue)
    assert await worker.consumes() == {worker.queue}
    assert worker.work.queue(queue) == (0, 0)
    assert await worker.works(queue=worker.queue)


async def test_a_queue_that_the_broker_has_otherwise_is_refused_in_its_words(worker: Worker) -> None:
    queue = f"{worker.queue}-otherwise"
    with Connection(worker.work.broker) as connection:
        Queue(queue, queue_arguments={"x-max-length": 7}, channel=connection.default_channel).declare()
    before = await worker.client.instance("shop", worker.pool)
    consumed = await worker.consumes()

    with pytest.raises(ApiProblem, match=r"PRECONDITION_FAILED.*x-max-length") as refused:
        await worker.client.add_consumer("shop", worker.pool, queue)

    assert refused.value.status == 409
    assert await worker.client.instance("shop", worker.pool) == before
    assert await worker.consumes() == consumed
    assert await worker.works(queue=worker.queue)


async def test_its_pool_follows_autoscale(workers: dict[str, Worker]) -> None:
    client = workers["prefork"].client
    for least, most in ((2, 3), (1, 1)):
        answer = await client.set_autoscale("shop", "prefork", least, most)
        assert (answer["min"], answer["max"]) == (least, most)

        async def followed(least: int = least) -> bool:
            return bool((await client.autoscale("shop", "prefork"))["actual"] == least)

        await until(followed, PATIENCE, f"{least} processes in the pool")


@pytest.mark.parametrize("pool", ["threads", "solo"])
async def test_a_pool_that_cannot_scale_says_so(workers: dict[str, Worker], pool: str) -> None:
    worker = workers[pool]
    with pytest.raises(ApiProblem) as refused:
        await worker.client.set_autoscale("shop", pool, 1, 2)
    assert refused.value.status == 422
    assert await worker.works(queue=worker.queue)


async def test_it_tells_its_own_figures(worker: Worker) -> None:
    assert await worker.works(queue=worker.queue)
    stats = await worker.client.stats("shop", worker.pool)
    assert stats["pid"] == stats["worker"]["pid"] == (await worker.status())["pid"]
    assert stats["rss"] > 0
    assert stats["worker"]["total"]["shop.add"] > 0


async def test_its_log_is_read_and_followed(worker: Worker) -> None:
    tail = b"".join([piece async for piece in worker.client.logs("shop", worker.pool, tail=1000)])
    assert b" ready." in tail
    assert len(tail.splitlines()) > 1
    assert len(b"".join([piece async for piece in worker.client.logs("shop", worker.pool, tail=1)]).splitlines()) == 1

    async with aclosing(worker.client.logs("shop", worker.pool, tail=1, follow=True)) as pieces:
        heard = await anext(pieces)
        sent = worker.work.send("add", 1, 2, queue=worker.queue)
        while f"shop.add[{sent.id}] succeeded".encode() not in heard:
            heard += await anext(pieces)


async def test_after_kill_9_it_does_again_what_is_wanted(worker: Worker) -> None:
    extra = f"{worker.queue}-extra"
    declaration = {"exchange": f"{extra}-exchange", "routing_key": "extra"}
    await worker.client.put_queue("shop", extra, declaration)
    await worker.client.add_consumer("shop", worker.pool, extra)
    if worker.pool == "prefork":
        await worker.client.set_autoscale("shop", worker.pool, 2, 3)
    before = await worker.status()
    os.kill(before["pid"], signal.SIGKILL)

    async def replaced() -> bool:
        status = await worker.status()
        return status["pid"] not in {None, before["pid"]} and truth(status, "Ready")[0] == "True"

    await until(replaced, PATIENCE, "a new process that is ready")
    after = await worker.status()
    assert after["restarts"] == before["restarts"] + 1
    assert after["last_exit"]["signal"] == "SIGKILL"
    assert await worker.consumes() == {worker.queue, extra}
    assert await worker.works(exchange=declaration["exchange"], routing_key="extra")
    if worker.pool == "prefork":

        async def scaled() -> bool:
            scale = await worker.client.autoscale("shop", "prefork")
            return (scale["min"], scale["max"]) == (2, 3) and (scale["actual"] or 0) >= 2

        await until(scaled, PATIENCE, "its pool to be as wanted")
