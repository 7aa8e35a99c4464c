"""Every operation at every branch: found, carried, answered, and told where it cannot be."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from branchd.api import forwarding, scatter
from branchd.branch.mesh import carrying
from branchd.core.access import Scope
from branchd.core.errors import NoAnswer, NoCapacity, OutcomeUnknown
from branchd.core.values import Exit, Key
from tests.api.conftest import COMMAND, Answer, Api
from tests.api.neighbourhood import Neighbourhood, neighbourhood
from tests.api.test_streams import take
from tests.waiting import until

WEB = "/v1/apps/shop/instances/web"
NEW = "/v1/apps/shop/instances"
USER = {**COMMAND, "user": "www"}
NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Neighbourhood]:
    """a, b and c, each with the app `shop`; b has web."""
    async with neighbourhood(tmp_path, "a", "b", "c") as everybody:
        await furnish(everybody)
        yield everybody


async def furnish(everybody: Neighbourhood) -> None:
    for member in everybody.members.values():
        assert (await member.api("PUT", "/v1/apps/shop", USER)).status == 201
    assert (await everybody["b"].api("PUT", f"{WEB}?local=1&wait=5s", {})).status == 201


def way(answer: Answer) -> tuple[int, str | None, str | None]:
    return answer.status, answer.headers.get("Branchd-Owner"), answer.headers.get("Branchd-Via")


# Operations on an instance


async def test_every_operation_on_a_remote_instance_works_here(town: Neighbourhood) -> None:
    a, b = town["a"].api, town["b"].api
    shown = await a("GET", WEB)
    assert way(shown) == (200, "b", "a")
    assert (shown.json, shown.headers["ETag"]) == ((await b("GET", WEB)).json, f'"{town["b"].service.id}.1"')
    assert way(await b("GET", WEB)) == (200, "b", None)
    assert way(await a("GET", f"{WEB}/stats")) == (200, "b", "a")
    patched = await a("PATCH", WEB, {"weight": 2}, headers={"If-Match": shown.headers["ETag"]})
    assert (way(patched), patched.json["generation"]) == ((200, "b", "a"), 2)
    stale = await a("PATCH", WEB, {"weight": 3}, headers={"If-Match": shown.headers["ETag"]})
    assert (stale.slug, way(stale)) == ("stale", (412, "b", "a"))
    replaced = await a("PUT", WEB, {"weight": 4})
    assert (way(replaced), replaced.json["spec"]) == ((200, "b", "a"), {"weight": 4})
    assert way(await a("POST", f"{WEB}/actions/signal", {"signal": "HUP"})) == (200, "b", "a")
    for action, state in (("stop", "STOPPED"), ("start", "RUNNING"), ("restart", "RUNNING")):
        done = await a("POST", f"{WEB}/actions/{action}?wait=5s")
        assert (way(done), done.json["status"]["state"]) == ((200, "b", "a"), state)
    assert way(await a("DELETE", f"{WEB}?wait=5s")) == (204, "b", "a")
    assert (await a("GET", WEB)).slug == "not-found"


async def test_what_the_owner_refuses_is_told_as_it_tells_it(town: Neighbourhood) -> None:
    a = town["a"].api
    for method, path, body, slug, pointers in (
        ("PUT", WEB, {"weight": -1, "comand": []}, "invalid", ["/comand", "/weight"]),
        ("GET", f"{WEB}/queues", None, "conflict", None),
        ("POST", f"{WEB}/actions/signal", {"signal": "BREAK"}, "invalid", ["/signal"]),
        ("GET", f"{WEB}/logs?stream=stderr", None, "conflict", None),
    ):
        answer = await a(method, path, body)
        assert (answer.slug, answer.headers["Branchd-Owner"]) == (slug, "b"), path
        assert pointers is None or answer.pointers == pointers


async def test_a_remote_celery_worker_is_told_of_its_queues(town: Neighbourhood) -> None:
    a, b = town["a"].api, town["b"].api
    worker = {"kind": "celery", "application": "x", "wanted": "down"}
    assert (await b("PUT", f"{NEW}/mail?local=1", worker)).status == 201
    assert way(await a("PUT", f"{NEW}/mail/queues/bulk")) == (200, "b", "a")
    assert [one["queue"] for one in (await a("GET", f"{NEW}/mail/queues")).json["items"]] == ["bulk", "celery"]
    assert way(await a("DELETE", f"{NEW}/mail/queues/bulk")) == (204, "b", "a")
    assert (await a("PUT", f"{NEW}/mail/autoscale", {"min": 1, "max": 2})).json == {"min": 1, "max": 2, "actual": None}


async def test_a_placed_instance_is_read_by_its_key_in_one_hop(town: Neighbourhood) -> None:
    await town["b"].place("shop", "web")
    assert way(await town["a"].api("GET", WEB)) == (200, "b", "a")
    assert town.located == 0
    assert (await town["a"].api("HEAD", WEB)).status == 200


async def test_local_asks_this_branch_alone(town: Neighbourhood) -> None:
    a = town["a"].api
    assert (await a("GET", f"{WEB}?local=1")).slug == "not-found"
    assert (await a("GET", "/v1/instances?local=1")).json["items"] == []
    assert [one["name"] for one in (await a("GET", "/v1/branches?local=1")).json["items"]] == ["a"]
    assert (await a("GET", f"{WEB}?local=1&branch=b")).slug == "not-found"
    made = await a("POST", f"{NEW}?local=1", {"name": "own"})
    assert (made.status, made.json["branch"]) == (201, "a")
    assert town.located == 0


async def test_a_branch_is_chosen_by_its_name_or_id(town: Neighbourhood) -> None:
    a = town["a"].api
    for member in ("b", "c"):
        assert (await town[member].api("PUT", f"{NEW}/nginx?local=1", {})).status == 201
    several = await a("GET", f"{NEW}/nginx")
    assert (several.slug, several.json["hint"]) == ("conflict", "b, c")
    for name in ("c", town["c"].service.id):
        assert way(await a("GET", f"{NEW}/nginx?branch={name}")) == (200, "c", "a")
    assert way(await a("DELETE", f"{NEW}/nginx?branch=c&wait=5s")) == (204, "c", "a")
    assert way(await a("GET", f"{NEW}/nginx")) == (200, "b", "a")
    assert (await a("GET", f"{NEW}/nginx?branch=c")).slug == "not-found"
    assert (await a("GET", f"{NEW}/nginx?branch=z")).slug == "not-found"


async def test_one_that_is_here_is_served_here(town: Neighbourhood) -> None:
    assert way(await town["b"].api("POST", f"{WEB}/actions/stop?wait=5s")) == (200, "b", None)
    assert town.located == 0


# What cannot be told


async def test_an_owner_that_has_moved_is_looked_for_once_more(town: Neighbourhood) -> None:
    town.misled = ["gone"]
    assert way(await town["a"].api("POST", f"{WEB}/actions/start")) == (202, "b", "a")
    town.misled = ["gone", "gone"]
    answer = await town["a"].api("POST", f"{WEB}/actions/start")
    assert (answer.status, answer.slug) == (503, "not-connected")


async def test_missing_branches_make_a_missing_instance_uncertain(town: Neighbourhood) -> None:
    town.silent = {"c"}
    answer = await town["a"].api("GET", f"{NEW}/none")
    assert (answer.status, answer.slug) == (503, "unavailable")
    assert "c" in answer.json["detail"]


async def test_an_owner_that_does_not_answer_leaves_the_outcome_of_a_change_unknown(
    town: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "ANSWER_WITHIN", 0.2)
    town.cut("b")
    read = await town["a"].api("GET", WEB)
    assert (read.status, read.slug, "outcome" in read.json) == (504, "branch-unreachable", False)
    change = await town["a"].api("POST", f"{WEB}/actions/stop")
    assert (change.status, change.slug, change.json["outcome"]) == (504, "branch-unreachable", "unknown")


async def test_without_the_broker_what_is_here_works_and_nothing_else_is_begun(town: Neighbourhood) -> None:
    town.broker.partition("a", town["b"].address.id, at_once=True)
    await until(lambda: not town["b"].link.connected)
    b = town["b"].api
    assert (await b("POST", f"{WEB}/actions/stop?wait=5s")).status == 200
    answer = await b("GET", f"{NEW}/nginx?branch=c")
    assert (answer.status, answer.slug) == (503, "unavailable")
    page = (await b("GET", "/v1/instances")).json
    assert ([one["name"] for one in page["items"]], page["unreachable"]) == (["web"], ["a", "c"])
    assert (await b("GET", "/v1/branches/c")).json["slots"] == 99


async def test_a_body_that_no_message_holds_is_refused_in_words(
    town: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "LONGEST_BODY", 100)
    answer = await town["a"].api("PUT", WEB, {"labels": {"x": "y" * 100}})
    assert (answer.status, answer.slug) == (413, "too-large")
    assert "branch b itself" in answer.json["hint"]


# Waiting


async def test_a_wait_is_carried_in_slices(town: Neighbourhood, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "SLICE", 0.05)
    a, house = town["a"].api, town["b"].house
    await a("PUT", WEB, {"stop": [{"signal": "TERM", "patience": 3600}]})
    late = await a("POST", f"{WEB}/actions/stop?wait=200ms")
    assert (late.status, late.json["status"]["state"]) == (202, "STOPPING")
    waiting = asyncio.create_task(a("GET", f"{WEB}?wait=30s"))
    stopping = asyncio.create_task(a("POST", f"{WEB}/actions/stop?wait=30s"))
    deliveries = town.broker.delivered[town["b"].address.id]
    await until(lambda: town.broker.delivered[town["b"].address.id] > deliveries + 6)
    house.processes.end(house.processes.spawned[0].identity.pid, Exit(code=0))
    assert (await waiting).json["status"]["state"] == "STOPPED"
    assert way(await stopping) == (200, "b", "a")


async def test_a_wait_ends_early_where_it_cannot_come_to_that(town: Neighbourhood) -> None:
    house = town["b"].house
    await town["a"].api("PUT", WEB, {"restart": {"policy": "never"}})
    house.processes.end(house.processes.spawned[0].identity.pid, Exit(code=1))
    await until(lambda: town["b"].service.instances.get("shop", "web").status.state == "EXITED")
    async with asyncio.timeout(10):
        answer = await town["a"].api("GET", f"{WEB}?wait=1h")
        assert (answer.status, answer.json["status"]["state"]) == (200, "EXITED")


async def test_a_deletion_whose_wait_runs_out_shows_that_it_goes_on(town: Neighbourhood) -> None:
    a, house = town["a"].api, town["b"].house
    await a("PUT", WEB, {"stop": [{"signal": "TERM", "patience": 3600}]})
    answer = await a("DELETE", f"{WEB}?wait=100ms")
    assert (answer.status, answer.json["status"]["deleting"]) == (202, True)
    house.processes.end(house.processes.spawned[0].identity.pid, Exit(code=0))
    await until(lambda: town.owners("shop", "web") == [])


# Creating


async def test_a_new_instance_goes_where_the_neighbourhood_puts_it(town: Neighbourhood) -> None:
    a = town["a"].api
    town.chosen = "c"
    made = await a("POST", f"{NEW}?wait=5s", {"name": "mail"}, headers={"Idempotency-Key": "k"})
    assert (way(made), made.json["status"]["state"]) == ((201, "c", "a"), "RUNNING")
    assert made.headers["Location"] == f"{NEW}/mail"
    assert made.headers["ETag"] == f'"{town["c"].service.id}.1"'
    again = await a("POST", NEW, {"name": "mail"}, headers={"Idempotency-Key": "k"})
    assert (again.status, again.json["created_at"]) == (201, made.json["created_at"])
    assert way(await a("PUT", f"{NEW}/post?wait=5s", {})) == (201, "c", "a")
    assert way(await a("PUT", f"{NEW}/post", {"weight": 2})) == (200, "c", "a")
    town.chosen = "a"
    assert way(await a("PUT", f"{NEW}/own?wait=5s", {})) == (201, "a", None)
    assert (await a("PUT", f"{NEW}/more", {"weight": -1, "name": "x"})).pointers == ["/name", "/weight"]


async def test_many_are_created_wherever_they_go(town: Neighbourhood) -> None:
    town.chosen = "c"
    made = await town["a"].api("POST", f"{NEW}?wait=5s", {"count": 3})
    assert (made.status, {one["branch"] for one in made.json["items"]}) == (201, {"c"})
    assert {one["status"]["state"] for one in made.json["items"]} == {"RUNNING"}


async def test_a_branch_of_the_callers_choice_pins(town: Neighbourhood) -> None:
    a = town["a"].api
    query = "branch=c&wait=5s"
    for method, path, body in (("POST", f"{NEW}?{query}", {"name": "x"}), ("PUT", f"{NEW}/y?{query}", {})):
        made = await a(method, path, body)
        assert (way(made), made.json["placement"]) == ((201, "c", "a"), "pinned")
        assert made.json["status"]["state"] == "RUNNING"
    many = await a("POST", f"{NEW}?branch=c", {"count": 2})
    assert (many.status, [one["branch"] for one in many.json["items"]]) == (201, ["c", "c"])


async def test_preconditions_hold_over_the_neighbourhood(town: Neighbourhood) -> None:
    a = town["a"].api
    assert (await a("PUT", WEB, {}, headers={"If-None-Match": "*"})).slug == "stale"
    assert (await a("PUT", f"{NEW}/none", {}, headers={"If-Match": "*"})).slug == "stale"
    assert town.owners("shop", "none") == []
    assert (await a("PUT", f"{NEW}/new", {}, headers={"If-None-Match": "*"})).status == 201


async def test_one_that_goes_away_meanwhile_is_not_created_where_it_was(town: Neighbourhood) -> None:
    town.chosen = "a"
    town.misled = [town["c"].address.id]  # as if it had it, and it was deleted before the request came
    assert way(await town["a"].api("PUT", f"{NEW}/new", {})) == (201, "a", None)
    assert [member.name for member in town.owners("shop", "new")] == ["a"]


@pytest.mark.parametrize(
    ("error", "status", "slug", "outcome"),
    [
        (NoCapacity("a: full; b: full"), 409, "no-capacity", None),
        (NoAnswer("b does not say"), 504, "branch-unreachable", None),
        (OutcomeUnknown("b does not say"), 504, "branch-unreachable", "unknown"),
    ],
)
async def test_what_keeps_a_placement_is_told(
    error: Any, status: int, slug: str, outcome: str | None, town: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(*_: Any) -> list[Any]:
        return [error]

    monkeypatch.setattr(town["a"].mesh, "create", create)
    answer = await town["a"].api("POST", NEW, {})
    assert (answer.status, answer.slug, answer.json.get("outcome")) == (status, slug, outcome)


# Lists


async def test_lists_show_all_branches_in_pages_that_fit_together(town: Neighbourhood) -> None:
    for member, name in (("a", "x"), ("b", "x"), ("c", "x"), ("a", "z"), ("c", "a")):
        await town[member].api("PUT", f"{NEW}/{name}?local=1", {"labels": {"on": member}})
    everything = [("a", "c"), ("web", "b"), ("x", "a"), ("x", "b"), ("x", "c"), ("z", "a")]
    for path in ("/v1/instances", NEW):
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
    monkeypatch.setattr(scatter, "PATIENCE", 0.2)
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
        with house.logs.open(Key("shop", "web"), True) as (out, _):
            os.write(out, data)

    write(b"first\n" + b"x" * 100 + b"\n")
    answer = await a("GET", f"{WEB}/logs?tail=1")
    assert (way(answer), answer.body) == ((200, "b", "a"), b"x" * 100 + b"\n")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    async with a.open("GET", f"{WEB}/logs?follow=1") as response:
        assert response.headers["Branchd-Owner"] == "b"
        await take(response, b"first\n")
        write(b"second\n")
        await take(response, b"second\n")
    async with a.open("GET", f"{WEB}/logs?follow=1&tail=1", headers={"Accept": "text/event-stream"}) as response:
        await take(response, b"data: second\r\n\r\n")
        await a("DELETE", f"{WEB}?wait=5s")
        async with asyncio.timeout(10):
            await response.read()  # it ends with the instance


async def test_a_long_log_comes_whole(town: Neighbourhood) -> None:
    data = b"".join(b"%07d " % number + b"y" * 300 + b"\n" for number in range(9000))
    with town["b"].house.logs.open(Key("shop", "web"), True) as (out, _):
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


# What may not be


async def carry(town: Neighbourhood, method: str, path: str, body: Any = None, scope: Scope = Scope.ADMIN) -> Answer:
    """From a to b, whatever a's own API thinks of it."""
    from branchd.core.access import Principal

    headers = {"Content-Type": "application/json"} if body is not None else {}
    data = b"" if body is None else json.dumps(body).encode()
    carrier = town["a"].mesh.carrier
    async with carrier.carry(town["b"].address, Principal("token:ci", scope), method, path, headers, data) as served:
        names = {name.title(): value for name, value in served.headers.items()}
        return Answer(served.status, names, b"".join([piece async for piece in served.body]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/tokens", None),
        ("POST", "/v1/tokens", {"name": "x", "scope": "admin"}),
        ("DELETE", "/v1/tokens/0", None),
        ("GET", "/v1/whoami", None),
        ("GET", "/v1/openapi.json", None),
        ("GET", "/v1/apps", None),
        ("PUT", "/v1/apps/evil", COMMAND),
        ("DELETE", "/v1/apps/shop?cascade=1", None),
        ("PUT", "/v1/apps/shop/queues/x", {}),
    ],
)
async def test_what_is_not_about_instances_or_branches_is_not_carried(
    method: str, path: str, body: Any, tmp_path: Path
) -> None:
    async with neighbourhood(tmp_path, "a", "b", peer_scope=Scope.ADMIN) as town:
        await furnish(town)
        answer = await carry(town, method, path, body)
        assert (answer.status, answer.slug) == (403, "denied")
        assert "by way of another branch" in answer.json["detail"]


