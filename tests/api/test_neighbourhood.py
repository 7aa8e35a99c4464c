"""Every operation at every branch: found, carried, answered, and told where it cannot be."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from branchd.api import forwarding
from branchd.core.errors import NoAnswer, NoCapacity, OutcomeUnknown
from branchd.core.values import Exit
from branchd.wire.resources import Placement
from tests.api.neighbourhood import NEW, WEB, Neighbourhood, way
from tests.waiting import until

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


async def test_one_that_has_moved_and_only_stops_here_is_its_new_owners(
    town: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town["a"].api("PUT", f"{WEB}?local=1&wait=5s", {})
    here = town["a"].service.instances
    old = here.get("shop", "web")
    gone = replace(old, placement=Placement.PLACED, status=replace(old.status, deleting=True))
    monkeypatch.setattr(here, "get", lambda *_: gone)
    town.misled = [town["b"].address.id] * 2
    assert way(await town["a"].api("POST", f"{WEB}/actions/stop?wait=5s")) == (200, "b", "a")
    assert way(await town["a"].api("PUT", WEB, {"weight": 2})) == (200, "b", "a")
    assert (await town["a"].api("GET", WEB)).json["status"]["deleting"] is True  # where nobody is found: Conflict


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
    async with asyncio.timeout(30):
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


async def test_a_flag_without_a_value_is_carried_as_one(town: Neighbourhood) -> None:
    asked = f"{WEB}/logs?grep=x&ignore_case"
    assert (await town["b"].api("GET", asked)).status == 200
    assert way(await town["a"].api("GET", asked)) == (200, "b", "a")
    assert (await town["a"].api("GET", f"{asked}=")).pointers == ["?ignore_case"]
