"""Apps and their declared queues over HTTP."""

from typing import Any

import pytest

from branchd.branch.service import Service
from branchd.core.access import Scope
from tests.api.conftest import COMMAND, Answer, Api, House
from tests.waiting import until


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


async def test_restart_takes_now_and_rolling_and_nothing_else(shop: Api) -> None:
    assert (await shop("PATCH", "/v1/apps/shop?restart=now", {})).status == 200
    answer = await shop("PATCH", "/v1/apps/shop?restart=slowly", {})
    assert (answer.status, answer.pointers) == (422, ["?restart"])


async def _ended(api: Api, begun: Answer) -> Any:
    assert begun.status == 202
    assert begun.headers["Location"] == f"/v1/operations/{begun.json['id']}"

    async def over() -> Any:
        found = (await api("GET", begun.headers["Location"])).json
        return None if found["state"] == "running" else found

    found = await until(over)
    return {step["name"]: step["state"] for step in found["steps"]}


async def test_rolling_restarts_one_after_the_other_what_a_change_concerns(shop: Api, house: House) -> None:
    for name in ("a", "b"):
        await shop("PUT", f"/v1/apps/shop/instances/{name}?wait=5s", {})
    await shop("PUT", "/v1/apps/shop/instances/c?wait=5s", {"env": {"STAGE": "c"}})
    begun = await shop("PATCH", "/v1/apps/shop?restart=rolling", {"env": {"STAGE": "live"}})
    assert await _ended(shop, begun) == {"shop:a": "done", "shop:b": "done"}
    assert [process.launch.env["STAGE"] for process in house.processes.spawned[3:]] == ["live", "live"]
    begun = await shop("PATCH", "/v1/apps/shop/instances/c?restart=rolling", {"env": {"STAGE": "d"}})
    assert await _ended(shop, begun) == {"shop:c": "done"}
    assert [one["kind"] for one in (await shop("GET", "/v1/operations")).json["items"]] == ["restart", "restart"]


async def test_all_or_some_are_restarted_one_after_the_other(shop: Api, tokens: dict[Scope, str]) -> None:
    path = "/v1/apps/shop/actions/restart"
    for name in ("a", "b", "c"):
        await shop("PUT", f"/v1/apps/shop/instances/{name}?wait=5s", {})
    assert len(await _ended(shop, await shop("POST", path, token=tokens[Scope.OPERATE]))) == 3
    assert await _ended(shop, await shop("POST", f"{path}?instance=c&instance=a")) == dict.fromkeys(
        ("shop:a", "shop:c"), "done"
    )
    assert await _ended(shop, await shop("POST", f"{path}?outdated=1")) == {}
    assert (await shop("POST", f"{path}?instance=none")).slug == "not-found"
    assert (await shop("POST", "/v1/apps/none/actions/restart")).slug == "not-found"
    assert (await shop("POST", path, token=tokens[Scope.READ])).slug == "denied"


async def test_while_one_is_under_way_no_other_begins_and_nothing_is_changed(shop: Api) -> None:
    await shop("PUT", "/v1/apps/shop/instances/a?wait=5s", {})
    await shop("PATCH", "/v1/apps/shop/instances/a", {"ready": {"after": 600}})
    begun = await shop("POST", "/v1/apps/shop/actions/restart")
    for method, path, body in (
        ("POST", "/v1/apps/shop/actions/restart", None),
        ("PATCH", "/v1/apps/shop?restart=rolling", {"weight": 7}),
        ("PATCH", "/v1/apps/shop/instances/a?restart=rolling", {"weight": 7}),
    ):
        assert (await shop(method, path, body)).slug == "conflict"
    assert "weight" not in (await shop("GET", "/v1/apps/shop")).json["spec"]
    cancelled = await shop("DELETE", begun.headers["Location"])
    assert [step["state"] for step in cancelled.json["steps"]] == ["done"]


async def test_a_circle_is_told_at_the_field(shop: Api) -> None:
    await shop("PUT", "/v1/apps/shop/instances/a", {"depends_on": ["b"]})
    answer = await shop("PUT", "/v1/apps/shop/instances/b", {"depends_on": ["shop:a"]})
    assert (answer.slug, answer.pointers) == ("invalid", ["/depends_on"])


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
