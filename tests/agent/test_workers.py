"""The agent in workers of every pool on a broker that is there. The workers live for the whole module."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from branchd.core.errors import Refused
from branchd.core.health import PERIOD, Phase
from branchd.core.values import QueueDeclaration
from branchd.wire import agent
from tests.agent import harness
from tests.agent.harness import Daemon, Worker
from tests.rabbitmq import RabbitMQ
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

POOLS = {"threads": ("-c", "2"), "solo": (), "prefork": ("--autoscale=2,1",)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    async with harness.daemon(tmp_path_factory.mktemp("workers")) as listening:
        yield listening


@pytest.fixture(scope="module")
def workers(daemon: Daemon, rabbitmq: RabbitMQ) -> Iterator[dict[str, Worker]]:
    """One of each pool, started at once, each with a queue of its own."""
    with contextlib.ExitStack() as stack:
        yield {
            pool: stack.enter_context(
                harness.worker(
                    *(daemon, rabbitmq.url, "-P", pool, "-Q", f"{pool}-work", *arguments),
                    name=pool,
                    queues=[QueueDeclaration(f"{pool}-work", exchange=f"{pool}-exchange", routing_key="work.key")],
                )
            )
            for pool, arguments in POOLS.items()
        }


@pytest.fixture(params=list(POOLS))
def worker(request: pytest.FixtureRequest, workers: dict[str, Worker]) -> Worker:
    found: Worker = workers[request.param]
    return found


async def test_a_worker_tells_how_it_is(worker: Worker) -> None:
    beat = await worker.is_up()
    assert beat.celery
    assert beat.queues == (f"{beat.pool}-work",)
    assert beat.processes == {"threads": 2, "solo": 1, "prefork": 1}[beat.pool]
    assert beat.autoscale == ((1, 2) if beat.pool == "prefork" else None)
    assert (beat.active, beat.tasks, beat.error) == (0, (), None)
    assert beat.loop_age is not None


async def test_heartbeats_go_on_and_see_the_loop_run(worker: Worker) -> None:
    await worker.is_up()
    seen = len(worker.daemon.beats[worker.pid])
    await until(lambda: len(worker.daemon.beats[worker.pid]) > seen + 1, harness.PATIENCE)
    beat = worker.last
    assert beat.loop_age is not None
    assert beat.loop_age < 2 * PERIOD + 5


async def test_a_queue_named_at_the_start_is_declared_as_told(
    worker: Worker, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    beat = await worker.is_up()
    done = tmp_path / "done"
    harness.publish(rabbitmq.url, "proj.note", str(done), exchange=f"{beat.pool}-exchange", routing_key="work.key")
    await until(done.exists, harness.PATIENCE)
    await worker.shows(lambda beat: beat.total > 0)


async def test_tasks_come_by_a_queue_added_later_and_no_more_when_it_is_cancelled(
    worker: Worker, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    pool = (await worker.is_up()).pool
    queue = QueueDeclaration(
        f"{pool}-later",
        exchange=f"{pool}-topics",
        exchange_type="topic",
        routing_key="eu.*",
        options={"queue_arguments": {"x-max-length": 5}},
    )
    assert await worker.ask(agent.add_consumer(queue)) == queue.name
    await worker.shows(lambda beat: beat.queues and set(beat.queues) == {f"{pool}-work", queue.name})
    done = tmp_path / "done"
    harness.publish(rabbitmq.url, "proj.note", str(done), exchange=queue.exchange, routing_key="eu.west")
    await until(done.exists, harness.PATIENCE)

    assert await worker.ask(agent.add_consumer(queue)) == queue.name, "twice is once"
    assert await worker.ask(agent.cancel_consumer(queue.name)) == queue.name
    await worker.shows(lambda beat: beat.queues == (f"{pool}-work",))
    assert await worker.ask(agent.cancel_consumer(queue.name)) == queue.name, "twice is once"
    assert await worker.ask(agent.add_consumer(queue)) == queue.name
    await worker.shows(lambda beat: beat.queues and queue.name in beat.queues)
    await worker.ask(agent.cancel_consumer(queue.name))


async def test_a_bare_name_is_the_applications_own_queue(worker: Worker, rabbitmq: RabbitMQ) -> None:
    await worker.is_up()
    assert await worker.ask(agent.add_consumer(QueueDeclaration("own"))) == "own"
    # The application declares it with a length limit: the same without one must be something else to the broker.
    with pytest.raises(Refused, match="PRECONDITION_FAILED"):
        await worker.ask(agent.declare(QueueDeclaration("own", exchange="own", routing_key="own")))
    await worker.ask(agent.cancel_consumer("own"))


async def test_a_declaration_that_does_not_match_is_refused_in_the_brokers_words_and_the_worker_lives(
    worker: Worker, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    pool = (await worker.is_up()).pool
    clash = QueueDeclaration(f"{pool}-work", exchange=f"{pool}-exchange", options={"durable": False})
    for command in (agent.declare(clash), agent.add_consumer(clash)):
        with pytest.raises(Refused, match="PRECONDITION_FAILED"):
            await worker.ask(command)
    done = tmp_path / "done"
    harness.publish(rabbitmq.url, "proj.note", str(done), exchange=f"{pool}-exchange", routing_key="work.key")
    await until(done.exists, harness.PATIENCE)
    assert worker.last.phase == Phase.UP


async def test_it_answers_and_names_its_task_while_one_runs(
    workers: dict[str, Worker], rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    for pool in ("threads", "prefork"):
        worker = workers[pool]
        await worker.is_up()
        go_on = tmp_path / pool
        harness.publish(
            rabbitmq.url,
            *("proj.wait_for", str(go_on)),
            exchange=f"{pool}-exchange",
            routing_key="work.key",
            task_id=f"{pool}-task",
        )
        beat = await worker.shows(lambda beat: beat.active == 1)
        assert beat.tasks == (f"{pool}-task",)
        assert await worker.ask(agent.cancel_consumer("nothing")) == "nothing"
        go_on.touch()
        await worker.shows(lambda beat: beat.active == 0)


async def test_autoscale_changes_the_pool_of_a_worker_that_was_started_with_it(workers: dict[str, Worker]) -> None:
    worker = workers["prefork"]
    await worker.is_up()
    assert await worker.ask(agent.autoscale(3, 4)) == {"min": 3, "max": 4, "processes": 3}
    beat = await worker.shows(lambda beat: beat.processes == 3)
    assert beat.autoscale == (3, 4)
    await until(lambda: len(children(worker.pid)) == 3, harness.PATIENCE)
    with pytest.raises(Refused, match="max"):
        await worker.ask(agent.autoscale(3, 2))
    await worker.ask(agent.autoscale(1, 2))
    await worker.shows(lambda beat: beat.autoscale == (1, 2) and beat.processes <= 2)


async def test_autoscale_is_refused_by_pools_without_it(workers: dict[str, Worker]) -> None:
    for pool in ("threads", "solo"):
        await workers[pool].is_up()
        with pytest.raises(Refused, match="not started with autoscale"):
            await workers[pool].ask(agent.autoscale(1, 2))


async def test_forked_children_do_not_hold_the_line(workers: dict[str, Worker]) -> None:
    worker = workers["prefork"]
    await worker.is_up()
    await worker.ask(agent.autoscale(3, 3))  # children that were forked while the line was open
    await until(lambda: len(children(worker.pid)) == 3, harness.PATIENCE)
    lines = sockets(worker.pid)
    assert lines
    # One that was forked just now still closes what it has of its parent's.
    await until(
        lambda: not any(sockets(child) for child in children(worker.pid)), harness.PATIENCE, "none of its parent's"
    )
    await worker.ask(agent.autoscale(1, 2))


async def test_statistics_are_celerys_without_the_password(worker: Worker) -> None:
    await worker.is_up()
    stats = await worker.ask(agent.stats())
    assert stats["pid"] == worker.pid
    assert stats["broker"]["uri"].startswith("amqp://guest:**@127.0.0.1")
    assert "guest:guest" not in str(stats)
    assert "rusage" in stats


async def test_what_the_agent_does_not_know_is_refused(worker: Worker) -> None:
    await worker.is_up()
    with pytest.raises(Refused, match="knows no command 'dance'"):
        await worker.ask({"type": "command", "op": "dance"})
    with pytest.raises(Refused, match="name"):
        await worker.ask({"type": "command", "op": "declare", "queue": {}})


async def test_tasks_see_neither_the_settings_nor_the_folder_of_the_agent(
    worker: Worker, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    pool = (await worker.is_up()).pool
    seen = tmp_path / "seen"
    harness.publish(rabbitmq.url, "proj.environment", str(seen), exchange=f"{pool}-exchange", routing_key="work.key")
    await until(seen.exists, harness.PATIENCE)
    lines = seen.read_text().splitlines()
    assert "CELERY_BROKER_URL" in lines
    assert agent.SETTINGS_VARIABLE not in lines
    assert str(harness.AGENT) not in lines


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def sockets(pid: int) -> set[str]:
    """Inodes of the SEQPACKET sockets that the process holds."""
    table = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    of_that_type = {columns[6] for columns in table if columns[4] == "0005"}
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found & of_that_type
