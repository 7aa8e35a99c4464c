"""What may be asked of a log, what is refused, and how an answer says where it stands."""

import asyncio
import os
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from branchd.branch.ports import Piece
from branchd.branch.records import Put
from branchd.branch.service import Service
from branchd.core.access import Scope
from branchd.core.errors import Unavailable
from branchd.core.spec import Logs
from branchd.core.values import Key, Stream
from tests.api.conftest import Api, House
from tests.api.test_streams import LOGS, SSE, WEB, messages, take

TEXT = b"one apple\ntwo\nthree Apples\n"


@pytest.fixture
async def web(shop: Api, house: House) -> Api:
    """An instance that has written TEXT."""
    await shop("PUT", WEB, {})
    append(house, TEXT)
    return shop


def append(house: House, data: bytes) -> None:
    with house.logs.open(Key("shop", "web-1"), Logs()) as (out, _):
        os.write(out, data)


async def test_any_part_is_given_exactly_and_says_where_the_next_one_is(web: Api, house: House) -> None:
    answer = await web("GET", f"{LOGS}?offset=4&length=9")
    assert answer.body == TEXT[4:13]
    assert (answer.headers["Branchd-Log-Offset"], answer.headers["Branchd-Log-Next"]) == ("4", "13")
    assert "Branchd-Log-Gap" not in answer.headers
    assert (await web("GET", f"{LOGS}?length=3")).body == TEXT[:3]
    assert (await web("GET", f"{LOGS}?offset=999&length=3")).body == b""
    await house.logs.clear(Key("shop", "web-1"))
    append(house, b"new\n")
    answer = await web("GET", f"{LOGS}?offset=4&length=100")
    assert answer.body == b"new\n"
    assert (answer.headers["Branchd-Log-Offset"], answer.headers["Branchd-Log-Gap"]) == (
        str(len(TEXT)), str(len(TEXT) - 4),
    )  # fmt: skip


async def test_lines_go_on_where_an_answer_said(web: Api, house: House) -> None:
    answer = await web("GET", LOGS)
    assert answer.body == TEXT
    append(house, b"later\n")
    more = await web("GET", f"{LOGS}?offset={answer.headers['Branchd-Log-Next']}")
    assert more.body == b"later\n"
    await house.logs.clear(Key("shop", "web-1"))
    gone = await web("GET", f"{LOGS}?offset=1")
    assert gone.body == b"[branchd: %d bytes were rotated away]\n" % (len(TEXT) + 5)


async def test_lines_with_a_text(web: Api) -> None:
    assert (await web("GET", f"{LOGS}?grep=apple")).body == b"one apple\n"
    assert (await web("GET", f"{LOGS}?grep=aPPle&ignore_case")).body == b"one apple\nthree Apples\n"
    assert (await web("GET", f"{LOGS}?grep=aPPle&ignore_case&tail=1")).body == b"three Apples\n"
    assert (await web("GET", f"{LOGS}?grep=.*")).body == b""


async def test_since_says_how_exact_it_is(web: Api) -> None:
    for since in ("15m", "0s", datetime.now(UTC).isoformat().replace("+00:00", "Z"), "2020-01-31T23:59:59.5%2B01:00"):
        answer = await web("GET", f"{LOGS}?since={since}")
        assert answer.headers["Branchd-Log-Since"] == "coarse"  # the fake keeps no times
    assert "Branchd-Log-Since" not in (await web("GET", LOGS)).headers


@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        ("since=yesterday", ["?since"]),
        ("since=2026-01-31", ["?since"]),
        ("since=2026-01-31T23:59:59", ["?since"]),
        ("since=2026-02-31T23:59:59Z", ["?since"]),
        ("since=-5m&offset=-1&length=0", ["?length", "?offset", "?since"]),
        ("length=16777217", ["?length"]),
        ("tail=10001", ["?tail"]),
        ("grep=" + "x" * 1001, ["?grep"]),
        ("grep=", ["?grep"]),
        ("grep=a%0Ab", ["?grep"]),
        ("ignore_case", ["?ignore_case"]),
        ("tail=1&offset=3", ["?tail"]),
        ("length=1&follow&tail=1&since=1m&grep=x", ["?follow", "?grep", "?since", "?tail"]),
    ],
)
async def test_what_cannot_be_asked_is_refused(web: Api, query: str, pointers: list[str]) -> None:
    answer = await web("GET", f"{LOGS}?{query}")
    assert (answer.status, sorted(answer.pointers)) == (422, pointers)


async def test_times_that_no_clock_has_are_told_in_words(web: Api) -> None:
    far = (datetime.now(UTC) + timedelta(days=3650)).isoformat().replace("+00:00", "Z")
    assert (await web("GET", f"{LOGS}?since={far}")).status == 200
    assert (await web("GET", f"{LOGS}?since=999999999h")).status == 200
    assert (await web("GET", f"{LOGS}?since=9999-12-31T23:59:59-23:59")).status in {200, 422}


