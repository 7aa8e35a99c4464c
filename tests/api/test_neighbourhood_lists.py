"""Lists and streams over several branches: merged, paged, and told where they are not complete."""

import asyncio
import json
import os
from typing import Any

import pytest

from branchd.api import answers, scatter
from branchd.branch.mesh import carrying
from branchd.branch.ports import Served
from branchd.cli.loopback import Loopback
from branchd.core.access import Principal
from branchd.core.spec import Logs
from branchd.core.values import Key
from tests.api.conftest import COMMAND
from tests.api.neighbourhood import NEW, USER, WEB, Neighbourhood, way
from tests.api.test_streams import take
from tests.waiting import until

NDJSON = {"Accept": "application/x-ndjson"}


# Lists


async def test_lists_show_all_branches_in_pages_that_fit_together(town: Neighbourhood) -> None:
    for member, name in (("a", "x"), ("b", "x"), ("c", "x"), ("a", "z"), ("c", "a")):
        await town[member].api("PUT", f"{NEW}/{name}?local=1", {"labels": {"on": member}})
    everything = [("a", "c"), ("web", "b"), ("x", "a"), ("x", "b"), ("x", "c"), ("z", "a")]
    for path in ("/v1/instances", "/v1/status", NEW):
        seen, cursor = [], ""
        while True:
            page = (await town["b"].api("GET", f"{path}?limit=2{cursor}")).json
            assert (len(page["items"]), page["partial"], page["unreachable"]) == (2, False, [])
            seen += [(one["name"], one["branch"]) for one in page["items"]]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert seen == everything
    for query, expected in (
        ("branch=a", [("x", "a"), ("z", "a")]),
        ("name=x&branch=[bc]", [("x", "b"), ("x", "c")]),
        ("label=on=c", [("a", "c"), ("x", "c")]),
        ("state=STOPPED", []),
    ):
        found = (await town["a"].api("GET", f"/v1/instances?{query}")).json["items"]
        assert [(one["name"], one["branch"]) for one in found] == expected, query


async def test_who_does_not_answer_is_named_where_it_is_asked(
    town: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "PATIENCE", 0.8)
    town.silent = {"c"}
    page = (await town["a"].api("GET", "/v1/instances")).json
    assert ([one["name"] for one in page["items"]], page["partial"], page["unreachable"]) == (["web"], True, ["c"])
    town.cut("b")
    page = (await town["a"].api("GET", "/v1/instances")).json
    assert (page["items"], page["unreachable"]) == ([], ["b", "c"])
    page = (await town["a"].api("GET", "/v1/instances?branch=a")).json
    assert (page["partial"], page["unreachable"]) == (False, [])
    fresh = (await town["a"].api("GET", "/v1/branches?fresh=1")).json
    assert ([one["name"] for one in fresh["items"]], fresh["unreachable"]) == (["a", "b", "c"], ["b", "c"])
    assert (await town["a"].api("GET", "/v1/apps/none/instances")).json["unreachable"] == ["b", "c"]


