"""A branch with fakes at its ports whose supervisor door is open, and a client that speaks through it."""

import base64
import xmlrpc.client
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import aiohttp
import pytest

from branchd.api.server import Server
from branchd.api.settings import HttpSettings
from branchd.branch.own_log import OwnLog
from branchd.branch.service import Service
from tests.api.conftest import ADMIN, COMMAND, Answer, Api

XML = {"Content-Type": "text/xml"}


def basic(token: str, user: str = "anybody") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()}


class Rpc:
    """Calls as a client of supervisord's makes them, by the admin token where no other is given."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def __call__(self, method: str, *params: Any, token: str = ADMIN) -> Any:
        """The result; xmlrpc.client.Fault."""
        answer = await self.post(xmlrpc.client.dumps(params, method), **basic(token))
        assert answer.status == 200, (answer.status, answer.body)
        assert answer.headers["Content-Type"].startswith("text/xml")
        (result,), _ = xmlrpc.client.loads(answer.body)
        return result

    async def fault(self, method: str, *params: Any, token: str = ADMIN) -> str:
        """The words of the fault that it is answered with."""
        with pytest.raises(xmlrpc.client.Fault) as caught:
            await self(method, *params, token=token)
        return caught.value.faultString

    async def post(self, body: str | bytes | IO[bytes], **headers: str) -> Answer:
        return await self.api("POST", "/RPC2", token=None, data=body, headers=XML | headers)


@pytest.fixture
def own_log() -> OwnLog:
    return OwnLog()


@pytest.fixture
async def open_api(branch: Service, own_log: OwnLog, tmp_path: Path) -> AsyncIterator[Api]:
    """With an app `shop` of the instances web and db, which are up."""
    settings = HttpSettings(listen=("127.0.0.1:0", f"unix:{tmp_path}/door.sock"), supervisor_door=True)
    server = Server(branch, settings, own_log=own_log)
    await server.start()
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        api = Api(server.addresses[0], session)
        assert (await api("PUT", "/v1/apps/shop", COMMAND)).status == 201
        for name in ("web", "db"):
            assert (await api("PUT", f"/v1/apps/shop/instances/{name}", {})).status == 201
        yield api
    await server.stop()


@pytest.fixture
def rpc(open_api: Api) -> Rpc:
    return Rpc(open_api)
