"""Apps that a neighbourhood shares, over HTTP: conditions, adopt and publish, tags."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from branchd.branch.apps import Apps, Queues
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.sharing import Sharing
from branchd.branch.service import Service
from branchd.core.access import Scope
from branchd.core.peers import Address
from tests.api.conftest import COMMAND, Api
from tests.branch.sharers import Branch
from tests.fakes.bus import MemoryBroker
from tests.fakes.seal import ClearSeal
from tests.waiting import until


@pytest.fixture
async def other(branch: Service) -> AsyncIterator[Branch]:
    """Another branch of the neighbourhood that the branch of the API is in."""
    broker = MemoryBroker()
    me = Address(branch.id, "boot")
    link = Link(broker.bus(branch.id), ClearSeal(me), me)
    sharing = Sharing(link, branch._fleet, lambda: 0.0)
    branch.apps, branch.queues = Apps(branch._fleet, sharing), Queues(branch._fleet, sharing)
    async with AsyncExitStack() as stack:
        other = Branch(broker, 1, wall=time.time)
        stack.push_async_callback(other.close)
        stack.push_async_callback(link.close)
        await other.begin()
        await link.open()
        await until(lambda: link.connected and other.link is not None and other.link.connected)
        yield other


def conditions(body: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {one["type"]: one["status"] for one in body["conditions"]}


async def test_alone_an_app_has_no_conditions_and_nothing_is_shared(shop: Api) -> None:
    assert (await shop("GET", "/v1/apps/shop")).json["conditions"] == []
    for action in ("adopt", "publish"):
        answer = await shop("POST", f"/v1/apps/shop/actions/{action}")
        assert (answer.status, answer.slug) == (409, "conflict")
        assert "no broker" in answer.json["detail"]


async def test_a_definition_of_this_branch_is_published(shop: Api, other: Branch) -> None:
    shown = (await shop("GET", "/v1/apps/shop")).json
    assert conditions(shown) == {"Shared": "False"}
    assert "branchctl app publish shop" in shown["conditions"][0]["reason"]
    published = await shop("POST", "/v1/apps/shop/actions/publish")
    assert (published.status, conditions(published.json)) == (200, {"Shared": "True"})
    await until(lambda: "shop" in other.view())
    read = await shop("GET", "/v1/apps/shop")
    assert published.headers["ETag"] == read.headers["ETag"] == f'"{other.apps.tag("shop")}"'
    assert (await shop("POST", "/v1/apps/shop/actions/publish")).slug == "conflict"
    assert (await shop("POST", "/v1/apps/none/actions/publish")).slug == "not-found"


async def test_a_conflict_is_shown_and_the_shared_one_is_adopted(shop: Api, branch: Service, other: Branch) -> None:
    assert (await shop("POST", "/v1/apps/shop/actions/adopt")).slug == "conflict"
    await other.apps.put("shop", {**COMMAND, "weight": 5})

    await until(lambda: branch.apps.get("shop").conditions[1:])
    shown = (await shop("GET", "/v1/apps/shop")).json
    assert conditions(shown) == {"Shared": "False", "DefinitionConflict": "True"}
    assert (await shop("DELETE", "/v1/apps/shop?cascade=1")).slug == "conflict"
    adopted = await shop("POST", "/v1/apps/shop/actions/adopt")
    assert (adopted.status, adopted.json["spec"]["weight"], conditions(adopted.json)) == (200, 5, {"Shared": "True"})
    assert [conditions(app) for app in (await shop("GET", "/v1/apps")).json["items"]] == [{"Shared": "True"}]


async def test_a_shared_app_is_changed_only_as_it_was_read(api: Api, branch: Service, other: Branch) -> None:
    await other.apps.put("shop", COMMAND)
    await until(branch.apps.list)
    read = await api("GET", "/v1/apps/shop")
    await other.apps.patch("shop", {"weight": 2})
    await until(lambda: branch.apps.get("shop").generation == 2)
    for method, body in (("PUT", COMMAND), ("PATCH", {}), ("DELETE", None)):
        answer = await api(method, "/v1/apps/shop", body, headers={"If-Match": read.headers["ETag"]})
        assert answer.slug == "stale"
    now = (await api("GET", "/v1/apps/shop")).headers["ETag"]
    changed = await api("PATCH", "/v1/apps/shop", {"weight": 3}, headers={"If-Match": now})
    assert (changed.status, changed.json["generation"]) == (200, 3)
    gone = await api("DELETE", "/v1/apps/shop", headers={"If-Match": changed.headers["ETag"]})
    assert gone.status == 204
    await until(lambda: not other.view())


async def test_only_admins_adopt_and_publish(shop: Api, tokens: dict[Scope, str]) -> None:
    for action in ("adopt", "publish"):
        answer = await shop("POST", f"/v1/apps/shop/actions/{action}", token=tokens[Scope.OPERATE])
        assert answer.slug == "denied"
