"""branchctl branch, operation, explain and doctor, over branches with real meshes, and where no daemon is."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from branchd.branch.ending import Ending
from branchd.cli import operations, refusal
from branchd.cli.control import main
from branchd.cli.exits import Exit
from branchd.client import BranchdClient
from branchd.core.errors import Fatal
from tests.api.meshes import Branch, Branches, created, meshes


class Town:
    """a, b and c, which share the app `shop`."""

    def __init__(self, branches: Branches) -> None:
        self.branches = branches
        self.a, self.b, self.c = branches.values()

    async def control(self, *arguments: str, code: int = 0, at: str = "a") -> Result:
        url = f"unix:{self.branches[at].socket}"
        result = await asyncio.to_thread(CliRunner().invoke, main, ["--url", url, *arguments])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
        return result

    async def fill(self, branch: Branch, program: str = "sleep") -> str:
        """The name of a new instance there."""
        for number in range(20):
            name = f"w{number}-{program}"
            if await created(self.a, name) == branch.name:
                changed = await branch.api("PATCH", f"/v1/apps/shop/instances/{name}", {"command": [program, "1"]})
                assert changed.status == 200
                return name
        raise AssertionError("none came there")


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with meshes(tmp_path, "a", "b", "c") as branches:
        yield Town(branches)


# Branches


async def test_the_list_shows_how_much_room_there_is(town: Town) -> None:
    await created(town.a, "web", weight=3)
    head, *rows = (await town.control("branch", "ls", "--fresh")).stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "SLOTS", "RESERVED", "VERSION", "LABELS", "SEEN", "ADDRESS"]
    assert [row.split()[:3] for row in rows] == [[name, "up", "16"] for name in ("a", "b", "c")]
    assert sorted(row.split()[3] for row in rows) == ["0", "0", "3"]
    assert "LOAD" in (await town.control("branch", "ls", "-o", "wide")).stdout
    shown = (await town.control("branch", "show", "b")).stdout
    assert town.b.service.id in shown
    assert json.loads((await town.control("branch", "show", "b", "-o", "json")).stdout)["name"] == "b"
    await town.control("branch", "show", "nowhere", code=4)


async def test_a_drain_is_followed_to_its_end_with_a_line_for_each_step(town: Town) -> None:
    await town.fill(town.b)
    for number in range(3):
        await created(town.a, f"x{number}")
    there = town.b.runs
    drained = await town.control("branch", "drain", "b")
    # the daemons of this test write their log there too
    head, *steps, last = [line for line in drained.stdout.splitlines() if "[info" not in line]
    identifier = head.partition(":")[0]
    assert head == f"{identifier}: drain of branch b"
    assert sorted(line.split(":")[1] for line in steps) == sorted(there)
    assert all(": done, moved to " in line for line in steps)
    assert last == f"{identifier}: done, {len(there)}/{len(there)} done"
    assert (town.b.runs, drained.stderr) == ([], "")
    assert (await town.control("branch", "ls", "--fresh")).stdout.count("draining") == 1
    assert "b: takes new instances" in (await town.control("branch", "undrain", "b")).stdout
    shown = await town.control("operation", "show", identifier)
    assert shown.stdout.count("moved to") == len(there)
    assert (await town.control("operation", "ls", "-o", "name")).stdout == f"{identifier}\n"


async def test_a_drain_that_leaves_something_behind_fails_and_says_why(town: Town) -> None:
    heavy = await town.fill(town.b)
    assert (await town.b.api("PATCH", f"/v1/apps/shop/instances/{heavy}", {"weight": 100})).status == 200
    left = await town.control("branch", "drain", "b", code=1)
    assert f"shop:{heavy}: failed, " in left.stdout
    assert "it stays here" in left.stdout
    assert heavy in town.b.runs
    document = json.loads((await town.control("branch", "drain", "b", "-o", "json", code=1)).stdout)
    assert (document["state"], document["kind"]) == ("failed", "drain")


async def test_a_drain_need_not_be_waited_for_and_can_be_cancelled(town: Town) -> None:
    for branch in (town.a, town.c):
        branch.house.processes.missing.add("odd")
    name = await town.fill(town.b, "odd")
    late = await town.control("branch", "drain", "b", "--timeout", "1s", code=124)
    identifier = late.stdout.partition(":")[0]
    assert f"branchctl operation show {identifier}" in late.stderr
    again = json.loads((await town.control("branch", "drain", "b", "--no-wait", "-o", "json", at="c")).stdout)
    assert (again["id"], again["state"]) == (identifier, "running")
    cancelled = await town.control("operation", "cancel", identifier)
    assert cancelled.stdout.startswith(f"{identifier}: cancelled, ")
    assert f"shop:{name}: kept" in (await town.control("operation", "show", identifier)).stdout
    assert "has ended" in (await town.control("operation", "cancel", identifier, code=1)).stderr
    await town.control("operation", "show", "b-00", code=4)
    assert name in town.b.runs


async def test_pinned_instances_are_stopped_when_that_is_asked(town: Town) -> None:
    await town.control("create", "shop", "here", "--branch", "b", "--user", "www")
    await town.control("branch", "drain", "b")
    assert town.b.runs == ["here"]
    assert "shop:here: done, stopped" in (await town.control("branch", "drain", "b", "--pinned")).stdout
    assert town.b.runs == []
    await town.control("branch", "undrain", "b")
    await town.control("start", "b/shop:here")
    assert town.b.runs == ["here"]


async def test_only_its_own_api_ends_a_daemon(town: Town) -> None:
    assert "its own API" in (await town.control("branch", "shutdown", "b", code=5)).stderr
    assert town.b.service.endings.chosen is None
    assert "b: is ending" in (await town.control("branch", "shutdown", "b", at="b")).stdout
    assert town.b.service.endings.chosen is Ending.STOP


async def test_an_operator_says_that_who_vanished_is_gone(town: Town) -> None:
    assert "b: holds them for gone" in (await town.control("branch", "confirm", "b")).stdout


# Explaining


async def test_why_a_placed_instance_is_where_it_is(town: Town) -> None:
    owner = await created(town.b, "web")
    await town.control("restart", "shop:web")
    told = (await town.control("explain", "shop:web")).stdout
    for words in (
        "branch b asked for room at",
        "0 of 16 slots taken, 0 of the app there, load 0.50 a core: would take it",
        f"offered to branch {owner}: accepted",
        "outcome: accepted",
        f"on branch {owner} (placed)",
        "it is wanted up",
        "STARTING -> RUNNING",
    ):
        assert words in told, words
    document = json.loads((await town.control("explain", "web", "-o", "json", at="c")).stdout)
    assert (document["placement"]["by"], document["instance"]["branch"]) == ("b", owner)
    assert document["events"][-1]["data"]["to"] == "RUNNING"


async def test_why_one_is_nowhere_and_why_one_is_pinned(town: Town) -> None:
    refused = await town.control("create", "shop", "big", "--json", '{"weight": 17}', code=1)
    assert "no room" in refused.stderr or "slots" in refused.stderr
    told = (await town.control("explain", "shop:big", at="c")).stdout
    assert told.count("would not take it: ") == 3
    assert "no branch has it" in told
    await town.control("create", "shop", "here", "--branch", "b", "--user", "www")
    assert "pinned: it was declared for branch b" in (await town.control("explain", "shop:here")).stdout
    assert "no instance matches" in (await town.control("explain", "shop:none", code=4)).stderr
    await town.control("explain", "none", code=4)


# Doctor


async def test_doctor_tells_the_failures_first_each_with_its_cure(town: Town) -> None:
    await town.control("doctor")
    town.a.mesh.link.dropped["forged"] += 3
    lines = (await town.control("doctor", code=1)).stdout.splitlines()
    assert lines[0].startswith("FAILURE  messages: 3 dropped as 'forged': not written with the neighbourhood's key")
    assert lines[1].startswith("         do: somebody who knows the broker's password")
    assert [line.split()[0] for line in lines if not line.startswith(" ")][1:3] == ["WARNING", "OK"]
    document = json.loads((await town.control("doctor", "-o", "json", code=1)).stdout)
    assert (document["branch"], document["findings"][0]["level"]) == ("a", "failure")
    assert (await town.control("doctor", "--branch", "b")).stdout.startswith("WARNING")
    assert (await town.control("doctor", "-o", "name", code=1)).stdout.splitlines()[0] == "messages"
    await town.control("doctor", "--branch", "a", code=1, at="c")
    await town.control("doctor", "--branch", "nowhere", code=4)


def test_doctor_says_why_the_last_start_was_refused(tmp_path: Path) -> None:
    def doctor(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["--run", str(tmp_path), *arguments, "doctor"])
        assert result.exit_code == 6, result.output
        return result.stdout

    assert "FAILURE  daemon: no daemon answers" in doctor()
    assert "branchd run" in doctor()
    assert "start:" not in doctor()
    refusal.leave(tmp_path, Fatal("the key file k is not there", "branchd key new k"))
    told = doctor().splitlines()
    assert "was refused: the key file k is not there" in told[2]
    assert told[3].strip() == "do: branchd key new k"
    assert "the key file k" in doctor("--url", f"unix:{tmp_path}/elsewhere.sock")
    refusal.clear(tmp_path)
    assert "start:" not in doctor()


async def test_a_terminal_shows_how_far_it_is_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def seen(state: str, *states: str) -> dict[str, Any]:
        steps = [{"name": f"shop:{name}", "state": one, "detail": ""} for name, one in zip("xyz", states, strict=True)]
        return {"id": "b-1", "kind": "drain", "branch": "b", "state": state, "detail": "", "steps": steps}

    later = iter((seen("running", "done", "running", "waiting"), seen("done", "done", "done", "done")))

    class Client:
        async def operation(self, id: str) -> dict[str, Any]:
            return next(later)

    monkeypatch.setattr(operations, "PAUSE", 0.0)
    monkeypatch.setattr(operations.sys.stderr, "isatty", lambda: True)
    first = seen("running", "running", "waiting", "waiting")
    assert await operations.follow(cast(BranchdClient, Client()), first, "table", 60) is Exit.OK
    told = capsys.readouterr()
    assert "0 of 3, shop:x" in told.err
    assert "1 of 3, shop:y, about 0 s left" in told.err
    assert told.err.endswith("\r\x1b[K")
    assert told.out.splitlines() == [
        *("b-1: drain of branch b", "shop:x: done", "shop:y: done", "shop:z: done", "b-1: done, 3/3 done"),
    ]
