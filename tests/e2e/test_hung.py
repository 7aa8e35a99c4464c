"""Hung or only busy, with an agent or without: what is killed and what is left alone."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.branch import RunningBranch, alive
from tests.e2e.work import PATIENCE, Work, truth
from tests.rabbitmq import RabbitMQ
from tests.waiting import until

POOLS = ("prefork", "threads", "solo")


async def test_a_stopped_worker_is_hung_and_replaced(branch: RunningBranch, rabbitmq: RabbitMQ, folder: Path) -> None:
    client, work = branch.client, Work(rabbitmq.url, folder)
    await client.put_app("hung", work.spec)
    for pool in POOLS:
        await client.create_instance("hung", {"name": pool, "pool": pool, "concurrency": 1, "queues": [f"hung-{pool}"]})
    before = {pool: (await branch.ready("hung", pool))["pid"] for pool in POOLS}
    after = await client.last_event()

    for pid in before.values():
        os.kill(pid, signal.SIGSTOP)

    reasons: dict[str, str] = {}
    async for event in client.events(after):
        if event["data"].get("reason"):
            reasons[event["instance"]] = event["data"]["reason"]
        if len(reasons) == len(POOLS):
            break
    assert all(reason.startswith("hung: no heartbeat") for reason in reasons.values()), reasons

    for pool in POOLS:

        async def replaced(pool: str = pool) -> bool:
            return (await branch.status("hung", pool))["pid"] not in {None, before[pool]}

        await until(replaced, PATIENCE, f"a new {pool}")
        await branch.ready("hung", pool)
        assert not alive(before[pool])
        assert await work.result(work.send("add", 1, 2, queue=f"hung-{pool}")) == 3


async def test_a_task_that_holds_the_interpreter_is_no_hang(
    branch: RunningBranch, rabbitmq: RabbitMQ, folder: Path
) -> None:
    work = Work(rabbitmq.url, folder)
    await branch.client.put_app("busy", {**work.spec, "pool": "solo", "queues": ["busy"]})
    await branch.client.create_instance("busy", {"name": "solo"})
    before = await branch.ready("busy", "solo")
    sent = work.send("crunch", CRUNCHED, queue="busy")

    async def held() -> str:
        status = await branch.status("busy", "solo")
        kind, reason = truth(status, "Ready")
        assert (status["pid"], status["restarts"]) == (before["pid"], 0), status
        return reason if kind == "False" or reason else ""

    assert (await until(held, PATIENCE, "it to be held")).startswith("busy: no heartbeat")
    assert await work.result(sent) == CRUNCHED * (CRUNCHED - 1) // 2
    status = await branch.ready("busy", "solo")
    assert (status["pid"], status["restarts"]) == (before["pid"], 0)


#: numbers whose sum takes some 15 s on an idle machine: longer than the silence after which a worker is looked at
CRUNCHED = 600_000_000


@pytest.mark.faults  # it takes as long as an agent has to speak
async def test_a_worker_without_an_agent_is_a_plain_process(
    branch: RunningBranch, rabbitmq: RabbitMQ, folder: Path
) -> None:
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nunset BRANCHD_AGENT\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    work = Work(rabbitmq.url, folder)
    await branch.client.put_app("plain", {**work.spec, "python": str(wrapper), "queues": ["plain"]})
    await branch.client.create_instance("plain", {"name": "worker"})
    status = await branch.state("plain", "worker", "RUNNING")
    assert truth(status, "CeleryResponsive")[0] == "Unknown"
    assert "plain process" in truth(status, "CeleryResponsive")[1]
    assert await work.result(work.send("add", 1, 2, queue="plain")) == 3

    os.kill(status["pid"], signal.SIGKILL)

    async def replaced() -> Any:
        return (await branch.status("plain", "worker"))["pid"] not in {None, status["pid"]}

    await until(replaced, PATIENCE, "a new process")