async def test_a_carried_request_is_answered_by_that_branch_alone(town: Neighbourhood) -> None:
    await town["c"].api("PUT", f"{NEW}/nginx?local=1", {})
    assert (await carry(town, "GET", f"{NEW}/nginx")).slug == "not-found"
    assert (await carry(town, "GET", f"{NEW}/nginx?branch=c")).slug == "not-found"
    assert [one["branch"] for one in (await carry(town, "GET", "/v1/instances")).json["items"]] == ["b"]
    assert [one["name"] for one in (await carry(town, "GET", "/v1/branches?fresh=1")).json["items"]] == ["b"]
    assert (await carry(town, "GET", "/v1/branches/c")).slug == "not-found"
    assert (await carry(town, "GET", "/v1/events?branch=c&follow=0")).slug == "not-found"
    town.chosen = "c"
    assert (await carry(town, "POST", NEW, {"name": "mail"})).json["branch"] == "b"


async def test_who_only_reads_at_his_branch_only_reads_at_others(town: Neighbourhood) -> None:
    assert (await carry(town, "GET", WEB, scope=Scope.READ)).status == 200
    denied = await carry(town, "POST", f"{WEB}/actions/stop", scope=Scope.READ)
    assert (denied.slug, "has read" in denied.json["detail"]) == ("denied", True)
    assert (await carry(town, "POST", f"{WEB}/actions/start", scope=Scope.OPERATE)).status == 202
    denied = await carry(town, "PUT", WEB, {}, scope=Scope.OPERATE)
    assert (denied.slug, "has operate" in denied.json["detail"]) == ("denied", True)


