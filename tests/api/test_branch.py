"""Health, who asks, branches, tokens."""

from branchd.api.server import Server
from branchd.branch.service import Service
from tests.api.conftest import Api, House


async def test_health_needs_no_token(api: Api) -> None:
    assert (await api("GET", "/healthz", token=None)).json == {"status": "ok"}
    assert (await api("GET", "/readyz", token=None)).json == {"status": "ok"}


async def test_a_branch_that_still_adopts_is_alive_but_not_ready_and_takes_no_changes(
    house: House, api: Api, branch: Service, server: Server
) -> None:
    await branch.end()  # as before begin(), and as while it stops
    assert (await api("GET", "/healthz", token=None)).status == 200
    answer = await api("GET", "/readyz", token=None)
    assert (answer.status, answer.slug) == (503, "unavailable")
    assert answer.json["detail"]
    assert (await api("PUT", "/v1/apps/shop", {})).slug == "unavailable"
    assert (await api("GET", "/v1/apps")).status == 200


async def test_head_answers_like_get_without_a_body(api: Api) -> None:
    answer = await api("HEAD", "/healthz", token=None)
    assert (answer.status, answer.body) == (200, b"")


async def test_whoami_names_principal_scope_and_branch(api: Api) -> None:
    assert (await api("GET", "/v1/whoami")).json == {"principal": "token:admin", "scope": "admin", "branch": "here"}


async def test_the_branch_lists_itself_and_is_found_by_name_and_id(api: Api, branch: Service) -> None:
    page = (await api("GET", "/v1/branches")).json
    assert [item["name"] for item in page["items"]] == ["here"]
    assert (page["next"], page["partial"], page["unreachable"]) == (None, False, [])
    by_name, by_id = [(await api("GET", f"/v1/branches/{name}")).json for name in ("here", branch.id)]
    assert by_name["id"] == by_id["id"] == branch.id
    assert (await api("GET", "/v1/branches/elsewhere")).slug == "not-found"


async def test_a_token_is_shown_once_works_and_is_revoked(api: Api) -> None:
    made = await api("POST", "/v1/tokens", {"name": "ci", "scope": "read"})
    assert made.status == 201
    token = made.json["token"]
    assert made.headers["Location"] == f"/v1/tokens/{made.json['id']}"
    assert (await api("GET", "/v1/whoami", token=token)).json["principal"] == "token:ci"
    shown = await api("GET", made.headers["Location"])
    listed = await api("GET", "/v1/tokens")
    assert shown.json["token"] is None
    assert token.encode() not in shown.body + listed.body
    assert [item["name"] for item in listed.json["items"]] == ["ci"]
    assert (await api("DELETE", made.headers["Location"])).status == 204
    assert (await api("GET", "/v1/whoami", token=token)).slug == "unauthenticated"
    assert (await api("DELETE", made.headers["Location"])).slug == "not-found"
    assert (await api("GET", made.headers["Location"])).slug == "not-found"


async def test_a_token_that_has_expired_opens_nothing(api: Api, branch: Service, house: House) -> None:
    made = await api("POST", "/v1/tokens", {"name": "ci", "scope": "read", "expires_in": 1e-6})
    assert made.json["expires_at"]
    assert (await api("GET", "/v1/whoami", token=made.json["token"])).status == 401


async def test_every_fault_of_a_token_is_told(api: Api) -> None:
    answer = await api("POST", "/v1/tokens", {"scope": "owner", "expires_in": "1d", "more": 1})
    assert (answer.status, answer.slug) == (422, "invalid")
    assert sorted(answer.pointers) == ["/expires_in", "/more", "/name", "/scope"]
    await api("POST", "/v1/tokens", {"name": "ci", "scope": "read"})
    assert (await api("POST", "/v1/tokens", {"name": "ci", "scope": "read"})).slug == "conflict"
