"""If-Match and If-None-Match: kept, or refused, and never disregarded."""

import pytest

from tests.api.conftest import COMMAND, Api


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
async def test_a_condition_is_never_disregarded(header: str, shop: Api) -> None:
    for method, path in [
        ("POST", "/v1/apps/shop/instances/web-1/actions/stop"),
        ("POST", "/v1/apps/shop/instances"),
        ("DELETE", "/v1/apps/shop/queues/mail"),
    ]:
        answer = await shop(method, path, {}, headers={header: "*"})
        assert (answer.status, answer.pointers) == (422, [f"{header}:"])


@pytest.mark.parametrize("path", ["/v1/apps/shop", "/v1/apps/shop/instances/web-1", "/v1/apps/shop/queues/mail"])
async def test_what_must_be_new_replaces_nothing(path: str, api: Api) -> None:
    condition = {"If-None-Match": "*"}
    if path != "/v1/apps/shop":
        await api("PUT", "/v1/apps/shop", COMMAND)
    assert (await api("PUT", path, COMMAND if path == "/v1/apps/shop" else {}, headers=condition)).status == 201
    before = (await api("GET", path)).json
    replacing = {"exchange": "other"} if "queues" in path else {**COMMAND, "weight": 9}
    refused = await api("PUT", path, replacing, headers=condition)
    assert (refused.status, refused.slug) == (412, "stale")
    if "instances" not in path:
        assert (await api("GET", path)).json == before
    else:
        assert (await api("GET", path)).json["generation"] == 1
    assert (await api("PUT", path, replacing, headers={"If-None-Match": '"x"'})).pointers == ["If-None-Match:"]