async def test_with_peer_scope_read_others_only_read(tmp_path: Path) -> None:
    async with neighbourhood(tmp_path, "a", "b", peer_scope=Scope.READ) as town:
        await furnish(town)
        a = town["a"].api
        assert way(await a("GET", WEB)) == (200, "b", "a")
        for method, path, body in (
            ("POST", f"{WEB}/actions/stop", None),
            ("PUT", WEB, {}),
            ("PATCH", WEB, {}),
            ("DELETE", WEB, None),
            ("POST", f"{NEW}?branch=b", {}),
        ):
            answer = await a(method, path, body)
            assert (answer.slug, "[auth] peer_scope" in answer.json["hint"]) == ("denied", True)


async def test_with_peer_scope_operate_admins_define_what_does_not_run_as_root(town: Neighbourhood) -> None:
    a, b = town["a"].api, town["b"].api
    assert (await a("PUT", WEB, {"weight": 2})).status == 200
    made = await a("POST", f"{NEW}?branch=b", {"name": "x"})
    assert (made.status, made.json["effective"]["user"]) == (201, "www")
    for method, path, body in (
        ("PUT", WEB, {"user": "root"}),
        ("PATCH", WEB, {"user": "root"}),
        ("PATCH", WEB, {"group": "disk"}),
        ("POST", f"{NEW}?branch=b", {"user": "root"}),
        ("PUT", f"{NEW}/new?branch=b", {"user": "root"}),
    ):
        answer = await a(method, path, body)
        assert (answer.slug, "[auth] peer_scope" in answer.json["hint"]) == ("denied", True), path
    assert (await b("PATCH", f"{WEB}?local=1", {"user": "root"})).status == 200
    for method, body in (("PUT", {}), ("PATCH", {"user": None}), ("DELETE", None)):
        assert (await a(method, WEB, body)).slug == "denied", method
    assert (await a("POST", f"{WEB}/actions/restart")).status == 202


