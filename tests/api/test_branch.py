"""Health, who asks, branches, tokens."""

import asyncio

import aiohttp
import pytest

from branchd.api.server import Server
from branchd.api.settings import HttpSettings
from branchd.branch.service import Service
from branchd.core.access import Scope
from branchd.core.errors import Unavailable
from tests.api.conftest import COMMAND, Api, House


async def test_health_needs_no_token(api: Api) -> None:
    assert (await api("GET", "/healthz", token=None)).json == {"status": "ok"}
    assert (await api("GET", "/readyz", token=None)).json == {"status": "ok"}


async def test_a_branch_that_still_adopts_is_alive_and_what_is_to_change_waits_until_it_has(house: House) -> None:
    service = house.service()
    server = Server(service, HttpSettings(listen=("127.0.0.1:0",)))
    await server.start()
    async with aiohttp.ClientSession() as session:
        api = Api(server.addresses[0], session)
        assert (await api("GET", "/healthz", token=None)).status == 200
        assert (await api("GET", "/readyz", token=None)).slug == "unavailable"
        change = asyncio.create_task(api("PUT", "/v1/apps/shop", COMMAND))
        _, reader = await service.tokens.create("reader", Scope.READ, None)
        assert (await api("PUT", "/v1/apps/shop", COMMAND, token=reader)).slug == "denied"
        assert (await api("GET", "/v1/apps")).json["items"] == []
        assert not change.done()
        await service.begin()
        assert (await change).status == 201
    await server.stop()
    await service.end()
    await house.logs.close()


async def test_a_branch_that_never_has_adopted_says_so_to_who_waits(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("branchd.branch.service.BEGUN_WITHIN", 0.01)
    with pytest.raises(Unavailable, match="an earlier daemon"):
        await house.service().take()
    await house.logs.close()


async def test_a_branch_that_ends_is_alive_but_not_ready_and_takes_no_changes(api: Api, branch: Service) -> None:
    await branch.end()
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
