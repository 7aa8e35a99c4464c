"""Instances over HTTP: created, changed, started, stopped, deleted, listed."""

import asyncio

import pytest

from branchd.api.server import Server
from branchd.branch.service import Service
from branchd.core.values import Exit
from tests.api.conftest import COMMAND, Api, House
from tests.waiting import until

WEB = "/v1/apps/shop/instances/web-1"


async def test_an_instance_is_created_and_waited_for(shop: Api, branch: Service) -> None:
    made = await shop("POST", "/v1/apps/shop/instances?wait=10s", {"name": "web-1", "weight": 2})
    assert (made.status, made.headers["Location"], made.headers["Branchd-Owner"]) == (201, WEB, "here")
    assert made.headers["ETag"] == f'"{branch.id}.1"'
    assert made.json["status"]["state"] == "RUNNING"
    assert (made.json["spec"], made.json["effective"]["command"]) == ({"weight": 2}, COMMAND["command"])
    assert (await shop("GET", WEB)).json == made.json


async def test_an_instance_without_a_name_gets_one(shop: Api) -> None:
    made = await shop("POST", "/v1/apps/shop/instances", {})
    assert made.status == 201
    assert made.headers["Location"] == f"/v1/apps/shop/instances/{made.json['name']}"


async def test_an_idempotency_key_creates_once(shop: Api) -> None:
    path, key = "/v1/apps/shop/instances", {"Idempotency-Key": "abc"}
    first = await shop("POST", path, {"weight": 1}, headers=key)
    replay = await shop("POST", path, {"weight": 1}, headers=key)
    assert (first.status, replay.status) == (201, 201)
    assert first.headers["Location"] == replay.headers["Location"]
    assert len((await shop("GET", path)).json["items"]) == 1
    assert (await shop("POST", path, {"weight": 2}, headers=key)).slug == "conflict"
    for wrong in ("", "x" * 256):
        assert (await shop("POST", path, {}, headers={"Idempotency-Key": wrong})).pointers == ["Idempotency-Key:"]
    assert (await shop("DELETE", f"{first.headers['Location']}?wait=5s")).status == 204
    late = await shop("POST", path, {"weight": 1}, headers=key)
    assert (late.status, late.slug) == (409, "conflict")
    assert "deleted since" in late.json["detail"]


async def test_a_taken_name_and_an_unknown_app_are_refused(shop: Api) -> None:
    await shop("PUT", WEB, {})
    assert (await shop("POST", "/v1/apps/shop/instances", {"name": "web-1"})).slug == "conflict"
    assert (await shop("POST", "/v1/apps/none/instances", {})).slug == "not-found"
    assert (await shop("POST", "/v1/apps/shop/instances", {"name": "../x", "weight": -1})).pointers == [
        "/name",
        "/weight",
    ]


async def test_as_many_are_created_as_are_counted_and_once_under_one_key(shop: Api) -> None:
    path, key = "/v1/apps/shop/instances", {"Idempotency-Key": "abc"}
    made = await shop("POST", f"{path}?wait=5s", {"count": 3, "weight": 2}, headers=key)
    assert (made.status, made.json["problems"]) == (201, [])
    names = [item["name"] for item in made.json["items"]]
    assert len(set(names)) == 3
    assert {item["status"]["state"] for item in made.json["items"]} == {"RUNNING"}
    again = await shop("POST", path, {"count": 3, "weight": 2}, headers=key)
    assert [item["name"] for item in again.json["items"]] == names
    more = await shop("POST", path, {"count": 4, "weight": 2}, headers=key)
    assert [item["name"] for item in more.json["items"]][:3] == names
    assert len((await shop("GET", path)).json["items"]) == 4


async def test_what_of_a_count_cannot_be_made_has_a_problem_each(shop: Api) -> None:
    path, key = "/v1/apps/shop/instances", {"Idempotency-Key": "abc"}
    first = (await shop("POST", path, {"count": 1}, headers=key)).json["items"][0]
    assert (await shop("DELETE", f"{path}/{first['name']}?wait=5s")).status == 204
    made = await shop("POST", path, {"count": 3}, headers=key)
    assert (made.status, len(made.json["items"])) == (207, 2)
    assert [problem["type"] for problem in made.json["problems"]] == ["urn:branchd:problem:conflict"]
    none = await shop("POST", "/v1/apps/none/instances", {"count": 3})
    assert (none.status, none.slug) == (404, "not-found")


async def test_a_count_goes_with_no_name_and_has_bounds(shop: Api) -> None:
    path = "/v1/apps/shop/instances"
    for count in (0, -1, 1001, True, "3", 1.5):
        assert (await shop("POST", path, {"count": count})).pointers == ["/count"]
    assert (await shop("POST", path, {"count": 2, "name": "web-1"})).pointers == ["/name"]
    wrong = await shop("POST", path, {"count": 0, "name": "x", "weight": -1})
    assert wrong.pointers == ["/count", "/name", "/weight"]
    assert (await shop("GET", path)).json["items"] == []


