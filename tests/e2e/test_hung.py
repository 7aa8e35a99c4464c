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


async def test_a_task_that_holds_the_interpreter_is_no_hang_until_its_limit(
    branch: RunningBranch, rabbitmq: RabbitMQ, folder: Path
) -> None:
    client, work = branch.client, Work(rabbitmq.url, folder)
    await client.put_app("busy", {**work.spec, "concurrency": 1})
    names = ("threads", "solo", "impatient")
    for name, spec in zip(
        names, ({"pool": "threads"}, {"pool": "solo"}, {"pool": "solo", "task_stall_limit": 1}), strict=True
    ):
        await client.create_instance("busy", {"name": name, "queues": [f"busy-{name}"], **spec})
    before = {name: (await branch.ready("busy", name))["pid"] for name in names}
    after = await client.last_event()
    files, sent = {}, {}
    for name in names:
        files[name] = folder / f"{name}.hold"
        files[name].write_text("0")
        sent[name] = work.send("hold_interpreter", str(files[name]), queue=f"busy-{name}")

    for name in ("threads", "solo"):

        async def held(name: str = name) -> bool:
            status = await branch.status("busy", name)
            assert (status["pid"], status["restarts"]) == (before[name], 0), status
            return truth(status, "Ready")[1].startswith("busy: no heartbeat")

        await until(held, PATIENCE, f"{name} to be held")

    for name in ("threads", "solo"):
        with files[name].open("r+") as text:
            text.write("1")
        assert await work.result(sent[name]) == "let go"

        async def well(name: str = name) -> bool:
            return truth(await branch.status("busy", name), "Ready") == ("True", "")

        await until(well, PATIENCE, f"{name} to be well again")
        status = await branch.status("busy", name)
        assert (status["pid"], status["restarts"]) == (before[name], 0)

    async for event in client.events(after):
        if event["data"].get("reason"):
            assert event["instance"] == "impatient"
            assert "task_stall_limit" in event["data"]["reason"]
            break


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