async def test_with_peer_scope_admin_others_define_all(tmp_path: Path) -> None:
    async with neighbourhood(tmp_path, "a", "b", peer_scope=Scope.ADMIN) as town:
        await furnish(town)
        assert (await town["a"].api("PATCH", WEB, {"user": "root"})).status == 200
        assert (await town["a"].api("DELETE", f"{WEB}?wait=5s")).status == 204


# The record


async def requests(api: Api) -> list[dict[str, Any]]:
    lines = (await api("GET", "/v1/events?after=0&follow=0&type=request", headers=NDJSON)).body.splitlines()
    return [json.loads(line) for line in lines]


async def test_a_change_is_recorded_at_both_ends(town: Neighbourhood) -> None:
    await town["a"].api("POST", f"{WEB}/actions/stop")
    path = f"{WEB}/actions/stop"

    async def last(name: str) -> dict[str, Any]:
        return (await requests(town[name].api))[-1]

    for name, via in (("a", None), ("b", "a")):
        await until(lambda name=name: _is(last(name), path))  # type: ignore[misc]
        event = await last(name)
        assert (event["app"], event["instance"]) == ("shop", "web")
        assert event["data"] == {
            "principal": "token:admin", "via": via, "method": "POST", "path": path, "status": 202,
        }  # fmt: skip


async def _is(event: Any, path: str) -> bool:
    return (await event)["data"]["path"] == path


async def test_a_refusal_is_recorded_and_what_nobody_known_asks_is_not(town: Neighbourhood) -> None:
    a = town["a"].api
    before = len(await requests(a))
    await a("PUT", "/v1/apps/x", COMMAND, token="wrong")
    await a("GET", WEB)
    await a("PUT", "/v1/apps/x", {"weight": -1})
    await until(lambda: _more(a, before))
    assert [event["data"]["status"] for event in (await requests(a))[before:]] == [422]


async def _more(api: Api, before: int) -> bool:
    return len(await requests(api)) > before
