"""/v1/files: what it tells and to whom, and that what a file defines is refused to everybody, with its file."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from branchd.api.server import Server
from branchd.api.settings import HttpSettings
from branchd.core.access import Scope
from branchd.core.errors import Fault
from branchd.core.file_apps import FileApp, FileDefinitions
from tests.api.conftest import COMMAND, Api, House
from tests.waiting import until

FILE = "/etc/branchd/conf.d/shop.toml"


class Disk:
    def __init__(self) -> None:
        self.found = FileDefinitions()

    def shop(self, spec: dict[str, Any], *instances: str, faults: tuple[Fault, ...] = ()) -> None:
        app = FileApp("shop", FILE, spec, {name: {} for name in instances})
        self.found = FileDefinitions({"shop": app}, faults, (FILE,))

    async def read(self) -> FileDefinitions:
        return self.found


@pytest.fixture
def disk() -> Disk:
    disk = Disk()
    disk.shop(COMMAND, "web")
    return disk


@pytest.fixture
async def filed(house: House, disk: Disk) -> AsyncIterator[tuple[Api, dict[Scope, str]]]:
    service = house.service(read_files=disk.read)
    await service.begin()
    server = Server(service, HttpSettings(listen=("127.0.0.1:0",)))
    await server.start()
    tokens = {scope: (await service.tokens.create(f"of-{scope}", scope, None))[1] for scope in Scope}
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield Api(server.addresses[0], session), tokens
    await server.stop()
    service.kill()
    await service.end()
    await house.logs.close()


async def ended(api: Api, operation: str) -> Any:
    async def over() -> Any:
        found = (await api("GET", f"/v1/operations/{operation}")).json
        return found if found["state"] != "running" else None

    return await until(over, what="the operation to end")


async def test_the_difference_is_told_to_readers_and_applied_by_admins_alone(
    filed: tuple[Api, dict[Scope, str]], disk: Disk
) -> None:
    api, tokens = filed
    disk.shop(COMMAND | {"env": {"P": {"secret": "s3cret"}}}, "web", "new")
    found = (await api("GET", "/v1/files", token=tokens[Scope.READ])).json
    assert (found["changed"], found["files"]) == (["shop"], [FILE])
    assert "s3cret" not in str(found)
    for scope in (Scope.READ, Scope.OPERATE):
        refused = await api("POST", "/v1/files/actions/update", token=tokens[scope])
        assert (refused.status, refused.slug) == (403, "denied")
    assert (await api("GET", "/v1/files", token=None)).status == 401
    begun = await api("POST", "/v1/files/actions/update?app=shop")
    assert begun.status == 202
    assert begun.headers["Location"] == f"/v1/operations/{begun.json['id']}"
    done = await ended(api, begun.json["id"])
    assert (done["state"], done["kind"]) == ("done", "update")
    assert {step["name"]: step["detail"] for step in done["steps"]} == {
        "app shop": "changed", "shop:new": "created", "shop:web": "restarted, and ready",
    }  # fmt: skip
    assert (await api("GET", "/v1/files")).json["items"] == []


async def test_an_update_of_what_no_file_defines_or_of_faulty_files_begins_nothing(
    filed: tuple[Api, dict[Scope, str]], disk: Disk
) -> None:
    api, _ = filed
    assert (await api("POST", "/v1/files/actions/update?app=absent")).slug == "not-found"
    disk.shop(COMMAND | {"umask": "x"}, "web", faults=(Fault("/x.toml", "is not TOML"),))
    refused = await api("POST", "/v1/files/actions/update")
    assert (refused.status, refused.pointers) == (422, ["/x.toml", f"{FILE}: [apps.shop].umask"])
    found = (await api("GET", "/v1/files")).json
    assert [fault["pointer"] for fault in found["faults"]] == refused.pointers
    assert found["items"] == []
    doctor = (await api("GET", "/v1/doctor")).json["findings"]
    assert next(one for one in doctor if one["check"] == "definition files")["level"] == "failure"
    assert (await api("GET", "/v1/operations")).json["items"] == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/apps/shop", COMMAND),
        ("PATCH", "/v1/apps/shop", {"labels": {"a": "b"}}),
        ("DELETE", "/v1/apps/shop", None),
        ("DELETE", "/v1/apps/shop?cascade=1", None),
        ("POST", "/v1/apps/shop/actions/publish", None),
        ("POST", "/v1/apps/shop/actions/adopt", None),
        ("PUT", "/v1/apps/shop/queues/mail", {}),
        ("PUT", "/v1/apps/shop/instances/web", {}),
        ("PATCH", "/v1/apps/shop/instances/web", {"wanted": "down"}),
        ("DELETE", "/v1/apps/shop/instances/web", None),
    ],
)
async def test_what_a_file_defines_is_refused_with_its_file(
    filed: tuple[Api, dict[Scope, str]], method: str, path: str, body: Any
) -> None:
    api, _ = filed
    refused = await api(method, path, body)
    assert (refused.status, refused.slug) == (409, "file-owned")
    assert FILE in refused.json["detail"]
    assert "branchctl update" in refused.json["hint"]


async def test_operating_it_is_allowed_and_so_are_more_instances(filed: tuple[Api, dict[Scope, str]]) -> None:
    api, tokens = filed
    web = "/v1/apps/shop/instances/web"
    for action in ("stop", "start", "restart"):
        answer = await api("POST", f"{web}/actions/{action}?wait=10s", token=tokens[Scope.OPERATE])
        assert answer.status == 200, answer.body
    assert (await api("POST", f"{web}/actions/signal", {"signal": "HUP"}, tokens[Scope.OPERATE])).status == 200
    assert (await api("GET", web)).json["source"] == (await api("GET", "/v1/apps/shop")).json["source"] == FILE
    extra = await api("POST", "/v1/apps/shop/instances?wait=10s", {"name": "extra"})
    assert (extra.status, extra.json["source"]) == (201, "")
    assert (await api("DELETE", "/v1/apps/shop/instances/extra?wait=10s")).status == 204