async def test_reading_waits_until_it_is_as_it_is_wanted(shop: Api, house: House) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {"stop": [{"signal": "TERM", "patience": 3600}]})
    assert (await shop("GET", f"{WEB}?wait=5s")).json["status"]["state"] == "RUNNING"
    await shop("POST", f"{WEB}/actions/stop")
    assert (await shop("GET", f"{WEB}?wait=50ms")).json["status"]["state"] == "STOPPING"
    house.processes.end(house.processes.spawned[0].identity.pid, Exit(code=0))
    assert (await shop("GET", f"{WEB}?wait=5s")).json["status"]["state"] == "STOPPED"
    await shop("DELETE", WEB)
    assert (await shop("GET", f"{WEB}?wait=5s")).slug == "not-found"


async def test_branch_names_this_one_or_none_that_is_known(shop: Api, branch: Service) -> None:
    for name in ("here", branch.id):
        assert (await shop("PUT", f"{WEB}?branch={name}", {})).status in {200, 201}
        assert (await shop("GET", f"{WEB}?branch={name}")).headers["Branchd-Owner"] == "here"
    for method, path in (("GET", WEB), ("PUT", WEB), ("POST", "/v1/apps/shop/instances"), ("GET", "/v1/events")):
        body = {} if method in {"PUT", "POST"} else None
        answer = await shop(method, f"{path}?branch=there", body)
        assert (answer.slug, answer.json["hint"]) == ("not-found", "this one is here")
        assert "Branchd-Owner" not in answer.headers


async def test_a_program_that_is_missing_is_created_and_its_status_says_so(shop: Api, house: House) -> None:
    house.processes.missing.add("sleep")
    made = await shop("PUT", f"{WEB}?wait=0.2", {"restart": {"floor": 60}})
    assert made.status == 201
    assert "sleep does not exist" in made.json["status"]["reason"]


async def test_an_instance_is_replaced_patched_and_guarded_by_if_match(shop: Api, branch: Service) -> None:
    assert (await shop("PUT", WEB, {})).status == 201
    assert (await shop("PUT", WEB, {"weight": 2})).json["generation"] == 2
    for method in ("PUT", "PATCH", "DELETE"):
        body = None if method == "DELETE" else {"weight": 5}
        stale = await shop(method, WEB, body, headers={"If-Match": f'"{branch.id}.1"'})
        assert (stale.status, stale.slug) == (412, "stale")
    patched = await shop("PATCH", WEB, {"weight": None}, headers={"If-Match": f'"{branch.id}.2"'})
    assert (patched.json["spec"], patched.headers["ETag"]) == ({}, f'"{branch.id}.3"')
    assert (await shop("PATCH", f"{WEB}?restart=slowly", {})).pointers == ["?restart"]
    assert (await shop("PATCH", "/v1/apps/shop/instances/none", {})).slug == "not-found"


async def test_restart_now_takes_up_the_patch(shop: Api, house: House) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {})
    waits = await shop("PATCH", WEB, {"env": {"A": "1"}})
    assert {"type": "ConfigCurrent", "status": "False"}.items() <= waits.json["status"]["conditions"][-1].items()
    await shop("PATCH", f"{WEB}?restart=now", {"env": {"A": "2"}})
    await until(lambda: len(house.processes.spawned) == 2)
    assert house.processes.spawned[-1].launch.env["A"] == "2"


async def test_stop_start_and_restart_answer_202_at_once_and_200_when_waited_for(shop: Api) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {})
    stopped = await shop("POST", f"{WEB}/actions/stop?wait=5s")
    assert (stopped.status, stopped.json["status"]["state"]) == (200, "STOPPED")
    assert (await shop("POST", f"{WEB}/actions/start")).status == 202
    started = await shop("POST", f"{WEB}/actions/start?wait=5")
    assert (started.status, started.json["status"]["state"]) == (200, "RUNNING")
    restarted = await shop("POST", f"{WEB}/actions/restart?wait=5s")
    assert restarted.status == 200
    assert restarted.json["status"]["pid"] != started.json["status"]["pid"]
    for action in ("start", "stop", "restart"):
        assert (await shop("POST", f"/v1/apps/shop/instances/none/actions/{action}")).slug == "not-found"


async def test_an_action_whose_wait_runs_out_answers_202(shop: Api) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {"stop": [{"signal": "TERM", "patience": 3600}]})
    answer = await shop("POST", f"{WEB}/actions/stop?wait=100ms")
    assert (answer.status, answer.json["status"]["state"]) == (202, "STOPPING")


async def test_a_signal_goes_to_the_process(shop: Api, house: House) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {})
    assert (await shop("POST", f"{WEB}/actions/signal", {"signal": "HUP"})).status == 200
    assert house.processes.signals == [(house.processes.spawned[0].identity.pid, 1)]
    assert (await shop("POST", f"{WEB}/actions/signal", {"signal": "BREAK"})).pointers == ["/signal"]
    assert (await shop("POST", f"{WEB}/actions/signal", {})).pointers == ["/signal"]
    assert (await shop("POST", f"{WEB}/actions/signal", {"signal": 1})).pointers == ["/signal"]
    await shop("POST", f"{WEB}/actions/stop?wait=5s")
    assert (await shop("POST", f"{WEB}/actions/signal", {"signal": "HUP"})).slug == "conflict"


