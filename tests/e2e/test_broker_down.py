"""Workers whose broker goes away: held, not restarted, and put right when it is back."""

from pathlib import Path

from tests.e2e.branch import RunningBranch
from tests.e2e.work import PATIENCE, Work, truth
from tests.rabbitmq import RabbitMQ
from tests.waiting import until

#: seconds: Celery waits up to 30 between two attempts to reconnect
RECONNECTS = 90


async def test_a_worker_whose_broker_is_down_is_held_and_then_as_wanted(
    branch: RunningBranch, own_rabbitmq: RabbitMQ, folder: Path
) -> None:
    client, work = branch.client, Work(own_rabbitmq.url, folder)
    await client.put_app("shop", work.spec)
    await client.create_instance("shop", {"name": "prefork", "queues": ["first-p"], "autoscale": {"min": 1, "max": 1}})
    await client.create_instance("shop", {"name": "threads", "queues": ["first-t"], "pool": "threads"})
    await client.create_instance("shop", {"name": "doomed", "queues": ["first-d"], "pool": "solo"})
    before = {name: await branch.ready("shop", name) for name in ("prefork", "threads")}
    await branch.ready("shop", "doomed")
    for name in before:
        await client.put_queue("shop", f"early-{name}", {"exchange": f"early-{name}-exchange", "routing_key": "early"})
        await client.add_consumer("shop", name, f"early-{name}")

    own_rabbitmq.stop()
    for name in before:

        async def cut_off(name: str = name) -> bool:
            return truth(await branch.status("shop", name), "Ready")[0] == "False"

        await until(cut_off, PATIENCE, f"{name} to notice")
    for name in before:
        await client.put_queue("shop", f"late-{name}", {"exchange": f"late-{name}-exchange", "routing_key": "late"})
        answer = await client.add_consumer("shop", name, f"late-{name}")
        assert answer == {"queue": f"late-{name}", "wanted": True, "consuming": None}
    await client.cancel_consumer("shop", "threads", "first-t")
    await client.set_autoscale("shop", "prefork", 2, 3)
    await client.create_instance("shop", {"name": "born", "queues": ["first-b"], "pool": "solo"})

    async def tried_again(name: str) -> bool:
        return "refused" in truth(await branch.status("shop", name), "Ready")[1]

    for name in (*before, "born"):
        await until(lambda name=name: tried_again(name), PATIENCE, f"{name} to say why it is not ready")
        assert truth(await branch.status("shop", name), "CeleryResponsive")[0] == "True"
    born = await branch.status("shop", "born")
    doomed = (await client.stop("shop", "doomed", wait=PATIENCE))["status"]
    assert (doomed["state"], doomed["last_exit"]["code"]) == ("STOPPED", 0), "a stop needs no broker"

    own_rabbitmq.start()
    wanted = {
        "prefork": {"first-p", "early-prefork", "late-prefork"},
        "threads": {"early-threads", "late-threads"},
        "born": {"first-b"},
    }
    for name, queues in wanted.items():

        async def as_wanted(name: str = name, queues: set[str] = queues) -> bool:
            consumers = (await client.consumers("shop", name))["items"]
            return {item["queue"] for item in consumers if item["consuming"]} == queues

        await until(as_wanted, RECONNECTS, f"{name} to consume from {queues}")
        status = await branch.ready("shop", name)
        assert (status["pid"], status["restarts"]) == ((before.get(name) or born)["pid"], 0)
        assert truth(status, "QueuesInSync")[0] == "True"

    async def scaled() -> bool:
        return bool((await client.autoscale("shop", "prefork"))["actual"] >= 2)

    await until(scaled, PATIENCE, "the pool to be as wanted")
    for name in before:
        for when in ("early", "late"):
            sent = work.send("add", 1, 2, exchange=f"{when}-{name}-exchange", routing_key=when)
            assert await work.result(sent) == 3
    assert await work.result(work.send("add", 3, 4, queue="first-b")) == 7
