"""Long work, doctor and explain: who may ask for it, through which branch, and what is refused."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from branchd.branch.ending import Ending
from branchd.branch.service import Service
from branchd.core.access import Scope
from tests.api.conftest import Answer, Api
from tests.api.meshes import Branch, Branches, created, meshes
from tests.waiting import until

EXPLAIN = "/v1/apps/shop/instances/web/explain"


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Branches]:
    async with meshes(tmp_path, "a", "b", "c") as branches:
        yield branches


def way(answer: Answer) -> tuple[int, str | None, str | None]:
    """Its status, who gave it, and who passed it on."""
    return answer.status, answer.headers.get("Branchd-Owner"), answer.headers.get("Branchd-Via")


async def ended(by: Branch, operation: str) -> Answer:
    async def over() -> Answer | None:
        found = await by.api("GET", operation)
        return None if found.json["state"] == "running" else found

    found = await until(over, 20, f"{operation} to end")
    assert found is not None
    return found


# Rights


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("POST", "/v1/branches/here/actions/drain", Scope.OPERATE),
        ("POST", "/v1/branches/here/actions/undrain", Scope.OPERATE),
        ("POST", "/v1/branches/here/actions/confirm", Scope.OPERATE),
        ("DELETE", "/v1/operations/here-00", Scope.OPERATE),
        ("POST", "/v1/branches/here/actions/shutdown", Scope.ADMIN),
    ],
)
async def test_what_changes_a_branch_needs_its_scope(
    api: Api, branch: Service, tokens: dict[Scope, str], method: str, path: str, needed: Scope
) -> None:
    for scope, token in tokens.items():
        answer = await api(method, path, token=token)
        assert (answer.status == 403) is not scope.includes(needed), scope
        if answer.status == 403:
            assert f"needs the scope {needed}" in answer.json["detail"]
            assert branch.endings.chosen is None


async def test_reading_needs_no_more_than_to_read(api: Api, tokens: dict[Scope, str]) -> None:
    for path in ("/v1/operations", "/v1/doctor"):
        assert (await api("GET", path, token=tokens[Scope.READ])).status == 200
        assert (await api("GET", path, token=None)).status == 401


# Alone


@pytest.mark.parametrize("action", ["drain", "undrain", "confirm"])
async def test_a_branch_that_is_alone_has_nowhere_to_move_to(api: Api, action: str) -> None:
    refused = await api("POST", f"/v1/branches/here/actions/{action}")
    assert (refused.slug, refused.json["hint"]) == ("conflict", "set [mesh] broker")


async def test_a_branch_that_is_alone_answers_what_it_knows(shop: Api) -> None:
    assert (await shop("GET", "/v1/operations")).json["items"] == []
    found = (await shop("GET", "/v1/doctor")).json
    assert (found["branch"], {one["check"] for one in found["findings"]}) == (
        "here", {"accounts", "control groups"},
    )  # fmt: skip
    assert (await shop("GET", EXPLAIN)).slug == "not-found"
    assert (await shop("GET", "/v1/operations/here-00")).slug == "not-found"
    assert (await shop("GET", "/v1/operations/there-00")).slug == "not-found"
    assert (await shop("POST", "/v1/branches/there/actions/drain")).slug == "not-found"


async def test_a_branch_ends_when_its_own_api_is_told_so(api: Api, branch: Service) -> None:
    answer = await api("POST", "/v1/branches/here/actions/shutdown")
    assert (answer.status, answer.json["name"], branch.endings.chosen) == (202, "here", Ending.STOP)


# By way of another branch


async def test_a_drain_is_asked_for_watched_and_ended_through_any_branch(three: Branches) -> None:
    a, b, c = three.values()
    for number in range(6):
        await created(a, f"w{number}")
    begun = await a.api("POST", "/v1/branches/b/actions/drain")
    assert way(begun) == (202, "b", "a")
    location = begun.headers["Location"]
    assert location == f"/v1/operations/{begun.json['id']}"
    assert begun.json["by"] == "token:admin"
    over = await ended(c, location)
    assert way(over) == (200, "b", "c")
    assert (over.json["state"], {step["state"] for step in over.json["steps"]}) == ("done", {"done"})
    await until(lambda: b.runs == [])
    assert sorted(a.runs + c.runs) == [f"w{number}" for number in range(6)]
    listed = await c.api("GET", "/v1/operations")
    assert [one["id"] for one in listed.json["items"]] == [begun.json["id"]]
    assert (await c.api("GET", "/v1/operations?local=1")).json["items"] == []
    assert (await b.api("GET", "/v1/branches/b")).json["state"] == "draining"
    assert (await c.api("DELETE", location)).slug == "conflict"
    assert way(await c.api("POST", "/v1/branches/b/actions/undrain")) == (200, "b", "c")
    assert (await b.api("GET", "/v1/branches/b")).json["state"] == "up"


async def test_an_operation_is_cancelled_through_any_branch(three: Branches) -> None:
    a, b, _ = three.values()
    for branch in (a, three["c"]):
        branch.house.processes.missing.add("other")
    while (name := f"w{len(a.runs) + len(b.runs) + len(three['c'].runs)}") and await created(a, name) != "b":
        pass
    assert (await b.api("PATCH", f"/v1/apps/shop/instances/{name}", {"command": ["other"]})).status == 200
    begun = await b.api("POST", "/v1/branches/b/actions/drain")
    assert begun.status == 202
    again = await a.api("POST", "/v1/branches/b/actions/drain?pinned=1")
    assert again.json["id"] == begun.json["id"]
    cancelled = await a.api("DELETE", begun.headers["Location"])
    assert (way(cancelled), cancelled.json["state"]) == ((200, "b", "a"), "cancelled")
    assert cancelled.json["steps"][0]["state"] == "kept"
    assert name in b.runs
    assert (await b.api("DELETE", begun.headers["Location"])).slug == "conflict"


async def test_a_branch_that_others_may_only_read_is_not_drained_by_them(tmp_path: Path) -> None:
    async with meshes(tmp_path, "a", "b", peer_scope=Scope.READ) as branches:
        a, b = branches.values()
        for action in ("drain", "undrain", "confirm"):
            refused = await a.api("POST", f"/v1/branches/b/actions/{action}")
            assert (refused.slug, refused.headers["Branchd-Owner"]) == ("denied", "b")
            assert "peer_scope" in refused.json["hint"]
        begun = await b.api("POST", "/v1/branches/b/actions/drain")
        assert begun.status == 202
        assert way(await a.api("GET", begun.headers["Location"])) == (200, "b", "a")
        assert (await a.api("DELETE", begun.headers["Location"])).slug == "denied"
        assert (await a.api("GET", "/v1/doctor?branch=b")).json["branch"] == "b"


async def test_the_end_of_a_daemon_is_never_carried(tmp_path: Path) -> None:
    async with meshes(tmp_path, "a", "b", peer_scope=Scope.ADMIN) as branches:
        a, b = branches.values()
        for path in ("/v1/branches/b/actions/shutdown", f"/v1/branches/{b.service.id}/actions/shutdown"):
            assert (await a.api("POST", path)).slug == "denied"
        assert not any(branch.service.endings.chosen for branch in (a, b))


async def test_what_is_told_of_another_branch_is_its_own(three: Branches) -> None:
    a, b, _ = three.values()
    answer = await a.api("GET", "/v1/doctor?branch=b")
    assert (way(answer), answer.json["branch"]) == ((200, "b", "a"), "b")
    levels = [one["level"] for one in answer.json["findings"]]
    assert levels == sorted(levels, key=["failure", "warning", "ok"].index)
    assert {"accounts", "broker", "clock"} <= {one["check"] for one in answer.json["findings"]}
    confirmed = await a.api("POST", "/v1/branches/b/actions/confirm")
    assert (way(confirmed), confirmed.json["id"]) == ((200, "b", "a"), b.service.id)


async def test_another_daemon_with_this_branchs_id_is_told_of(three: Branches) -> None:
    a, b, _ = three.values()
    [mine] = [other for other in a.mesh.others() if other.id == b.service.id]
    b.mesh.presence.believe([replace(mine, boot="another", incarnation=b.mesh.presence.incarnation)])
    first = (await a.api("GET", "/v1/doctor?branch=b")).json["findings"][0]
    assert (first["check"], first["level"]) == ("identity", "failure")
    assert "--new-id" in first["cure"]


async def test_any_branch_finds_out_how_an_instance_was_placed(three: Branches) -> None:
    a, b, c = three.values()
    owner = await created(b, "web")
    stories = [(await branch.api("GET", EXPLAIN)).json for branch in (a, b, c)]
    assert stories[0] == stories[1] == stories[2]
    story = stories[0]
    assert (story["by"], story["outcome"]) == ("b", "accepted")
    assert {asked["branch"] for asked in story["asked"]} == {"a", "b", "c"}
    assert all(asked["slots"] == 16 and asked["answer"] == "" for asked in story["asked"])
    assert story["offers"] == [{"branch": owner, "result": "accepted"}]
    assert (await b.api("GET", f"{EXPLAIN}?local=1")).status == 200
    assert (await a.api("GET", f"{EXPLAIN}?local=1")).slug == "not-found"


async def test_one_that_found_no_place_is_explained_too(three: Branches) -> None:
    a, _, c = three.values()
    refused = await a.api("POST", "/v1/apps/shop/instances", {"name": "web", "weight": 17})
    assert refused.slug == "no-capacity"
    story = (await c.api("GET", EXPLAIN)).json
    assert (story["by"], story["offers"]) == ("a", [])
    assert all(asked["answer"] for asked in story["asked"])