async def test_who_ended_without_a_goodbye_is_named_and_no_branch_any_more(town: Neighbourhood) -> None:
    town.lost = {"c"}
    for path in ("/v1/instances", NEW, "/v1/operations"):
        page = (await town["a"].api("GET", path)).json
        assert (page["partial"], page["unreachable"]) == (True, ["c"]), path
    page = (await town["a"].api("GET", "/v1/instances?branch=[ab]")).json
    assert (page["partial"], page["unreachable"]) == (False, [])
    for path in ("/v1/branches", "/v1/branches?fresh=1"):
        page = (await town["a"].api("GET", path)).json
        assert ([one["name"] for one in page["items"]], page["partial"]) == (["a", "b"], False), path


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"items":[7],"next":null}', b'{"items":[{"app":1,"name":"x","branch":"b"}],"next":null}']
)
async def test_who_answers_with_no_list_spoils_nobody_elses(
    town: Neighbourhood, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    async def whole(_: Served) -> bytes:
        return body

    await town["a"].api("PUT", f"{NEW}/mine?local=1", {})
    monkeypatch.setattr(scatter, "whole", whole)
    page = (await town["a"].api("GET", "/v1/instances")).json
    assert ([one["name"] for one in page["items"]], page["unreachable"]) == (["mine"], ["b", "c"])


async def test_who_does_not_know_the_list_is_named(town: Neighbourhood, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch of an earlier version."""
    serve = Loopback.serve

    def earlier(door: Loopback, principal: Principal, method: str, target: str, *rest: Any) -> Any:
        return serve(door, principal, method, target.replace("/v1/status", "/v1/unknown"), *rest)

    monkeypatch.setattr(Loopback, "serve", earlier)
    await town["a"].api("PUT", f"{NEW}/mine?local=1", {})
    page = (await town["a"].api("GET", "/v1/status")).json
    assert ([one["name"] for one in page["items"]], page["unreachable"]) == (["mine"], ["b", "c"])


async def test_of_what_all_have_only_the_page_is_encoded(town: Neighbourhood, monkeypatch: pytest.MonkeyPatch) -> None:
    for member in "abc":
        for name in ("x", "y", "z"):
            await town[member].api("PUT", f"{NEW}/{name}?local=1", {})
    encoded = []
    dumps = answers.json.dumps
    monkeypatch.setattr(answers.json, "dumps", lambda value: (encoded.append(value), dumps(value))[1])
    page = (await town["b"].api("GET", "/v1/instances?limit=2")).json
    assert len(page["items"]) == 2
    shown = [value for value in encoded if isinstance(value, dict) and "placement" in value]
    assert {(one["branch"], one["name"]) for one in shown} <= {("a", "x"), ("c", "x")}


async def test_an_app_that_only_others_know_has_its_list(town: Neighbourhood) -> None:
    await town["b"].api("PUT", "/v1/apps/own", USER)
    assert (await town["a"].api("GET", "/v1/apps/own/instances")).json["items"] == []
    assert (await town["a"].api("GET", "/v1/apps/none/instances")).slug == "not-found"


async def test_branches_are_shown_as_announced_or_as_they_are(town: Neighbourhood) -> None:
    town.silent = {"c"}
    a = town["a"].api
    told = (await a("GET", "/v1/branches")).json
    assert [(one["name"], one["slots"], one["state"]) for one in told["items"]] == [
        ("a", 16, "up"),
        ("b", 99, "up"),
        ("c", 99, "silent"),
    ]
    assert told["items"][1]["seen_at"].startswith("2023-11-14")
    assert told["partial"] is False
    fresh = (await a("GET", "/v1/branches?fresh=1")).json
    assert [(one["name"], one["slots"]) for one in fresh["items"]] == [("a", 16), ("b", 16), ("c", 99)]
    assert (fresh["partial"], fresh["unreachable"]) == (True, ["c"])
    assert (await a("GET", "/v1/branches?name=b")).json["items"][0]["id"] == town["b"].service.id
    for name in ("b", town["b"].service.id):
        assert (await a("GET", f"/v1/branches/{name}")).json["slots"] == 16
    town.broker.partition(town["c"].address.id, at_once=True)
    assert (await a("GET", "/v1/branches/c")).json["state"] == "closed"
    assert (await a("GET", "/v1/branches/z")).slug == "not-found"
    assert (await a("GET", "/v1/branches/b?local=1")).slug == "not-found"


# Streams


async def test_logs_of_a_remote_instance_are_read_and_followed(town: Neighbourhood) -> None:
    a, house = town["a"].api, town["b"].house

    def write(data: bytes) -> None:
        with house.logs.open(Key("shop", "web"), Logs()) as (out, _):
            os.write(out, data)

    write(b"first\n" + b"x" * 100 + b"\n")
    answer = await a("GET", f"{WEB}/logs?tail=1")
    assert (way(answer), answer.body) == ((200, "b", "a"), b"x" * 100 + b"\n")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Branchd-Log-Next"] == "107"
    part = await a("GET", f"{WEB}/logs?offset=2&length=4")
    assert (part.body, part.headers["Branchd-Log-Offset"]) == (b"rst\n", "2")
    async with a.open("GET", f"{WEB}/logs?follow=1") as response:
        assert response.headers["Branchd-Owner"] == "b"
        await take(response, b"first\n")
        write(b"second\n")
        await take(response, b"second\n")
    async with a.open("GET", f"{WEB}/logs?follow=1&tail=1", headers={"Accept": "text/event-stream"}) as response:
        await take(response, b"data: second\r\n\r\n")
        await a("DELETE", f"{WEB}?wait=5s")
        async with asyncio.timeout(30):
            await response.read()  # it ends with the instance


async def test_a_long_log_comes_whole(town: Neighbourhood) -> None:
    data = b"".join(b"%07d " % number + b"y" * 300 + b"\n" for number in range(9000))
    with town["b"].house.logs.open(Key("shop", "web"), Logs()) as (out, _):
        os.write(out, data)
    answer = await town["a"].api("GET", f"{WEB}/logs?tail=9000")
    assert answer.body == data


async def test_events_of_another_branch_are_a_stream(town: Neighbourhood) -> None:
    a = town["a"].api
    told = (await a("GET", "/v1/events?branch=b&after=0&follow=0&type=app.", headers=NDJSON)).body
    assert [json.loads(line)["type"] for line in told.splitlines()] == ["app.created"]
    async with a.open("GET", "/v1/events?branch=b&type=app.", headers=NDJSON) as response:
        await town["b"].api("PUT", "/v1/apps/blog", COMMAND)
        assert b'"app":"blog"' in await take(response, b"\n")
    assert (await a("GET", "/v1/events?branch=z")).slug == "not-found"


async def test_a_follower_that_leaves_ends_the_stream_at_the_owner(town: Neighbourhood) -> None:
    async with town["a"].api.open("GET", f"{WEB}/logs?follow=1"):
        await until(lambda: len(town["b"].mesh.carrier._open) == 1)
    await until(lambda: len(town["b"].mesh.carrier._open) == 0)


async def test_a_follower_is_told_nothing_false_when_the_owner_goes(
    town: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "PATIENCE", 0.1)
    monkeypatch.setattr(carrying, "ANSWER_WITHIN", 0.1)
    async with town["a"].api.open("GET", f"{WEB}/logs?follow=1") as response:
        town.broker.partition(town["b"].address.id, at_once=True)
        with pytest.raises(Exception, match=r"."):  # cut off, which is no end of a log
            await response.read()