async def test_a_deleted_instance_is_gone_when_waited_for(shop: Api) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {})
    assert (await shop("DELETE", f"{WEB}?wait=5s")).status == 204
    assert (await shop("GET", WEB)).slug == "not-found"
    assert (await shop("DELETE", WEB)).slug == "not-found"


async def test_a_deletion_that_takes_time_answers_202_and_shows_it(shop: Api, house: House) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {"stop": [{"signal": "TERM", "patience": 3600}]})
    answer = await shop("DELETE", f"{WEB}?wait=50ms")
    assert (answer.status, answer.json["status"]["deleting"]) == (202, True)
    assert (await shop("PUT", WEB, {})).slug == "conflict"
    house.processes.end(house.processes.spawned[0].identity.pid, Exit(code=0))
    assert (await shop("DELETE", f"{WEB}?wait=5s")).status in {204, 404}


async def test_stats_are_sampled(shop: Api) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {})
    stats = (await shop("GET", f"{WEB}/stats")).json
    assert (stats["rss"], stats["threads"], stats["worker"]) == (4096, 2, None)
    await shop("POST", f"{WEB}/actions/stop?wait=5s")
    assert (await shop("GET", f"{WEB}/stats")).json["pid"] is None


async def test_instances_of_all_apps_are_listed_in_pages_that_fit_together(shop: Api) -> None:
    await shop("PUT", "/v1/apps/blog", COMMAND)
    for app, name in [("shop", "b"), ("blog", "z"), ("shop", "a"), ("blog", "y"), ("shop", "c")]:
        await shop("PUT", f"/v1/apps/{app}/instances/{name}", {})
    names, cursor = [], ""
    while True:
        page = (await shop("GET", f"/v1/instances?limit=2{cursor}")).json
        names += [f"{item['app']}:{item['name']}" for item in page["items"]]
        assert (page["partial"], page["unreachable"]) == (False, [])
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert names == ["blog:y", "blog:z", "shop:a", "shop:b", "shop:c"]
    assert [item["name"] for item in (await shop("GET", "/v1/instances?app=blog")).json["items"]] == ["y", "z"]
    assert len((await shop("GET", "/v1/apps/shop/instances")).json["items"]) == 3


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("state=RUNNING", ["web-1", "web-2"]),
        ("state=STOPPED", ["mail-1"]),
        ("state=STOPPED&state=RUNNING", ["mail-1", "web-1", "web-2"]),
        ("label=tier=a", ["web-1"]),
        ("label=tier=a&label=team=x", ["web-1"]),
        ("label=tier=a&label=team=y", []),
        ("label=team=x", ["web-1", "web-2"]),
        ("name=web*", ["web-1", "web-2"]),
        ("name=web-[2]&state=RUNNING", ["web-2"]),
        ("branch=here", ["mail-1", "web-1", "web-2"]),
        ("branch=h*&name=*-1&limit=1", ["mail-1"]),
        ("branch=there", []),
    ],
)
async def test_lists_are_filtered(query: str, names: list[str], shop: Api) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {"labels": {"team": "x", "tier": "a"}})
    await shop("PUT", "/v1/apps/shop/instances/web-2?wait=5s", {"labels": {"team": "x"}})
    await shop("PUT", "/v1/apps/shop/instances/mail-1", {"wanted": "down"})
    for path in ("/v1/instances", "/v1/status", "/v1/apps/shop/instances"):
        assert [item["name"] for item in (await shop("GET", f"{path}?{query}")).json["items"]] == names


@pytest.mark.parametrize("path", ["/v1/instances", "/v1/status"])
async def test_a_list_shows_a_change_at_once(path: str, shop: Api) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {})
    before = (await shop("GET", path)).json["items"]
    assert (await shop("GET", path)).json["items"] == before
    await shop("POST", f"{WEB}/actions/stop?wait=5s")
    assert (await shop("GET", path)).json["items"][0]["status"]["state"] == "STOPPED"


async def test_statuses_are_the_instances_without_what_was_asked_for(shop: Api) -> None:
    await shop("PUT", f"{WEB}?wait=5s", {"labels": {"team": "x"}})
    [instance] = (await shop("GET", "/v1/instances")).json["items"]
    [status] = (await shop("GET", "/v1/status")).json["items"]
    left = {"spec", "effective", "created_at", "source"}
    assert status == {name: value for name, value in instance.items() if name not in left}


async def test_a_wait_does_not_hold_the_stop_of_the_server(
    shop: Api, house: House, branch: Service, server: Server
) -> None:
    house.processes.missing.add("sleep")
    waiting = asyncio.create_task(shop("PUT", f"{WEB}?wait=1h", {"restart": {"floor": 60}}))
    await until(branch.instances.list)
    async with asyncio.timeout(30):
        await server.stop()
        assert (await waiting).status == 201
