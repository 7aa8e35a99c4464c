"""branchctl over several branches: whose instances are meant, and what it says where some do not answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from branchd.api import scatter
from branchd.cli.control import main
from branchd.client import BranchdClient
from tests.api.conftest import COMMAND
from tests.api.neighbourhood import Neighbourhood, neighbourhood


class Town:
    """a, b and c with the app `shop`; nginx on b and c, web on b."""

    def __init__(self, branches: Neighbourhood, socket: str) -> None:
        self.branches = branches
        self.url = f"unix:{socket}"

    async def control(self, *arguments: str, code: int = 0) -> Result:
        """What branchctl says that asks a."""
        runner = CliRunner()
        result = await asyncio.to_thread(runner.invoke, main, ["--url", self.url, *arguments])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
        return result

    def state(self, branch: str, name: str) -> str:
        return str(self.branches[branch].service.instances.get("shop", name).status.state)


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with neighbourhood(tmp_path, "a", "b", "c") as branches:
        for member in branches.members.values():
            await member.api("PUT", "/v1/apps/shop", {**COMMAND, "user": "www"})
        for branch, name in (("b", "nginx"), ("c", "nginx"), ("b", "web")):
            made = await branches[branch].api("PUT", f"/v1/apps/shop/instances/{name}?local=1&wait=5s", {})
            assert made.status == 201
        yield Town(branches, f"{tmp_path}/a.sock")


async def test_the_list_shows_the_branch_of_each(town: Town) -> None:
    head, *rows = (await town.control("ps")).stdout.splitlines()
    assert head.split()[:3] == ["NAME", "BRANCH", "STATE"]
    assert [row.split()[:2] for row in rows] == [["shop:nginx", "b"], ["shop:nginx", "c"], ["shop:web", "b"]]
    assert (await town.control("ps", "-o", "name")).stdout.split() == ["b/shop:nginx", "c/shop:nginx", "shop:web"]
    assert (await town.control("-L", "ps", "-o", "name")).stdout == ""


async def test_a_selector_may_name_the_branch(town: Town) -> None:
    assert "shop:nginx: STOPPED" in (await town.control("stop", "c/shop:nginx")).stdout
    assert (town.state("b", "nginx"), town.state("c", "nginx")) == ("RUNNING", "STOPPED")
    refused = await town.control("stop", "shop:nginx", code=1)
    assert "one of b/shop:nginx, c/shop:nginx" in refused.stderr
    refused = await town.control("stop", "nginx", code=1)
    assert "on several branches" in refused.stderr
    assert (await town.control("ps", "-o", "name", "*/shop:nginx", code=3)).stdout.split() == [
        "b/shop:nginx",
        "c/shop:nginx",
    ]
    both = await town.control("start", "shop:ngin*")
    assert both.stdout.splitlines() == [line for line in both.stdout.splitlines() if "RUNNING" in line]
    assert [line.split(": ")[0] for line in both.stdout.splitlines()] == ["b/shop:nginx", "c/shop:nginx"]
    await town.control("rm", "[bc]/shop:nginx")
    assert [instance.name for instance in town.branches["b"].service.instances.list()] == ["web"]
    await town.control("ps", "a/shop:web", code=4)


async def test_every_command_reaches_a_remote_instance(town: Town) -> None:
    await town.control("restart", "web")
    await town.control("signal", "HUP", "web")
    assert "Branch" in (await town.control("show", "web")).stdout
    await town.control("set", "web", "--label", "team=pay")
    assert (await town.control("ps", "-l", "team=pay", "-o", "name")).stdout == "shop:web\n"
    assert (await town.control("logs", "web")).stdout == ""
    assert json.loads((await town.control("stats", "web", "-o", "json")).stdout)["pid"]
    told = (await town.control("events", "--branch", "b", "--instance", "web", "-o", "jsonl")).stdout.splitlines()
    assert {json.loads(line)["instance"] for line in told} == {"web"}
    assert (await town.control("events", "--instance", "web", "--type", "instance.")).stdout == ""


async def test_new_instances_are_pinned_where_it_is_said(town: Town) -> None:
    town.branches.chosen = "c"
    assert "created on c" in (await town.control("create", "shop", "one")).stdout
    assert "created on b" in (await town.control("create", "shop", "two", "--branch", "b")).stdout
    made = await town.control("create", "shop", "--count", "3", "-o", "json")
    assert {one["branch"] for one in json.loads(made.stdout)["items"]} == {"c"}
    assert "exclude" in (await town.control("create", "shop", "x", "--count", "2", code=2)).stderr


async def test_what_could_not_be_created_of_several_is_told(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"type": "urn:branchd:problem:no-capacity", "detail": "a: full; b: full"}

    async def create(self: BranchdClient, app: str, body: Any, count: int, **_: Any) -> Any:
        return {"items": [await self.instance(app, "web")], "problems": [problem] * (count - 1)}

    monkeypatch.setattr(BranchdClient, "create_instances", create)
    result = await town.control("create", "shop", "--count", "2", code=7)
    assert ("shop:web" in result.stdout, "a: full" in result.stderr) == (True, True)


async def test_an_answer_that_is_not_complete_says_so(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scatter, "PATIENCE", 0.8)
    town.branches.silent = {"c"}
    missing = "not complete, these branches did not answer: c\n"
    listed = await town.control("ps", code=7)
    assert (listed.stderr, len(listed.stdout.splitlines())) == (missing, 3)
    document = json.loads((await town.control("ps", "shop:*", "-o", "json", code=7)).stdout)
    assert (document["partial"], document["unreachable"]) == (True, ["c"])
    stopped = await town.control("stop", "shop:ngin*", code=7)
    assert (stopped.stderr, town.state("b", "nginx"), town.state("c", "nginx")) == (missing, "STOPPED", "RUNNING")
    unsure = await town.control("ps", "shop:none", code=7)
    assert "no instance matches shop:none on the branches that answered" in unsure.stderr
    assert "c did not answer" in unsure.stderr
    assert (await town.control("branch", "ls", "-o", "name")).stdout.split() == ["a", "b", "c"]
    assert (await town.control("branch", "ls", "--fresh", code=7)).stderr == missing
    assert (await town.control("-L", "branch", "ls", "-o", "name")).stdout == "a\n"
