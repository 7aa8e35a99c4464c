"""Apps and their declared queues over HTTP."""

import pytest

from branchd.branch.service import Service
from tests.api.conftest import COMMAND, Api


async def test_an_app_is_created_read_replaced_and_deleted(api: Api, branch: Service) -> None:
    created = await api("PUT", "/v1/apps/shop", COMMAND)
    assert (created.status, created.headers["Location"]) == (201, "/v1/apps/shop")
    assert created.headers["Branchd-Owner"] == "here"
    assert created.headers["ETag"] == f'"{branch.id}.1"'
    assert created.json["spec"] == COMMAND
    replaced = await api("PUT", "/v1/apps/shop", {**COMMAND, "weight": 2})
    assert (replaced.status, replaced.json["generation"]) == (200, 2)
    assert "Location" not in replaced.headers
    shown = await api("GET", "/v1/apps/shop")
    assert (shown.json, shown.headers["ETag"]) == (replaced.json, f'"{branch.id}.2"')
    gone = await api("DELETE", "/v1/apps/shop")
    assert (gone.status, gone.body) == (204, b"")
    assert (await api("GET", "/v1/apps/shop")).slug == "not-found"


async def test_a_patch_merges_and_null_takes_away(shop: Api) -> None:
    await shop("PATCH", "/v1/apps/shop", {"labels": {"team": "pay", "tier": "1"}})
    patched = await shop("PATCH", "/v1/apps/shop", {"labels": {"tier": None}, "weight": 3})
    assert patched.json["spec"] == {**COMMAND, "labels": {"team": "pay"}, "weight": 3}


async def test_restart_takes_now_and_tells_that_rolling_is_not_possible_yet(shop: Api) -> None:
    assert (await shop("PATCH", "/v1/apps/shop?restart=now", {})).status == 200
    answer = await shop("PATCH", "/v1/apps/shop?restart=rolling", {})
    assert (answer.status, answer.pointers) == (422, ["?restart"])
    assert "rolling" in answer.json["errors"][0]["detail"]


async def test_if_match_guards_every_change(shop: Api, branch: Service) -> None:
    path, tag = "/v1/apps/shop", f'"{branch.id}.1"'
    for method in ("PUT", "PATCH", "DELETE"):
        body = None if method == "DELETE" else {**COMMAND, "weight": 9}
        for wrong in ('"other.1"', f'"{branch.id}.2"', f"W/{tag}", "nonsense"):
            answer = await shop(method, path, body, headers={"If-Match": wrong})
            assert (answer.status, answer.slug) == (412, "stale")
    assert (await shop("GET", path)).headers["ETag"] == tag
    changed = await shop("PUT", path, {**COMMAND, "weight": 9}, headers={"If-Match": f'"x.1", {tag}'})
    assert changed.status == 200
    assert (await shop("PATCH", path, {}, headers={"If-Match": "*"})).status == 200
    assert (await shop("PUT", "/v1/apps/none", COMMAND, headers={"If-Match": "*"})).slug == "stale"
    assert (await shop("DELETE", path, headers={"If-Match": changed.headers["ETag"]})).status == 204


async def test_an_app_with_instances_goes_only_by_cascade(shop: Api) -> None:
    await shop("PUT", "/v1/apps/shop/instances/web-1?wait=5s", {})
    refused = await shop("DELETE", "/v1/apps/shop")
    assert (refused.status, refused.slug) == (409, "conflict")
    assert (await shop("DELETE", "/v1/apps/shop?cascade=1")).status == 204
    assert (await shop("GET", "/v1/instances")).json["items"] == []


async def test_apps_are_listed_by_name_in_pages(api: Api) -> None:
    for name in ("b", "a", "c2", "c1"):
        await api("PUT", f"/v1/apps/{name}", COMMAND)
    first = (await api("GET", "/v1/apps?limit=3")).json
    assert [app["name"] for app in first["items"]] == ["a", "b", "c1"]
    await api("DELETE", "/v1/apps/c1")  # the cursor outlives the item that it was made of
    second = (await api("GET", f"/v1/apps?limit=3&cursor={first['next']}")).json
    assert ([app["name"] for app in second["items"]], second["next"]) == (["c2"], None)
    assert [app["name"] for app in (await api("GET", "/v1/apps?name=c*")).json["items"]] == ["c2"]


async def test_a_secret_is_never_shown(api: Api) -> None:
    spec = {**COMMAND, "broker": "amqp://u:hunter2@h//", "env": {"KEY": {"secret": "hunter2"}}}
    answers = [
        await api("PUT", "/v1/apps/shop", spec),
        await api("GET", "/v1/apps/shop"),
        await api("PUT", "/v1/apps/shop/instances/web-1", spec),
        await api("GET", "/v1/instances"),
        await api("PUT", "/v1/apps/shop", {**spec, "weight": "hunter1"}),
    ]
    assert [answer.status for answer in answers] == [201, 200, 201, 200, 422]
    assert not [answer.body for answer in answers if b"hunter2" in answer.body]


async def test_queues_are_declared_shown_and_forgotten(shop: Api) -> None:
    path = "/v1/apps/shop/queues/mail"
    made = await shop("PUT", path, {"exchange": "post", "exchange_type": "topic", "routing_key": "mail.#"})
    assert (made.status, made.headers["Location"]) == (201, path)
    assert (await shop("GET", path)).json == made.json
    again = await shop("PUT", path, {"options": {"durable": True}})
    assert (again.status, again.json["exchange"], again.json["options"]) == (200, "mail", {"durable": True})
    assert [queue["name"] for queue in (await shop("GET", "/v1/apps/shop/queues")).json["items"]] == ["mail"]
    assert (await shop("DELETE", path)).status == 204
    assert (await shop("GET", path)).slug == "not-found"
    assert (await shop("DELETE", path)).slug == "not-found"
    wrong = await shop("PUT", path, {"exchange": 1, "type": "x"})
    assert sorted(wrong.pointers) == ["/exchange", "/type"]


@pytest.mark.parametrize(
    ("kind", "status"), [("fanout", 201), ("x-delayed-message", 201), ("bogus", 422), ("", 422), ("Direct", 422)]
)
async def test_an_exchange_is_of_a_type_that_there_is(kind: str, status: int, shop: Api) -> None:
    answer = await shop("PUT", "/v1/apps/shop/queues/mail", {"exchange_type": kind})
    assert answer.status == status
    assert status == 201 or answer.pointers == ["/exchange_type"]
