"""Logs and events: read, followed, resumed, filtered, bounded, ended."""

import asyncio
import json
import os
from typing import Any

import aiohttp
import pytest

from branchd.api import streams
from branchd.api.server import Server
from branchd.branch.service import Service
from branchd.core.access import Scope
from branchd.core.spec import Logs, Stderr
from branchd.core.values import Key
from tests.api.conftest import COMMAND, Api, House
from tests.waiting import until

WEB = "/v1/apps/shop/instances/web-1"
LOGS = f"{WEB}/logs"
SSE = {"Accept": "text/event-stream"}
NDJSON = {"Accept": "application/x-ndjson"}


def write(house: House, data: bytes, joined: bool = True) -> None:
    """As the program does: to its stderr, which is its stdout when joined."""
    with house.logs.open(Key("shop", "web-1"), Logs(stderr=Stderr.JOIN if joined else Stderr.FILE)) as (_, stderr):
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


def messages(text: bytes) -> list[dict[str, str]]:
    """Server-sent events, whole ones."""
    found = []
    for block in text.decode().split("\r\n\r\n")[:-1]:
        fields = [line.partition(": ")[::2] for line in block.split("\r\n") if not line.startswith(":")]
        if fields:
            found.append(dict(fields))
    return found


async def recorded(branch: Service) -> None:
    """Until the newest event is the record of the last request."""
    await until(lambda: recent(branch, "request"))


async def recent(branch: Service, type: str) -> bool:
    return [event.type async for event in branch.events.subscribe(tail=1, follow=False)] == [type]  # type: ignore[union-attr]


async def test_the_last_lines_come_as_they_were_written(shop: Api, house: House) -> None:
    await shop("PUT", WEB, {})
    write(house, b"one\n\x1b[31mtwo\xff<b>\n" + b"three\n")
    answer = await shop("GET", f"{LOGS}?tail=2")
    assert answer.body == b"\x1b[31mtwo\xff<b>\nthree\n"
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (await shop("GET", f"{LOGS}?tail=0")).body == b""
    assert (await shop("GET", LOGS, headers=SSE)).headers["Content-Type"].startswith("text/plain")


async def test_stderr_that_is_joined_is_a_conflict_and_one_of_its_own_is_read(shop: Api, house: House) -> None:
    await shop("PUT", WEB, {})
    answer = await shop("GET", f"{LOGS}?stream=stderr")
    assert (answer.status, answer.slug) == (409, "conflict")
    assert "joined" in answer.json["detail"]
    await shop("PUT", WEB, {"logs": {"stderr": "file"}})
    write(house, b"oops\n", joined=False)
    assert (await shop("GET", f"{LOGS}?stream=stderr")).body == b"oops\n"
    assert (await shop("GET", LOGS)).body == b""


async def test_logs_of_nothing_and_wrong_parameters_are_refused(shop: Api) -> None:
    assert (await shop("GET", LOGS)).slug == "not-found"
    wrong = await shop("GET", f"{LOGS}?tail=-1&stream=both&follow=2")
    assert sorted(wrong.pointers) == ["?follow", "?stream", "?tail"]


async def test_following_goes_on_with_what_is_written(shop: Api, house: House) -> None:
    await shop("PUT", WEB, {})
    write(house, b"one\n")
    async with shop.open("GET", f"{LOGS}?follow=1") as response:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert await take(response, b"one\n") == b"one\n"
        write(house, b"two\n")
        assert await take(response, b"two\n") == b"two\n"


@pytest.mark.parametrize("headers", [{}, SSE])
async def test_following_ends_when_the_instance_is_gone(shop: Api, house: House, headers: dict[str, str]) -> None:
    await shop("PUT", WEB, {})
    async with shop.open("GET", f"{LOGS}?follow", headers=headers) as response:
        write(house, b"one\n")
        await take(response, b"one")
        assert (await shop("DELETE", f"{WEB}?wait=5s")).status == 204
        async with asyncio.timeout(30):
            assert (await response.read()).strip() == b""


