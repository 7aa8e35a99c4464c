"""What a client makes of answers, good and bad, that a server writes byte by byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from branchd.client import ApiProblem, BranchdClient, Unreachable
from branchd.client.connection import endpoint


@asynccontextmanager
async def serving(answer: Callable[[bytes], bytes], *, hang: bool = False) -> AsyncIterator[str]:
    """The URL of a server that answers each request's head with these bytes, and hangs up unless it is to hang."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(await reader.readuntil(b"\r\n\r\n")))
        await writer.drain()
        if hang:
            await done.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        done.set()


def plain(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        plain(b'{"scope": "read"}'),
        b"HTTP/1.1 100 Continue\r\n\r\n" + plain(b'{"scope": "read"}'),
        b'HTTP/1.1 200\r\nContent-Type: application/json\r\n\r\n{"scope": "read"}',
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'8;x=y\r\n{"scope"\r\n9\r\n: "read"}\r\n0\r\n\r\n',
    ],
    ids=["length", "notice before", "until the end", "chunked"],
)
async def test_an_answer_is_read_however_it_is_framed(answer: bytes) -> None:
    async with serving(lambda _: answer) as url:
        assert await BranchdClient(url).whoami() == {"scope": "read"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed before"),
        (b"HTT", "closed before"),
        (b"HTTP/1.1 200 OK\r\nContent-", "closed before"),
        (plain(b'{"scope": "read"}')[:-3], "closed before"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{", "closed before"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "does not speak HTTP"),
        (b"SSH-2.0-OpenSSH_9\r\n", "does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x0a", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnine\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 3 + b"Y: " + b"y" * 100_000, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(1000)) + b"\r\n", "does not speak HTTP"),
    ],
)
async def test_an_answer_that_is_not_whole_is_told_apart_from_a_refusal(answer: bytes, reason: str) -> None:
    async with serving(lambda _: answer) as url:
        with pytest.raises(Unreachable, match=reason):
            await BranchdClient(url).whoami()


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"], ids=["nothing", "half"])
async def test_a_server_that_hangs_is_given_up(begun: bytes) -> None:
    async with serving(lambda _: begun, hang=True) as url:
        with pytest.raises(Unreachable, match="no answer within"):
            await BranchdClient(url, timeout=0.05).whoami()


async def test_a_refusal_tells_every_field() -> None:
    document = {
        "type": "urn:branchd:problem:invalid", "title": "Fields are invalid", "status": 422, "detail": "1 field is",
        "hint": "try again", "errors": [{"pointer": "/pool", "detail": "unknown"}],
    }  # fmt: skip
    body = json.dumps(document).encode()
    async with serving(lambda _: plain(body, "422 No", "application/problem+json")) as url:
        with pytest.raises(ApiProblem) as caught:
            await BranchdClient(url).put_app("shop", {})
    problem = caught.value
    assert (problem.status, problem.type, problem.detail) == (422, "urn:branchd:problem:invalid", "1 field is")
    assert (problem.title, problem.hint, problem.errors[0].pointer) == ("Fields are invalid", "try again", "/pool")


@pytest.mark.parametrize(
    "answer", [plain(b"<h1>", "502 Bad", "text/html"), plain(b"{", "502 Bad"), plain(b"[]", "502 Bad")]
)
async def test_a_refusal_by_something_else_is_told_by_its_status(answer: bytes) -> None:
    async with serving(lambda _: answer) as url:
        with pytest.raises(ApiProblem, match="502") as caught:
            await BranchdClient(url).whoami()
    assert caught.value.status == 502


async def test_a_list_is_fetched_page_by_page_and_tells_what_is_missing_of_it() -> None:
    asked = []

    def answer(request: bytes) -> bytes:
        asked.append(request.split(b" ")[1].decode())
        last = "cursor" in asked[-1]
        page = {"items": [len(asked)], "next": None if last else "a b", "partial": last, "unreachable": ["web2"] * last}
        return plain(json.dumps(page).encode())

    async with serving(answer) as url:
        found = await BranchdClient(url).apps()
    assert found == {"items": [1, 2], "next": None, "partial": True, "unreachable": ["web2"]}
    assert asked == ["/v1/apps?limit=1000", "/v1/apps?limit=1000&cursor=a+b"]


