"""What is refused before any handler sees it: senders, bodies, parameters, paths, and what is not HTTP at all."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from branchd.api import body, connection
from branchd.api.connection import SECURITY_HEADERS, Connection
from branchd.api.handlers import ROUTES
from branchd.api.routing import Route
from branchd.branch.service import Service
from branchd.core.access import Scope
from tests.api.conftest import ADMIN, COMMAND, Api, House

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
MEGABYTE = b"x" * (1 << 20)


def path_of(route: Route) -> str:
    names = {"app": "shop", "instance": "web-1", "queue": "mail", "branch": "here", "id": "0", "operation": "0"}
    return route.path.format(**names)


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


async def raw(api: Api, data: bytes) -> bytes:
    """What the server sends back until it closes."""
    url = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(data)
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


def test_only_the_two_health_routes_are_open_to_anybody() -> None:
    assert {route.path for route in ROUTES if route.scope is None} == {"/healthz", "/readyz"}


def test_what_reads_needs_read_and_what_writes_needs_more() -> None:
    for route in ROUTES:
        if route.scope is not None:
            assert route.scope in ({Scope.READ, Scope.ADMIN} if route.method == "GET" else {Scope.OPERATE, Scope.ADMIN})


@pytest.mark.parametrize("route", [route for route in ROUTES if route.scope], ids=named)
async def test_a_route_refuses_nobody_and_a_smaller_scope(route: Route, api: Api, tokens: dict[Scope, str]) -> None:
    path = path_of(route)
    nobody = await api(route.method, path, token=None)
    assert (nobody.status, nobody.slug) == (401, "unauthenticated")
    assert nobody.headers["WWW-Authenticate"] == 'Bearer realm="branchd"'
    wrong = await api(route.method, path, token="wrong")
    assert (wrong.status, wrong.slug) == (401, "unauthenticated")
    assert "invalid_token" in wrong.headers["WWW-Authenticate"]
    assert route.scope is not None
    for scope in Scope:
        if not scope.includes(route.scope):
            answer = await api(route.method, path, token=tokens[scope])
            assert (answer.status, answer.slug) == (403, "denied")
            assert f"the scope {route.scope}" in answer.json["detail"]
        elif not route.streams:
            assert (await api(route.method, path, token=tokens[scope])).status not in {401, 403}


@pytest.mark.parametrize(
    "header",
    ["Basic YTpi", "Bearer", "Bearer ", "", f"Token {ADMIN}"],
)
async def test_authorization_that_is_no_bearer_token_is_refused(header: str, api: Api) -> None:
    assert (await api("GET", "/v1/whoami", token=None, headers={"Authorization": header})).slug == "unauthenticated"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8710", "127.0.0.1.evil.example", "", "a b", "[", "[::1"]
)
async def test_a_host_that_is_not_ours_is_refused(host: str, api: Api) -> None:
    for path in ("/healthz", "/v1/whoami", "/nowhere"):
        answer = await api("GET", path, headers={"Host": host})
        assert (answer.status, answer.slug) in [(421, "wrong-host"), (400, "bad-request")]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://evil.example/healthz", 421),
        ("http://user@evil.example:80/healthz", 421),
        ("http://localhost:8710/healthz", 200),
        ("http://[::1]:8710/healthz", 200),
    ],
)
async def test_a_target_in_absolute_form_names_a_host_too(target: str, status: int, api: Api) -> None:
    answer = await raw(api, f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


async def test_nobody_connects_to_others_through_us(api: Api) -> None:
    answer = await raw(api, b"CONNECT localhost:25 HTTP/1.1\r\nHost: localhost:25\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"no proxy" in answer


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9999", "[::1]:80", "here", "localhost."])
async def test_the_names_of_this_server_are_taken(host: str, api: Api) -> None:
    assert (await api("GET", "/v1/whoami", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "localhost"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "anything"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
    ],
)
async def test_pages_of_other_origins_are_refused(headers: dict[str, str], api: Api) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = await api(method, "/v1/apps", headers={"Host": "localhost", **headers})
        assert (answer.status, answer.slug) == (403, "cross-origin")
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://localhost:8710"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}],
)
async def test_our_own_pages_are_taken(headers: dict[str, str], api: Api) -> None:
    assert (await api("GET", "/v1/apps", headers={"Host": "localhost:8710", **headers})).status == 200


async def test_every_answer_has_the_security_headers(shop: Api) -> None:
    for method, path in [("GET", "/healthz"), ("GET", "/nowhere"), ("PUT", "/healthz"), ("GET", "/v1/apps/shop")]:
        answer = await shop(method, path)
        assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS


async def test_paths_and_methods_that_are_none_are_problems(api: Api) -> None:
    assert (await api("GET", "/v1/nowhere")).slug == "no-such-path"
    assert (await api("GET", "/v1/apps/")).slug == "no-such-path"
    wrong = await api("POST", "/v1/apps/shop")
    assert (wrong.status, wrong.slug) == (405, "wrong-method")
    assert wrong.headers["Allow"] == "DELETE, GET, HEAD, PATCH, PUT"
    assert (await api("TRACE", "/v1/apps")).slug == "wrong-method"


@pytest.mark.parametrize(
    ("method", "path", "pointers"),
    [
        ("PUT", "/v1/apps/..%2Fx", ["{app}"]),
        ("PUT", "/v1/apps/..", ["{app}"]),
        ("GET", "/v1/apps/-x", ["{app}"]),
        ("PUT", f"/v1/apps/{'a' * 64}", ["{app}"]),
        ("GET", "/v1/apps/a%00b", ["{app}"]),
        ("GET", "/v1/apps/%F0%9F%8C%B3/instances/%20", ["{app}", "{instance}"]),
        ("PUT", "/v1/apps/shop/queues/a%0Ab", ["{queue}"]),
        ("PUT", "/v1/apps/..%2f/instances/..%2f/queues/a,b", ["{app}", "{instance}", "{queue}"]),
    ],
)
async def test_names_that_cannot_be_are_told_all_at_once(method: str, path: str, pointers: list[str], api: Api) -> None:
    answer = await api(method, path, {} if method == "PUT" else None)
    assert (answer.status, answer.slug, answer.pointers) == (422, "invalid", pointers)


async def test_a_queue_may_have_a_slash_in_its_name(shop: Api) -> None:
    assert (await shop("PUT", "/v1/apps/shop/queues/a%2Fb", {})).json["name"] == "a/b"
    assert (await shop("GET", "/v1/apps/shop/queues/a%2Fb")).status == 200


async def test_every_wrong_query_parameter_is_told_at_once(api: Api) -> None:
    query = "limit=0&limitt=1&cursor=%21&state=running&label=x&name=&local=maybe&branch=a&branch=b"
    answer = await api("GET", f"/v1/instances?{query}")
    assert answer.status == 422
    expected = ["?branch", "?cursor", "?label", "?limit", "?limitt", "?local", "?name", "?state"]
    assert sorted(answer.pointers) == expected
    assert "RUNNING" in next(error["hint"] for error in answer.json["errors"] if error["pointer"] == "?state")


async def test_local_is_taken_everywhere(shop: Api) -> None:
    for path in ("/healthz", "/v1/apps", "/v1/apps/shop", "/v1/instances", "/v1/branches"):
        assert (await shop("GET", f"{path}?local=1")).status == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
async def test_bodies_that_are_not_called_json_are_refused(content_type: str, api: Api) -> None:
    headers = {"Content-Type": content_type}
    answer = await api("PUT", "/v1/apps/shop", data=b"{}", headers=headers)
    assert (answer.status, answer.slug) == (415, "not-json")
    answer = await api("POST", "/v1/apps/shop/instances/x/actions/stop", data=b"x=y", headers=headers)
    assert (answer.status, answer.slug) == (415, "not-json")


async def test_compressed_bodies_are_refused(api: Api) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await api("PUT", "/v1/apps/shop", data=b"{}", headers=headers)).slug == "not-json"


async def test_json_may_name_its_charset_and_a_patch_its_own_type(shop: Api) -> None:
    utf8 = {"Content-Type": "application/json; charset=utf-8"}
    assert (await shop("PUT", "/v1/apps/shop", COMMAND, headers=utf8)).status == 200
    patch = {"Content-Type": "application/merge-patch+json"}
    assert (await shop("PATCH", "/v1/apps/shop", {}, headers=patch)).status == 200
    assert (await shop("PUT", "/v1/apps/shop", {}, headers=patch)).slug == "not-json"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "line 1"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "deep"),
        (b"[NaN]", "NaN"),
        (b'["\\ud800"]', "surrogate"),
        (b"1" * 5000, "5000 digits"),
        (b"[-1e999]", "too large"),
    ],
)
async def test_broken_json_is_told_in_words(body: bytes, words: str, api: Api) -> None:
    answer = await api("PUT", "/v1/apps/shop", data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.slug) == (400, "broken-json")
    assert words in answer.json["detail"]


async def test_a_needed_body_that_is_missing_and_one_that_nobody_needs_are_told(shop: Api) -> None:
    missing = await shop("PUT", "/v1/apps/shop")
    assert (missing.status, missing.pointers if "errors" in missing.json else None) == (422, [""])
    assert (await shop("DELETE", "/v1/apps/shop", {"cascade": True})).slug == "invalid"
    assert (await shop("DELETE", "/v1/apps/shop", {})).status == 204


@pytest.mark.parametrize("body", [None, [], "text", 1, True])
async def test_a_body_that_is_no_object_is_told(body: Any, shop: Api) -> None:
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    for method, path in [
        ("PUT", "/v1/apps/shop"),
        ("PATCH", "/v1/apps/shop"),
        ("POST", "/v1/apps/shop/instances"),
        ("PUT", "/v1/apps/shop/instances/x"),
        ("PUT", "/v1/apps/shop/queues/x"),
        ("POST", "/v1/tokens"),
    ]:
        answer = await shop(method, path, data=data, headers=headers)
        assert (method, path, answer.status, answer.slug) == (method, path, 422, "invalid")


async def test_twelve_faults_are_told_at_once(shop: Api) -> None:
    spec = {
        "kind": "cron",
        "pool": "fibers",
        "concurrency": 0,
        "command": ["a\0b"],
        "directory": "relative",
        "env": {"1X": "a", "BRANCHD_X": "b"},
        "umask": "9",
        "user": "a b",
        "weight": -1,
        "restart": {"policy": "sometimes"},
        "logs": {"keep": "many"},
        "colour": "red",
    }
    answer = await shop("PUT", "/v1/apps/shop/instances/web-1", spec)
    assert answer.status == 422
    assert {
        "/kind", "/pool", "/concurrency", "/command/0", "/directory", "/env/1X", "/env/BRANCHD_X", "/umask", "/user",
        "/weight", "/restart/policy", "/logs/keep", "/colour",
    } == set(answer.pointers)  # fmt: skip


async def test_a_body_of_100_megabytes_is_refused_by_its_length_before_it_is_read(api: Api) -> None:
    sent = 0

    async def pieces() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield MEGABYTE

    headers = {"Content-Type": "application/json", "Content-Length": str(100 << 20), "Expect": "100-continue"}
    answer = await api("PUT", "/v1/apps/shop", data=pieces(), headers=headers)
    assert (answer.status, answer.slug) == (413, "too-large")
    assert sent == 0


async def test_a_body_of_100_megabytes_without_a_length_is_refused_on_the_way(api: Api) -> None:
    async def pieces() -> Any:
        for _ in range(100):
            yield MEGABYTE

    headers = {"Content-Type": "application/json"}
    answer = await api("PUT", "/v1/apps/shop", data=pieces(), headers=headers, chunked=True)
    assert (answer.status, answer.slug) == (413, "too-large")
    assert (await api("GET", "/healthz")).status == 200


async def test_a_body_is_not_even_asked_for_when_the_sender_may_not_send_it(api: Api) -> None:
    async def pieces() -> Any:
        raise AssertionError("was asked for")
        yield b""

    headers = {"Content-Type": "application/json", "Expect": "100-continue"}
    assert (await api("PUT", "/v1/apps/shop", data=pieces(), token=None, headers=headers)).status == 401


async def test_a_body_is_asked_for_when_the_request_is_good(api: Api) -> None:
    answer = await api("PUT", "/v1/apps/shop", COMMAND, headers={"Expect": "100-continue"})
    assert answer.status == 201


@pytest.mark.parametrize(
    ("data", "status", "slug"),
    [
        (b"nonsense\r\n\r\n", 400, "bad-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400, "bad-request"),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "bad-request",
        ),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 10_000 + b"\r\n\r\n", 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % n for n in range(200)) + b"\r\n", 400, "bad-request"),
    ],
)
async def test_what_is_not_http_is_a_problem_too(data: bytes, status: int, slug: str, api: Api) -> None:
    head, _, body = (await raw(api, data)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 %d" % status), head
    assert b"application/problem+json" in head
    assert b"nosniff" in head
    assert json.loads(body)["type"] == f"urn:branchd:problem:{slug}"


async def test_a_body_whose_chunks_are_broken_is_a_problem(api: Api) -> None:
    request = (
        b"PUT /v1/apps/shop HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzzz\r\n" % ADMIN.encode()
    )
    assert b"urn:branchd:problem:bad-request" in await raw(api, request)


async def test_a_body_that_does_not_come_in_time_is_told(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "PATIENCE", 0.1)
    request = (
        b"PUT /v1/apps/shop HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{" % ADMIN.encode()
    )
    head, _, rest = (await raw(api, request)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(rest)["type"] == "urn:branchd:problem:too-slow"


async def test_a_request_that_does_not_come_in_time_is_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_PATIENCE", 0.1)
    for begun in (b"", b"GET /healthz HTTP/1.1\r\nHost: loc"):
        assert await raw(api, begun) == b""
    url = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(HEALTHZ)
    async with asyncio.timeout(30):
        assert await reader.readuntil(b'{"status":"ok"}')
        writer.write(b"G")  # the next one, on the same connection
        assert await reader.read() == b""
    writer.close()


async def test_a_connection_may_be_idle_longer_than_a_request_may_take_to_come(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_PATIENCE", 0.05)
    monkeypatch.setattr(connection, "KEEPALIVE", 0.5)
    given_up = []
    monkeypatch.setattr(Connection, "_give_up", given_up.append)
    assert (await raw(api, HEALTHZ)).startswith(b"HTTP/1.1 200")  # until KEEPALIVE ends it
    assert given_up == []


async def test_a_fault_of_our_own_shows_an_id_and_no_traceback(
    api: Api, branch: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Any:
        raise RuntimeError("secret words")

    monkeypatch.setattr(branch, "branch", broken)
    answer = await api("GET", "/v1/branches")
    assert (answer.status, answer.slug) == (500, "internal")
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    id = answer.json["instance"].rpartition(":")[2]
    assert id in answer.json["hint"]
    logged = capsys.readouterr().out
    assert id in logged
    assert "secret words" in logged


async def test_a_store_that_takes_nothing_is_told_and_nothing_is_lost(shop: Api, house: House) -> None:
    house.store.full = True
    answer = await shop("PUT", "/v1/apps/blog", COMMAND)
    assert (answer.status, answer.slug) == (503, "storage-failed")
    house.store.full = False
    assert (await shop("GET", "/v1/apps/blog")).slug == "not-found"
    assert (await shop("GET", "/v1/apps/shop")).status == 200


async def test_a_flag_with_an_empty_value_is_refused_and_one_without_a_value_is_taken(api: Api) -> None:
    refused = await api("GET", "/v1/instances?local=")
    assert (refused.status, refused.slug, refused.pointers) == (422, "invalid", ["?local"])
    assert (await api("GET", "/v1/instances?local")).status == 200