async def test_following_by_events_makes_each_line_one(shop: Api, house: House) -> None:
    await shop("PUT", WEB, {})
    async with shop.open("GET", f"{LOGS}?follow", headers=SSE) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        write(house, b"one\ntw")
        write(house, b"o \xff\nthree\n")
        seen = messages(await take(response, b"three\r\n\r\n"))
    assert [message["data"] for message in seen] == ["one", "two \ufffd", "three"]


async def test_events_come_with_ids_and_types(shop: Api) -> None:
    async with shop.open("GET", "/v1/events") as response:
        await shop("PUT", WEB, {})
        seen = messages(await take(response, b"RUNNING"))
    assert (seen[0]["event"], json.loads(seen[0]["data"])["instance"]) == ("instance.created", "web-1")
    ids = [int(message["id"]) for message in seen]
    assert ids == sorted(set(ids))
    assert [json.loads(message["data"])["id"] for message in seen] == ids


async def test_silent_events_are_kept_alive(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PING", 0.05)
    async with api.open("GET", "/v1/events") as response:
        assert (await take(response, b"\r\n\r\n")).startswith(b": ")


@pytest.mark.parametrize("by_header", [True, False])
async def test_events_resume_after_an_id(shop: Api, branch: Service, by_header: bool) -> None:
    last = branch.events.last
    await shop("PUT", "/v1/apps/blog", COMMAND)
    query, headers = ("", {"Last-Event-ID": str(last)}) if by_header else (f"?after={last}", {})
    async with shop.open("GET", f"/v1/events{query}", headers=headers) as response:
        seen = messages(await take(response, b"\r\n\r\n"))
    assert (int(seen[0]["id"]), seen[0]["event"]) == (last + 1, "app.created")


@pytest.mark.parametrize("tail", [0, 1, 10**9])
async def test_events_begin_with_the_last_ones_and_go_on(shop: Api, branch: Service, tail: int) -> None:
    for app in ("a", "b"):
        await shop("PUT", f"/v1/apps/{app}", COMMAND)
        await recorded(branch)
    last = branch.events.last
    async with shop.open("GET", f"/v1/events?tail={tail}") as response:
        await shop("PUT", "/v1/apps/c", COMMAND)
        seen = messages(await take(response, b'"type":"request","app":"c"'))
    assert [int(message["id"]) for message in seen] == list(range(max(1, last + 1 - tail), last + 3))


async def test_events_that_are_not_followed_end_with_what_is(shop: Api) -> None:
    await shop("PUT", "/v1/apps/blog", COMMAND)
    lines = (await shop("GET", "/v1/events?tail=1&follow=0", headers=NDJSON)).body.splitlines()
    assert [json.loads(line)["app"] for line in lines] == ["blog"]
    assert b"app.created" in (await shop("GET", "/v1/events?after=0&follow=0&app=shop")).body
    assert (await shop("GET", "/v1/events?follow=0", headers=NDJSON)).body == b""


async def test_a_tail_excludes_an_id_and_gives_way_to_a_browser_that_resumes(shop: Api, branch: Service) -> None:
    await recorded(branch)
    refused = await shop("GET", "/v1/events?tail=1&after=1")
    assert (refused.status, refused.pointers) == (422, ["?tail"])
    resumed = {"Last-Event-ID": str(branch.events.last)} | NDJSON
    assert (await shop("GET", "/v1/events?tail=1&follow=0", headers=resumed)).body == b""


async def test_an_id_that_is_not_known_resets(shop: Api, branch: Service) -> None:
    async with shop.open("GET", "/v1/events?after=999999") as response:
        seen = messages(await take(response, b"\r\n\r\n"))
        assert seen == [{"id": str(branch.events.last), "event": "reset", "data": f'{{"last":{branch.events.last}}}'}]
        await shop("PUT", "/v1/apps/blog", COMMAND)
        assert messages(await take(response, b"\r\n\r\n"))[0]["event"] == "app.created"
    async with shop.open("GET", "/v1/events?after=999999", headers=NDJSON) as response:
        line = json.loads(await take(response, b"\n"))
    assert line == {"type": "reset", "id": branch.events.last}


async def test_events_are_filtered_and_come_as_lines_of_json(shop: Api) -> None:
    query = "app=shop&instance=web-2&type=instance.c&type=instance.d"
    async with shop.open("GET", f"/v1/events?{query}", headers=NDJSON) as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"
        for name in ("web-1", "web-2"):
            await shop("PUT", f"/v1/apps/shop/instances/{name}?wait=5s", {})
            await shop("DELETE", f"/v1/apps/shop/instances/{name}?wait=5s")
        lines = (await take(response, b"instance.deleted")).splitlines()
    seen: list[dict[str, Any]] = [json.loads(line) for line in lines]
    types = ["instance.created", "instance.deleting", "instance.deleted"]
    assert [event["type"] for event in seen] == types
    assert {event["instance"] for event in seen} == {"web-2"}


async def test_what_cannot_be_an_id_is_told(api: Api) -> None:
    wrong = await api("GET", "/v1/events", headers={"Last-Event-ID": "x"})
    assert wrong.pointers == ["Last-Event-ID:"]
    assert (await api("GET", "/v1/events?after=-1")).pointers == ["?after"]


async def test_the_number_of_streams_is_bounded_and_a_client_that_goes_gives_its_place_back(
    shop: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_OF_ONE", 3)
    await shop("PUT", WEB, {})
    held = [await shop.open("GET", path) for path in ("/v1/events", "/v1/events", f"{LOGS}?follow=1")]
    for path in ("/v1/events", f"{LOGS}?follow=1"):
        refused = await shop("GET", path)
        assert (refused.status, refused.slug) == (429, "too-many")
    assert (await shop("GET", LOGS)).status == 200
    held.pop().close()
    await until(lambda: opens(shop))
    for response in held:
        response.close()


async def test_nobody_takes_the_streams_of_others_nor_those_of_the_operator(
    shop: Api, server: Server, tokens: dict[Scope, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_STREAMS", 5)
    monkeypatch.setattr(streams, "RESERVED", 2)
    monkeypatch.setattr(streams, "MOST_OF_ONE", 2)
    connector = aiohttp.UnixConnector(server.addresses[1].removeprefix("unix:"))
    async with aiohttp.ClientSession(connector=connector) as session:
        operator = Api("http://branchd", session)
        held = []
        for api, token, statuses in [
            (shop, tokens[Scope.READ], [200, 200, 429]),
            (shop, tokens[Scope.ADMIN], [200, 429]),
            (operator, None, [200, 200, 429]),
        ]:
            for status in statuses:
                held.append(await api.open("GET", "/v1/events", token=token))
                assert held[-1].status == status
        for response in held:
            response.close()


async def opens(api: Api) -> bool:
    """Whether one more stream can be had; it is closed again."""
    async with api.open("GET", "/v1/events") as response:
        return bool(response.status == 200)


async def test_a_reader_that_does_not_read_is_dropped(shop: Api, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_OF_ONE", 1)
    monkeypatch.setattr(streams, "PATIENCE", 0.1)
    await shop("PUT", WEB, {})
    async with shop.open("GET", f"{LOGS}?follow=1") as response:
        for _ in range(64):
            write(house, b"x" * (1 << 20))
        await until(lambda: opens(shop))
        with pytest.raises(aiohttp.ClientPayloadError):  # what came is not whole, and says so
            await response.read()


async def test_streams_end_whole_when_the_server_stops(shop: Api, house: House, server: Server) -> None:
    await shop("PUT", WEB, {})
    write(house, b"one\n")
    events = await shop.open("GET", "/v1/events")
    lines = await shop.open("GET", "/v1/events", headers=NDJSON)
    logs = await shop.open("GET", f"{LOGS}?follow=1")
    await take(logs, b"one\n")
    async with asyncio.timeout(30):
        await server.stop()
        assert await events.read() == b"retry: 1000\r\n\r\n"  # browsers come again by themselves
        assert [await response.read() for response in (lines, logs)] == [b"", b""]