async def test_a_client_of_one_branch_asks_for_it_and_one_that_is_alone_says_so() -> None:
    asked = []

    def answer(request: bytes) -> bytes:
        asked.append(request.split(b" ")[1].decode())
        return plain(b'{"items":[],"next":null}')

    async with serving(answer) as url:
        client = BranchdClient(url)
        await client.at("web2").restart("shop", "mail-1", wait=5)
        await client.at("web2").instances()
        await client.at("web2").ready()
        await client.alone().instance("shop", "mail-1")
        await client.alone().branches(fresh=True)
        await client.instance("shop", "mail-1")
    assert asked == [
        "/v1/apps/shop/instances/mail-1/actions/restart?wait=5s&branch=web2",
        "/v1/instances?limit=1000&branch=web2",
        "/readyz",
        "/v1/apps/shop/instances/mail-1?local=1",
        "/v1/branches?fresh=1&limit=1000&local=1",
        "/v1/apps/shop/instances/mail-1",
    ]


async def test_what_is_sent_cannot_break_out_of_its_place() -> None:
    heads = []

    def answer(request: bytes) -> bytes:
        heads.append(request.decode())
        return plain(b"{}")

    async with serving(answer) as url:
        await BranchdClient(url, "secret").queue("a/../b", "x?y\r\nHost: z")
    line, *headers = heads[0].split("\r\n")
    assert line == "GET /v1/apps/a%2F..%2Fb/queues/x%3Fy%0D%0AHost%3A%20z HTTP/1.1"
    assert [header for header in headers if header.startswith("Host")] == [f"Host: {url.removeprefix('http://')}"]
    assert "Authorization: Bearer secret" in headers


@pytest.mark.parametrize("value", ["a\r\nHost: z", "a\0", "\u2028"])
async def test_what_no_header_can_hold_is_not_sent(value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        await BranchdClient("http://127.0.0.1:1", value).whoami()


def lines(*parts: bytes) -> bytes:
    """An answer of lines of JSON, in these pieces."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + chunks + b"0\r\n\r\n"


async def test_events_are_asked_for_and_read_across_pieces() -> None:
    asked = []
    stream = b'{"id": 7, "type": "reset"}\n{"id": 8, "type": "instance.state"}\n{"cut'

    def answer(request: bytes) -> bytes:
        asked.append(request.split(b" ")[1].decode())
        return lines(*(stream[i : i + 7] for i in range(0, len(stream), 7)))

    async with serving(answer) as url:
        client = BranchdClient(url)
        resumed = client.events(3)
        chosen = client.events(tail=0, follow=False, app="a b", instance="web", types=("instance.", "app."))
        found = [[event async for event in items] for items in (resumed, chosen)]
    assert found == [[{"type": "reset", "id": 7}, {"id": 8, "type": "instance.state"}]] * 2
    assert asked == [
        "/v1/events?follow=1&after=3",
        "/v1/events?follow=0&type=instance.&type=app.&tail=0&app=a+b&instance=web",
    ]


@pytest.mark.parametrize("line", [b"<h1>\n", b"[]\n"])
async def test_lines_that_are_no_events_are_refused(line: bytes) -> None:
    async with serving(lambda _: lines(line)) as url:
        with pytest.raises(ApiProblem, match="200"):
            await anext(BranchdClient(url).events())


async def test_nobody_there_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no socket"):
        await BranchdClient(f"unix:{tmp_path}/api.sock").whoami()
    with pytest.raises(Unreachable, match="nobody listens"):
        await BranchdClient("http://127.0.0.1:1").whoami()


@pytest.mark.parametrize(
    "url", ["", "host:80", "ftp://host", "http://", "unix:relative", "http://h/path", "http://u:p@h", "http://h:99999"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        endpoint(url)
