"""Consumers, autoscale and statistics of Celery workers over HTTP; tests speak for the worker's agent."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.api.conftest import Api, House
from tests.waiting import until

MAIL = "/v1/apps/shop/instances/mail-1"


class Worker:
    """Does what it is told, and says so."""

    def __init__(self, house: House) -> None:
        self.queues = ["celery"]
        self.scale = [1, 4]
        self.refuses: set[str] = set()  #: queues
        pid = house.processes.spawned[-1].identity.pid
        agent = house.channel.arrive(pid)
        assert agent is not None
        self._agent = agent

    def report(self) -> None:
        self._agent.say(
            {
                "type": "heartbeat", "phase": "up", "pool": "prefork", "loop_age": 0.1, "queues": self.queues,
                "autoscale": self.scale, "processes": self.scale[0],
            }
        )  # fmt: skip

    async def run(self) -> None:
        self.report()
        while True:
            command = await self._agent.commands.get()
            reply = {"type": "reply", "id": command["id"], "ok": None}
            match command:
                case {"op": "declare", "queue": {"name": name}} if name in self.refuses:
                    reply = {"type": "reply", "id": command["id"], "error": "PRECONDITION_FAILED"}
                case {"op": "add_consumer", "queue": {"name": name}}:
                    self.queues.append(name)
                case {"op": "cancel_consumer", "name": name}:
                    self.queues.remove(name)
                case {"op": "autoscale", "min": least, "max": most}:
                    self.scale = [least, most]
                case {"op": "stats"}:
                    reply["ok"] = {"total": {"tasks.add": 3}}
            self._agent.say(reply)
            self.report()


@pytest.fixture
async def worker(api: Api, house: House) -> AsyncIterator[Worker]:
    await api("PUT", "/v1/apps/shop", {"application": "proj", "stop": [{"signal": "KILL", "patience": 1}]})
    assert (await api("PUT", MAIL, {"autoscale": {"min": 1, "max": 4}})).status == 201
    await until(lambda: house.processes.spawned)
    worker = Worker(house)
    task = asyncio.create_task(worker.run())
    await until(lambda: ready(api))
    yield worker
    task.cancel()


async def ready(api: Api) -> bool:
    return bool((await api("GET", MAIL)).json["status"]["state"] == "RUNNING")


async def test_a_consumer_is_added_shown_and_taken_away(api: Api, worker: Worker) -> None:
    added = await api("PUT", f"{MAIL}/queues/bulk")
    assert (added.status, added.json) == (200, {"queue": "bulk", "wanted": True, "consuming": True})
    assert worker.queues == ["celery", "bulk"]
    listed = (await api("GET", f"{MAIL}/queues")).json["items"]
    assert [consumer["queue"] for consumer in listed] == ["bulk", "celery"]
    assert (await api("GET", f"{MAIL}/queues/bulk")).json == added.json
    assert (await api("DELETE", f"{MAIL}/queues/bulk")).status == 204
    assert worker.queues == ["celery"]
    assert (await api("GET", f"{MAIL}/queues/bulk")).slug == "not-found"
    assert (await api("DELETE", f"{MAIL}/queues/bulk")).slug == "not-found"
    assert (await api("DELETE", f"{MAIL}/queues/celery")).slug == "conflict"


async def test_a_queue_that_the_broker_refuses_is_a_conflict_with_its_words(api: Api, worker: Worker) -> None:
    worker.refuses.add("bulk")
    answer = await api("PUT", f"{MAIL}/queues/bulk")
    assert (answer.status, answer.slug) == (409, "conflict")
    assert "PRECONDITION_FAILED" in answer.json["detail"]


async def test_autoscale_is_shown_and_set(api: Api, worker: Worker) -> None:
    assert (await api("GET", f"{MAIL}/autoscale")).json == {"min": 1, "max": 4, "actual": 1}
    answer = await api("PUT", f"{MAIL}/autoscale", {"min": 2, "max": 6})
    assert (answer.status, answer.json["min"], answer.json["max"]) == (200, 2, 6)
    await until(lambda: worker.scale == [2, 6])
    assert (await api("PUT", f"{MAIL}/autoscale", {"min": "2"})).slug == "invalid"
    assert (await api("PUT", f"{MAIL}/autoscale", {"min": 5, "max": 1})).slug == "invalid"


async def test_stats_show_what_the_worker_says(api: Api, worker: Worker) -> None:
    assert (await api("GET", f"{MAIL}/stats")).json["worker"] == {"total": {"tasks.add": 3}}


async def test_commands_have_neither_consumers_nor_autoscale(shop: Api) -> None:
    await shop("PUT", "/v1/apps/shop/instances/web-1", {})
    path = "/v1/apps/shop/instances/web-1"
    for method, what, body in [
        ("GET", "queues", None), ("GET", "queues/x", None), ("PUT", "queues/x", None), ("DELETE", "queues/x", None),
        ("GET", "autoscale", None), ("PUT", "autoscale", {"min": 1, "max": 2}),
    ]:  # fmt: skip
        assert (await shop(method, f"{path}/{what}", body)).slug == "conflict"


async def test_what_is_wrong_with_bounds_is_told_at_their_place(shop: Api) -> None:
    await shop("PUT", "/v1/apps/mail", {"application": "proj", "wanted": "down"})
    await shop("PUT", MAIL.replace("shop", "mail"), {})
    answer = await shop("PUT", f"{MAIL.replace('shop', 'mail')}/autoscale", {"min": 2, "max": 1})
    assert (answer.slug, answer.pointers) == ("invalid", [""])


async def test_a_solo_pool_has_no_autoscale(api: Api) -> None:
    await api("PUT", "/v1/apps/shop", {"application": "proj", "pool": "solo", "wanted": "down"})
    await api("PUT", MAIL, {})
    assert (await api("PUT", f"{MAIL}/autoscale", {"min": 1, "max": 2})).slug == "invalid"
    assert (await api("PUT", MAIL, {"autoscale": {"min": 1, "max": 2}})).pointers == ["/autoscale"]