async def test_reading_is_enough(web: Api, tokens: dict[Scope, str]) -> None:
    assert (await web("GET", f"{LOGS}?grep=two", token=tokens[Scope.READ])).body == b"two\n"


async def test_followed_lines_have_ids_to_go_on_after(web: Api, house: House) -> None:
    async with web.open("GET", f"{LOGS}?follow&tail=1", headers=SSE) as response:
        assert response.headers["Branchd-Log-Offset"] == "14"
        append(house, b"four\nfi")
        append(house, b"ve\n")
        seen = messages(await take(response, b"data: five\r\n\r\n"))
    ids = [int(message["id"]) for message in seen]
    assert ids == [len(TEXT), len(TEXT) + 5, len(TEXT) + 10]
    async with web.open("GET", f"{LOGS}?follow&tail=1", headers=SSE | {"Last-Event-ID": str(ids[1])}) as response:
        assert messages(await take(response, b"five\r\n\r\n"))[0]["data"] == "five"
    await house.logs.clear(Key("shop", "web-1"))
    append(house, b"new\n")
    async with web.open("GET", f"{LOGS}?follow", headers=SSE | {"Last-Event-ID": str(ids[0])}) as response:
        seen = messages(await take(response, b"new\r\n\r\n"))
    assert (seen[0]["event"], seen[0]["data"], seen[0]["id"]) == ("gap", "10", str(ids[2]))
    wrong = await web("GET", f"{LOGS}?follow", headers=SSE | {"Last-Event-ID": "x"})
    assert wrong.pointers == ["Last-Event-ID:"]


async def test_followed_lines_with_a_text(web: Api, house: House) -> None:
    async with web.open("GET", f"{LOGS}?follow&grep=apple", headers=SSE) as response:
        append(house, b"pear\napple pie\nno\n")
        seen = messages(await take(response, b"pie\r\n\r\n"))
    assert [message["data"] for message in seen] == ["one apple", "apple pie"]
    assert int(seen[-1]["id"]) == len(TEXT) + len(b"pear\napple pie\nno\n")


@pytest.mark.parametrize(("to", "words"), [("journal", "journalctl -t shop:web-1"), ("inherit", "docker logs")])
async def test_what_is_not_in_files_says_where_it_is(shop: Api, to: str, words: str) -> None:
    await shop("PUT", WEB, {"logs": {"to": to}})
    for query in ("", "?follow", "?length=5", "?stream=stderr"):
        answer = await shop("GET", f"{LOGS}{query}")
        assert (answer.status, answer.slug) == (409, "conflict")
        assert words in answer.json["hint"]


async def test_who_hangs_up_ends_the_search(web: Api, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def select(*_: object, follow: bool) -> object:
        try:
            begun.set()
            await asyncio.sleep(3600)
            yield None
        finally:
            ended.set()

    monkeypatch.setattr(house.logs, "select", select)
    asking = asyncio.create_task(web("GET", f"{LOGS}?grep=x"))
    async with asyncio.timeout(30):
        await begun.wait()
        asking.cancel()
        await ended.wait()


async def test_an_instance_whose_spec_is_not_valid_any_more_has_its_log_all_the_same(
    web: Api, house: House, branch: Service
) -> None:
    [record] = house.store.load().instances
    await branch._fleet.define("shop", [Put(replace(record, spec={"restart": "nonsense"}))], [])
    assert "not valid any more" in (await web("GET", WEB)).json["status"]["reason"]
    assert (await web("GET", LOGS)).body == TEXT


async def test_a_log_that_cannot_be_read_is_a_503_also_for_who_would_follow_it(
    web: Api, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> AsyncGenerator[Piece, None]:
        raise Unavailable("the log of shop:web-1 cannot be read: Input/output error")
        yield

    monkeypatch.setattr(house.logs, "select", broken)
    for query in ("", "?follow"):
        answer = await web("GET", f"{LOGS}{query}")
        assert (answer.status, answer.slug) == (503, "unavailable")
        assert "Input/output" in answer.json["detail"]


@pytest.mark.parametrize("query", ["", "?follow=1", "?offset=0&length=3", "?grep=apple"])
async def test_of_one_that_was_taken_away_nothing_is_given(web: Api, house: House, query: str) -> None:
    house.logs.lose(Key("shop", "web-1"), Stream.STDOUT, "/old/stdout.log (deleted)")
    answer = await web("GET", f"{LOGS}{query}")
    assert (answer.status, answer.slug) == (409, "conflict")
    assert "removed, moved or replaced while it ran" in answer.json["detail"]
    assert answer.json["hint"].startswith("branchctl restart shop:web-1")


async def test_who_follows_one_that_is_taken_away_comes_to_the_end(web: Api, house: House) -> None:
    async with web.open("GET", f"{LOGS}?follow") as response:
        assert await response.content.readexactly(len(TEXT)) == TEXT
        house.logs.lose(Key("shop", "web-1"), Stream.STDOUT, "/old/stdout.log (deleted)")
        assert await response.read() == b""
