"""The door's paths: closed unless it is opened, who may pass, what is refused beforehand, and the streams."""

import asyncio
import io
import os
import xmlrpc.client
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from branchd.api import streams
from branchd.branch.own_log import OwnLog
from branchd.branch.service import Service
from branchd.core.access import Scope
from branchd.core.spec import Logs, Stderr
from branchd.core.values import Key, Stream
from tests.api.conftest import ADMIN, Api, House
from tests.api.door.conftest import Rpc, basic
from tests.waiting import until

STOP_ALL = xmlrpc.client.dumps((), "supervisor.stopAllProcesses")
ASK = xmlrpc.client.dumps((), "supervisor.getIdentification")
BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "lolololololololololol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]>
<methodCall><methodName>system.methodHelp</methodName><params><param><value>&c;</value></param></params></methodCall>"""

WEB = "/logtail/shop:web/stdout"


def write(house: House, data: bytes, logs: Logs = Logs()) -> None:
    """As the program does, to its standard error."""
    with house.logs.open(Key("shop", "web"), logs) as (_, stderr):
        os.write(stderr, data)


async def take(response: aiohttp.ClientResponse, enough: bytes) -> bytes:
    """What comes, until `enough` is in it."""
    seen = b""
    async with asyncio.timeout(30):
        while enough not in seen:
            chunk = await response.content.readany()
            assert chunk, seen
            seen += chunk
    return seen


async def all_run(branch: Service) -> bool:
    return {instance.status.state for instance in branch.instances.list("shop")} == {"RUNNING"}


@pytest.mark.parametrize(("method", "path"), [("POST", "/RPC2"), ("GET", WEB), ("GET", "/mainlogtail")])
async def test_the_door_is_closed_unless_it_is_opened(api: Api, method: str, path: str) -> None:
    answer = await api(method, path)
    assert (answer.status, answer.slug) == (404, "no-such-path")


async def test_a_token_is_the_password_of_any_user_or_a_bearer(rpc: Rpc, tokens: dict[Scope, str]) -> None:
    for headers in (basic(ADMIN), basic(tokens[Scope.READ], user=""), {"Authorization": f"Bearer {ADMIN}"}):
        assert (await rpc.post(ASK, **headers)).status == 200
    for wrong in (
        {}, basic("wrong"), basic(""), {"Authorization": "Basic !!"}, {"Authorization": "Basic"},
        {"Authorization": f"Basic {ADMIN}"}, {"Authorization": "Digest x"}, {"Authorization": "Bearer wrong"},
    ):  # fmt: skip
        answer = await rpc.post(ASK, **wrong)
        assert (answer.status, answer.slug) == (401, "unauthenticated"), wrong
    assert (await rpc.post(ASK)).headers["WWW-Authenticate"].startswith("Basic ")


async def test_a_password_opens_nothing_but_the_door(rpc: Rpc) -> None:
    answer = await rpc.api("GET", "/v1/whoami", token=None, headers=basic(ADMIN))
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")


async def test_on_the_unix_socket_the_kernel_tells_who_asks(open_api: Api, tmp_path: Path) -> None:
    connector = aiohttp.UnixConnector(f"{tmp_path}/door.sock")
    async with aiohttp.ClientSession(connector=connector) as session:
        door = Rpc(Api("http://localhost", session))
        assert (await door.post(ASK, **basic("no token"))).status == 200
        assert (await door.post(ASK)).status == 200


@pytest.mark.parametrize(
    ("headers", "status", "slug"),
    [
        ({"Content-Type": "text/plain"}, 415, "not-xml"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "not-xml"),
        ({"Content-Type": "application/json"}, 415, "not-xml"),
        ({"Content-Encoding": "gzip"}, 415, "not-json"),
        ({"Origin": "http://evil.example"}, 403, "cross-origin"),
        ({"Origin": "null"}, 403, "cross-origin"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "cross-origin"),
        ({"Sec-Fetch-Site": "same-site"}, 403, "cross-origin"),
        ({"Host": "evil.example"}, 421, "wrong-host"),
    ],
)
async def test_what_a_page_could_send_is_refused(
    rpc: Rpc, branch: Service, headers: dict[str, str], status: int, slug: str
) -> None:
    answer = await rpc.post(STOP_ALL, **{**basic(ADMIN), **headers})
    assert (answer.status, answer.slug) == (status, slug)
    assert await all_run(branch)


async def test_a_get_changes_nothing(rpc: Rpc, branch: Service) -> None:
    answer = await rpc.api("GET", "/RPC2", data=STOP_ALL, headers={"Content-Type": "text/xml"})
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert await all_run(branch)


@pytest.mark.parametrize("body", [BOMB, "", "{}", "<a/>", "<" * 1000, "<methodCall>" * 1000])
async def test_bodies_that_are_no_calls_are_refused_in_words(rpc: Rpc, body: str) -> None:
    answer = await rpc.post(body, **basic(ADMIN))
    assert (answer.status, answer.slug) == (400, "broken-xml")
    assert len(answer.body) < 500


async def test_the_limit_of_bodies_holds_here_too(rpc: Rpc) -> None:
    answer = await rpc.post(io.BytesIO(b" " * (1 << 20) + b"x"), **basic(ADMIN))
    assert (answer.status, answer.slug) == (413, "too-large")


async def test_a_client_that_hangs_up_leaves_what_it_began_to_go_on(rpc: Rpc, branch: Service, house: House) -> None:
    stubborn = {"stop": [{"signal": "TERM", "patience": 1000}]}  # the fakes do not end by it
    assert (await rpc.api("PUT", "/v1/apps/shop/instances/slow", stubborn)).status == 201
    asking = asyncio.create_task(rpc("supervisor.stopAllProcesses"))
    await until(lambda: branch.instances.get("shop", "slow").status.state == "STOPPING")
    await until(lambda: branch.instances.get("shop", "web").status.state == "STOPPED")  # which waited for no other
    asking.cancel()
    await asyncio.wait([asking])
    assert branch.instances.get("shop", "slow").status.wanted == "down"


# Streams


async def test_a_log_is_followed_from_its_last_kilobyte(open_api: Api, house: House) -> None:
    write(house, b"x" * 2000 + b"\n")
    async with open_api.open("GET", WEB, token=None, headers=basic(ADMIN)) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert await take(response, b"\n") == b"x" * 1023 + b"\n"
        write(house, b"part of a line")
        assert await take(response, b"line") == b"part of a line"
        await house.logs.clear(Key("shop", "web"))
        write(house, b"anew\n")
        assert (await take(response, b"anew\n")).endswith(b"anew\n")


async def test_standard_error_is_followed_where_it_has_a_file(open_api: Api, house: House) -> None:
    assert (await open_api("GET", "/logtail/shop:web/stderr")).status == 404
    await open_api("PATCH", "/v1/apps/shop/instances/web", {"logs": {"stderr": "file"}})
    async with open_api.open("GET", "/logtail/shop:web/stderr") as response:
        write(house, b"oops\n", Logs(stderr=Stderr.FILE))
        assert await take(response, b"oops\n") == b"oops\n"
    async with open_api.open("GET", "/logtail/shop:web") as response:  # the standard output
        write(house, b"fine\n")
        assert await take(response, b"fine\n") == b"fine\n"


async def test_who_follows_what_was_taken_away_is_told(open_api: Api, house: House, rpc: Rpc) -> None:
    write(house, b"one\n")
    await until(lambda: Key("shop", "web") in house.logs.watched)
    async with open_api.open("GET", WEB) as response:
        assert await take(response, b"one\n") == b"one\n"
        house.logs.lose(Key("shop", "web"), Stream.STDOUT, "/old/stdout.log")
        assert b"removed, moved or replaced while it ran" in await response.read()
    async with open_api.open("GET", WEB) as response:
        assert (await response.read()).endswith(b"branchctl restart shop:web: it opens a new one]\n")
    with pytest.raises(xmlrpc.client.Fault, match="removed, moved or replaced while it ran"):
        await rpc("supervisor.readProcessStdoutLog", "shop:web", 0, 0)


@pytest.mark.parametrize("name", ["shop:gone/stdout", "shop:*/stdout", "gone/stdout", "shop:web/other"])
async def test_there_is_nothing_to_follow_of_what_is_not_there(open_api: Api, name: str) -> None:
    answer = await open_api("GET", f"/logtail/{name}")
    assert (answer.status, answer.slug) == (404, "no-such-path")


async def test_the_daemons_own_log_is_for_admins(open_api: Api, own_log: OwnLog, tokens: dict[Scope, str]) -> None:
    own_log.write("one\n")
    async with open_api.open("GET", "/mainlogtail") as response:
        assert await take(response, b"one\n") == b"one\n"
        own_log.write("two\n")
        assert await take(response, b"two\n") == b"two\n"
    assert (await open_api("GET", "/mainlogtail", token=tokens[Scope.OPERATE])).status == 403


async def test_following_ends_with_the_instance_and_so_does_the_connection(open_api: Api, house: House) -> None:
    write(house, b"one\n")
    async with open_api.open("GET", WEB) as response:
        assert response.headers["Connection"] == "close"
        await take(response, b"one\n")
        assert (await open_api("DELETE", "/v1/apps/shop/instances/web?wait=5s")).status == 204
        async with asyncio.timeout(30):
            await response.read()


async def test_streams_are_bounded_with_those_of_the_api(
    open_api: Api, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_OF_ONE", 1)
    write(house, b"one\n")
    async with open_api.open("GET", WEB) as response:
        await take(response, b"one\n")
        refused: Any = await open_api("GET", "/mainlogtail")
        assert (refused.status, refused.slug) == (429, "too-many")
