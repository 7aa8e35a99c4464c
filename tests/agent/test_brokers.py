"""The agent where the broker goes away or is not RabbitMQ, where the daemon goes away, and where it cannot hook in."""

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from branchd.core.errors import NoChannel, Refused
from branchd.core.health import Phase
from branchd.core.values import QueueDeclaration
from branchd.wire import agent
from tests.agent import harness
from tests.agent.harness import Daemon
from tests.free_port import free_port
from tests.rabbitmq import RabbitMQ
from tests.redis_server import redis_server
from tests.waiting import until


@pytest_asyncio.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with harness.daemon(tmp_path) as listening:
        yield listening


def filesystem(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What a worker and a client need for a broker that is a folder: environment, transport options."""
    messages = folder / "messages"
    messages.mkdir()
    options = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), str(messages))
    return {"PROJ_FOLDER": str(messages)}, options


async def test_without_a_broker_a_worker_boots_says_why_answers_and_ends(daemon: Daemon) -> None:
    url = f"amqp://guest:sesame@127.0.0.1:{free_port()}//"
    with harness.worker(daemon, url, "-P", "threads") as worker:
        beat = await worker.shows(lambda beat: beat.error)
        assert beat.phase == Phase.BOOT
        assert beat.error
        assert "sesame" not in beat.error
        assert (beat.loop_age, beat.queues) == (None, ())
        with pytest.raises(Refused, match="not connected to the broker"):
            await worker.ask(agent.stats())
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ends() == 0


async def test_a_broker_that_goes_and_comes_back(daemon: Daemon, own_rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    queue = QueueDeclaration("later")
    with contextlib.ExitStack() as stack:
        threads, solo, prefork = workers = [
            stack.enter_context(harness.worker(daemon, own_rabbitmq.url, "-P", pool, *extra, name=pool))
            for pool, *extra in (("threads",), ("solo",), ("prefork", "--autoscale=1,1"))
        ]
        for worker in workers:
            await worker.is_up()
            await worker.ask(agent.add_consumer(queue))

        own_rabbitmq.kill()
        for worker in workers:
            await worker.shows(lambda beat: beat.phase == Phase.DOWN and beat.error)
            with pytest.raises(Refused, match="not connected to the broker"):
                await worker.ask(agent.add_consumer(queue))
        solo.process.send_signal(signal.SIGTERM)
        assert await solo.ends() == 0

        own_rabbitmq.start()
        for worker in (threads, prefork):
            beat = await worker.is_up()
            assert beat.error is None
            assert beat.queues
            assert "later" in beat.queues, "Celery itself remembers what it was told to consume from"
        done = tmp_path / "done"
        harness.publish(own_rabbitmq.url, "proj.note", str(done), queue="later")
        await until(done.exists, harness.PATIENCE)


async def test_term_ends_it_in_order_and_it_says_that_it_is_stopping(daemon: Daemon, tmp_path: Path) -> None:
    environment, options = filesystem(tmp_path)
    with harness.worker(daemon, "filesystem://", "-P", "threads", environment=environment) as worker:
        await worker.is_up()
        go_on = tmp_path / "go on"
        harness.publish("filesystem://", "proj.wait_for", str(go_on), transport_options=options)
        await worker.shows(lambda beat: beat.active == 1)
        worker.process.send_signal(signal.SIGTERM)
        beat = await worker.shows(lambda beat: beat.phase == Phase.STOPPING)
        assert beat.active == 1
        go_on.touch()
        assert await worker.ends() == 0
        await until(lambda: not daemon.channel.connected(worker.pid))


async def test_a_folder_as_broker_carries_tasks_and_consumers(daemon: Daemon, tmp_path: Path) -> None:
    environment, options = filesystem(tmp_path)
    with harness.worker(daemon, "filesystem://", "-P", "prefork", "--autoscale=1,1", environment=environment) as worker:
        await worker.is_up()
        assert await worker.ask(agent.add_consumer(QueueDeclaration("more"))) == "more"
        done = tmp_path / "done"
        harness.publish("filesystem://", "proj.note", str(done), queue="more", transport_options=options)
        await until(done.exists, harness.PATIENCE)
        assert (await worker.ask(agent.autoscale(2, 2)))["processes"] == 2
        assert await worker.ask(agent.cancel_consumer("more")) == "more"
        await worker.shows(lambda beat: beat.queues and "more" not in beat.queues)


async def test_redis_as_broker_carries_tasks_and_consumers(daemon: Daemon, tmp_path: Path) -> None:
    with redis_server() as url, harness.worker(daemon, url, "-P", "threads") as worker:
        await worker.is_up()
        queue = QueueDeclaration("more", exchange="things", routing_key="some")
        assert await worker.ask(agent.add_consumer(queue)) == "more"
        done = tmp_path / "done"
        harness.publish(url, "proj.note", str(done), exchange="things", routing_key="some")
        await until(done.exists, harness.PATIENCE)


async def test_it_finds_the_next_daemon(daemon: Daemon, tmp_path: Path) -> None:
    environment, _ = filesystem(tmp_path)
    with harness.worker(daemon, "filesystem://", "-P", "solo", environment=environment) as worker:
        await worker.is_up()
        daemon.restart([worker.pid])
        with pytest.raises(NoChannel):
            await worker.ask(agent.stats())
        await worker.is_up()
        assert (await worker.ask(agent.stats()))["pid"] == worker.pid


async def test_hup_gives_a_new_worker_in_the_same_process_with_an_agent(daemon: Daemon, tmp_path: Path) -> None:
    environment, _ = filesystem(tmp_path)
    with harness.worker(daemon, "filesystem://", "-P", "solo", environment=environment) as worker:
        await worker.is_up()
        await worker.ask(agent.add_consumer(QueueDeclaration("until-restarted")))
        await worker.shows(lambda beat: beat.queues and "until-restarted" in beat.queues)
        worker.process.send_signal(signal.SIGHUP)
        await worker.shows(lambda beat: beat.phase == Phase.UP and "until-restarted" not in (beat.queues or ()))


#: what may go wrong before the agent hooks in, or after it
BROKEN_SETTINGS = {
    "none": "",
    "no-json": "{",
    "empty": "{}",
    "nobody-listens": '{"socket": "/nowhere/agents.sock", "queues": [{}]}',
}


async def test_a_worker_whose_agent_cannot_work_works(daemon: Daemon, tmp_path: Path) -> None:
    environment, options = filesystem(tmp_path)
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                harness.worker(
                    *(daemon, "filesystem://", "-P", "solo", "-Q", name),
                    name=name,
                    environment={**environment, agent.SETTINGS_VARIABLE: settings},
                )
            )
            for name, settings in BROKEN_SETTINGS.items()
        ]
        for name, worker in zip(BROKEN_SETTINGS, workers, strict=True):
            done = tmp_path / name
            harness.publish("filesystem://", "proj.note", str(done), queue=name, transport_options=options)
            await until(done.exists, harness.PATIENCE, worker.log())
            assert not daemon.channel.connected(worker.pid)
            worker.process.send_signal(signal.SIGTERM)
        for worker in workers:
            assert await worker.ends() == 0
