"""What may not be carried, in whose name what is, and the record that it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

from branchd.core.access import Principal, Scope
from tests.api.conftest import COMMAND, Answer, Api
from tests.api.neighbourhood import NEW, WEB, Neighbourhood, furnish, neighbourhood, way
from tests.waiting import until

NDJSON = {"Accept": "application/x-ndjson"}


# What may not be


async def carry(town: Neighbourhood, method: str, path: str, body: Any = None, scope: Scope = Scope.ADMIN) -> Answer:
    """From a to b, whatever a's own API thinks of it."""
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
            "principal": "token:admin", "via": via, "via_id": via and town["a"].service.id,
            "method": "POST", "path": path, "status": 202,
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
