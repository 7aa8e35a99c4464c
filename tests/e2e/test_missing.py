"""Workers that cannot start: created all the same, and their status says what is missing."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.branch import RunningBranch
from tests.e2e.work import PATIENCE, Work
from tests.waiting import until

BROKER = "amqp://127.0.0.1:1//"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"application": "no_such_application"}, "no_such_application"),
        ({"application": "broken"}, "No module named 'no_such_module_anywhere'"),
    ],
    ids=["no such application", "an application that cannot be imported"],
)
async def test_an_application_that_does_not_load_ends_with_its_words_in_the_event(
    branch: RunningBranch, folder: Path, spec: dict[str, Any], words: str
) -> None:
    work = Work(BROKER, folder)
    await branch.client.put_app("shop", {**work.spec, **spec, "restart": {"max_restarts": 1}})
    created = await branch.client.create_instance("shop", {"name": "worker"})
    assert created["name"] == "worker"
    status = await branch.state("shop", "worker", "FATAL")
    assert status["last_exit"]["code"] not in {0, None}
    assert status["reason"]
    async for event in branch.client.events(0):
        if event["data"].get("to") == "FATAL":
            assert words in "\n".join(event["data"]["last_words"])
            break


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        ({"python": "/no/such/interpreter"}, "/no/such/interpreter"),
        ({"python": "no-such-interpreter"}, "no-such-interpreter"),
        ({"directory": "/no/such/directory"}, "/no/such/directory"),
    ],
    ids=["interpreter", "interpreter by its name", "directory"],
)
async def test_what_is_missing_stands_in_the_status_and_once_there_it_starts(
    branch: RunningBranch, folder: Path, spec: dict[str, Any], missing: str
) -> None:
    work = Work(BROKER, folder)
    await branch.client.put_app("shop", {**work.spec, **spec, "restart": {"floor": 0.2, "ceiling": 0.2}})
    await branch.client.create_instance("shop", {"name": "worker"})

    async def explained() -> bool:
        status = await branch.status("shop", "worker")
        assert status["pid"] is None
        return status["state"] in {"BACKOFF", "FATAL"} and missing in status["reason"]

    await until(explained, PATIENCE, f"its status to say that {missing} is missing")

    await branch.client.patch_app("shop", {name: work.spec[name] for name in spec}, restart=True)
    await until(lambda: _runs(branch), PATIENCE, "it to run once nothing is missing")


async def _runs(branch: RunningBranch) -> bool:
    return (await branch.status("shop", "worker"))["pid"] is not None
