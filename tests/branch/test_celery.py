"""Workers over fakes: tests speak for the agents."""

import asyncio

import pytest

from branchd.core.errors import Conflict, Invalid, NotFound
from branchd.core.lifecycle import State
from branchd.core.values import Exit
from tests.branch.conftest import ADMIN
from tests.waiting import until

UP = {"type": "heartbeat", "phase": "up", "pool": "prefork", "loop_age": 0.1, "autoscale": [4, 4], "queues": ["celery"],
      "processes": 4}  # fmt: skip


class Worker:
    """What a worker's agent does: reports, and carries out what it is told, unless it is told to refuse."""

    def __init__(self, agent):
        self._agent = agent
        self.report = dict(UP)
        self.refuses = {}
        self.told = []
        self._work = asyncio.ensure_future(self._obey())

    def say(self, **changes):
        self.report.update(changes)
        self._agent.say(self.report)

    async def _obey(self):
        while True:
            command = await self._agent.commands.get()
            self.told.append(command["op"])
            queues = self.report["queues"]
            name = command.get("name") or command.get("queue", {}).get("name")
            if name in self.refuses:
                self._agent.say({"type": "reply", "id": command["id"], "error": self.refuses[name]})
                continue
            match command["op"]:
                case "add_consumer":
                    self.report["queues"] = [*queues, name]
                case "cancel_consumer":
                    self.report["queues"] = [queue for queue in queues if queue != name]
                case "autoscale":
                    self.report["autoscale"] = [command["min"], command["max"]]
                    self.report["processes"] = command["max"]
            self._agent.say({"type": "reply", "id": command["id"], "ok": {}})
            self.say()

    def end(self):
        self._work.cancel()


@pytest.fixture
async def workers(service, house):
    await service.apps.put("shop", {"application": "proj"})
    made = []

    async def start(name, **spec):
        await service.instances.create(ADMIN, "shop", {"name": name, **spec})
        return await arrive(name)

    async def arrive(name):
        pid = await until(lambda: service.instances.get("shop", name).status.pid)
        worker = Worker(house.channel.arrive(pid))
        made.append(worker)
        return worker

    start.arrive = arrive
    yield start
    for worker in made:
        worker.end()


def conditions(service, name):
    return {c.type.value: (c.status.value, c.reason) for c in service.instances.get("shop", name).status.conditions}


async def test_a_worker_runs_when_its_agent_says_that_it_is_up(service, workers):
    worker = await workers("a")
    worker.say(phase="boot", queues=[])
    assert service.instances.get("shop", "a").status.state is State.STARTING
    assert conditions(service, "a")["Ready"] == ("False", "not connected to its broker yet")
    worker.say(phase="up", queues=["celery"])
    await until(lambda: service.instances.get("shop", "a").status.state is State.RUNNING)
    worker.say(phase="down", error="connection refused")
    assert service.instances.get("shop", "a").status.state is State.RUNNING
    assert conditions(service, "a")["Ready"] == ("False", "its broker is unreachable: connection refused")
    assert conditions(service, "a")["CeleryResponsive"][0] == "True"


async def test_a_consumer_is_wanted_state_and_is_replayed_by_the_next_process(service, house, workers):
    worker = await workers("a")
    worker.say()
    consumer = await service.celery.put_consumer("shop", "a", "bulk")
    assert (consumer.wanted, consumer.consuming) == (True, True)
    assert worker.told == ["declare", "add_consumer"]
    assert service.instances.get("shop", "a").spec["queues"] == ["celery", "bulk"]
    house.processes.end(house.processes.spawned[0].identity.pid, Exit(signal=9))
    await until(lambda: len(house.processes.spawned) == 2)
    assert "celery,bulk" in house.processes.spawned[1].launch.argv
    second = await workers.arrive("a")
    second.say(queues=["celery"])  # and where the worker does not take it up by itself, it is told
    await until(lambda: conditions(service, "a")["QueuesInSync"] == ("True", ""))


async def test_a_queue_that_the_broker_refuses_changes_nothing_and_says_why(service, workers):
    worker = await workers("a")
    worker.say()
    worker.refuses["bulk"] = "PRECONDITION_FAILED - inequivalent arg 'durable'"
    with pytest.raises(Conflict, match="PRECONDITION_FAILED"):
        await service.celery.put_consumer("shop", "a", "bulk")
    assert service.instances.get("shop", "a").spec == {}


async def test_a_consumer_that_is_wanted_while_the_broker_is_away_is_taken_up_later(service, workers):
    worker = await workers("a")
    worker.say(phase="down", queues=[])
    worker.refuses["bulk"] = "not connected to the broker"
    consumer = await service.celery.put_consumer("shop", "a", "bulk")
    assert (consumer.wanted, consumer.consuming) == (True, None)
    worker.refuses.clear()
    worker.say(phase="up", queues=["celery"])
    await until(lambda: "bulk" in worker.report["queues"])


async def test_the_last_queue_stays_and_one_that_is_not_there_cannot_be_cancelled(service, workers):
    worker = await workers("a", queues=["mail", "bulk"])
    worker.say(queues=["mail", "bulk"])
    await service.celery.delete_consumer("shop", "a", "bulk")
    assert worker.report["queues"] == ["mail"]
    with pytest.raises(NotFound):
        await service.celery.delete_consumer("shop", "a", "bulk")
    with pytest.raises(Conflict, match="last queue"):
        await service.celery.delete_consumer("shop", "a", "mail")


async def test_autoscale_follows_and_is_refused_where_the_pool_cannot(service, workers):
    worker = await workers("a")
    worker.say()
    await service.celery.put_autoscale("shop", "a", {"min": 2, "max": 3})
    await until(lambda: worker.report["autoscale"] == [2, 3])
    scale = service.celery.autoscale("shop", "a")
    assert (scale.min, scale.max, scale.actual) == (2, 3, 3)
    await workers("b", pool="solo")
    with pytest.raises(Invalid, match="1 field"):
        await service.celery.put_autoscale("shop", "b", {"min": 1, "max": 2})
    with pytest.raises(Invalid):
        await service.celery.put_autoscale("shop", "a", {"min": 5, "max": 2})


async def test_a_lost_line_makes_nothing_known_and_kills_nobody(service, house, workers):
    worker = await workers("a")
    worker.say()
    await until(lambda: service.instances.get("shop", "a").status.state is State.RUNNING)
    house.channel.agents[1000].leave()
    assert conditions(service, "a")["CeleryResponsive"][0] == "Unknown"
    assert house.processes.killed_trees == []


async def test_what_somebody_else_cancelled_is_consumed_again(service, workers):
    worker = await workers("a", queues=["mail"])
    worker.say(queues=["mail"])
    worker.say(queues=[])
    await until(lambda: worker.report["queues"] == ["mail"])


async def test_the_brokers_url_is_in_the_environment_and_nowhere_else(service, house, workers):
    await service.apps.patch("shop", {"broker": "amqp://user:secret@host//"})
    await workers("a")
    launch = house.processes.spawned[0].launch
    assert launch.env["CELERY_BROKER_URL"] == "amqp://user:secret@host//"
    assert not any("secret" in word for word in launch.argv)
    assert "secret" not in str(service.instances.get("shop", "a")) + str(service.apps.get("shop"))
