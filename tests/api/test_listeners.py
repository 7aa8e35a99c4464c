"""Where the server listens, who may connect there, and what keeps it from starting."""

import asyncio
import errno
import grp
import json
import os
import resource
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from msgspec.structs import replace

from branchd.api import accepting
from branchd.api.accepting import Acceptor
from branchd.api.listeners import Given
from branchd.api.server import Server
from branchd.api.settings import HttpSettings, TcpListener, UnixListener, parse_listener
from branchd.branch.service import Service
from branchd.core.errors import Fatal
from tests.api.conftest import ADMIN
from tests.waiting import until

#: a group that every Debian has; its members may operate in these tests
GROUP = "games"

#: an account that is in no group but its own
NOBODY = 65534

#: asks a unix socket for a path, by a method, and prints the answer's status and body
ASK = """
import http.client, socket, sys
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
connection = Connection("branchd")
connection.request(sys.argv[2], sys.argv[3])
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


@asynccontextmanager
async def serving(branch: Service, *listen: str, **settings: object) -> AsyncIterator[Server]:
    server = Server(branch, HttpSettings(listen=listen, **settings))  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def fails(branch: Service, *listen: str, **settings: object) -> str:
    """Why the server does not start."""
    with pytest.raises(Fatal) as caught:
        async with serving(branch, *listen, **settings):
            pass
    return f"{caught.value.detail}; {caught.value.hint}"


async def ask(path: Path, method: str, target: str, uid: int, groups: list[int]) -> tuple[int, str]:
    """As a process of another account does; status 0 when it cannot even connect."""
    process = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", "-c", ASK, str(path), method, target,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, user=uid, group=uid, extra_groups=groups, cwd="/",
    )  # fmt: skip
    out, error = await process.communicate()
    if process.returncode:
        assert b"PermissionError" in error, error
        return 0, ""
    status, _, body = out.decode().partition(" ")
    return int(status), body


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A folder that every account can enter."""
    folder = Path("/tmp") / f"branchd-api-{os.getpid()}-{tmp_path.name}"
    folder.mkdir(mode=0o755)
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("text", "listener"),
    [
        ("unix:/run/x.sock", UnixListener("/run/x.sock")),
        (":8710", TcpListener("127.0.0.1", 8710)),
        ("0.0.0.0:0", TcpListener("0.0.0.0", 0)),
        ("localhost:80", TcpListener("localhost", 80)),
        ("[::1]:80", TcpListener("::1", 80)),
    ],
)
def test_listeners_are_read_and_written_alike(text: str, listener: TcpListener | UnixListener) -> None:
    assert parse_listener(text) == listener
    assert parse_listener(str(listener)) == listener


@pytest.mark.parametrize("text", ["", "8710", "host", "host:", "h:x", "h:65536", "::1:80", "unix:", "unix:x.sock"])
def test_listeners_that_are_none_are_told(text: str) -> None:
    with pytest.raises(Fatal, match="cannot listen"):
        parse_listener(text)


async def test_root_is_admin_on_the_unix_socket_whatever_host_it_names(branch: Service, run: Path) -> None:
    async with serving(branch, f"unix:{run}/api.sock") as server:
        assert server.addresses == (f"unix:{run}/api.sock",)
        connector = aiohttp.UnixConnector(str(run / "api.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://any.example/v1/whoami") as response,
        ):
            assert await response.json() == {"principal": "uid:0", "scope": "admin", "branch": "here"}
    assert not (run / "api.sock").exists()


async def test_members_of_the_group_operate_and_nobody_else_connects(branch: Service, run: Path) -> None:
    group = grp.getgrnam(GROUP).gr_gid
    path = run / "api.sock"
    async with serving(branch, f"unix:{path}", socket_group=GROUP):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group)
        assert await ask(path, "GET", "/healthz", NOBODY, []) == (0, "")
        status, body = await ask(path, "GET", "/v1/whoami", NOBODY, [group])
        assert (status, json.loads(body)["scope"]) == (200, "operate")
        status, body = await ask(path, "DELETE", "/v1/apps/shop", NOBODY, [group])
        assert (status, json.loads(body)["type"]) == (403, "urn:branchd:problem:denied")
        path.chmod(0o666)  # an operator's mistake: the credentials still decide
        status, body = await ask(path, "GET", "/v1/whoami", NOBODY, [])
        assert (status, json.loads(body)["type"]) == (403, "urn:branchd:problem:denied")
        assert (await ask(path, "GET", "/healthz", NOBODY, []))[0] == 200


async def test_without_the_group_only_the_owner_connects(branch: Service, run: Path) -> None:
    async with serving(branch, f"unix:{run}/api.sock", socket_group="no-such-group"):
        assert await ask(run / "api.sock", "GET", "/healthz", NOBODY, []) == (0, "")
        assert (await ask(run / "api.sock", "GET", "/v1/whoami", 0, []))[0] == 200


async def test_a_stale_socket_is_replaced_and_one_that_answers_is_not(branch: Service, run: Path) -> None:
    path = run / "api.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # and never listened on: as after kill -9
    async with serving(branch, f"unix:{path}"):
        assert "in use" in await fails(branch, f"unix:{path}")
        assert (await ask(path, "GET", "/healthz", 0, []))[0] == 200


async def test_a_socket_that_another_put_in_our_place_is_left_alone_at_the_end(branch: Service, run: Path) -> None:
    path = run / "api.sock"
    async with serving(branch, f"unix:{path}"):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


async def test_what_is_no_socket_is_not_taken_away(branch: Service, run: Path) -> None:
    (run / "api.sock").write_text("precious")
    assert "something else" in await fails(branch, f"unix:{run}/api.sock")
    assert (run / "api.sock").read_text() == "precious"
    assert "No such file" in await fails(branch, f"unix:{run}/none/api.sock")
    assert "too long" in await fails(branch, f"unix:/tmp/{'x' * 200}")


async def test_a_port_in_use_is_told_and_nothing_stays_open(branch: Service, run: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port} is in use" in await fails(branch, f"unix:{run}/api.sock", f":{port}")
    assert not (run / "api.sock").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "branch.example"])
async def test_beyond_loopback_tls_is_needed(branch: Service, host: str) -> None:
    assert "without TLS" in await fails(branch, f"{host}:0")


async def test_an_address_that_is_not_ours_is_told(branch: Service) -> None:
    assert "192.0.2.1:0" in await fails(branch, "192.0.2.1:0", insecure=True)


async def test_insecure_listens_beyond_loopback_and_takes_the_address_that_was_connected_to(branch: Service) -> None:
    async with serving(branch, "0.0.0.0:0", insecure=True) as server, aiohttp.ClientSession() as session:
        port = server.addresses[0].rpartition(":")[2]
        for host, status in [("127.0.0.2", 200), ("192.0.2.1", 421)]:
            headers = {"Host": host}
            async with session.get(f"http://127.0.0.2:{port}/healthz", headers=headers) as response:
                assert response.status == status


async def healthy(address: str) -> bool:
    """Whether a listener answers."""
    unix = address.startswith("unix:")
    connector = aiohttp.UnixConnector(address.removeprefix("unix:")) if unix else aiohttp.TCPConnector()
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"{'http://branchd' if unix else address}/healthz") as response,
    ):
        return response.status == 200


def test_the_room_is_shared_and_leaves_descriptors_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, each in [(1024, 128), (1 << 20, 500), (4, 1)]:
        monkeypatch.setattr(accepting.resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert accepting.room(2) == each


async def test_a_crowd_on_one_listener_waits_and_the_other_listener_still_answers(
    branch: Service, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accepting, "MOST_CONNECTIONS", 10)
    async with serving(branch, ":0", f"unix:{run}/api.sock") as server:
        tcp, unix = server.addresses
        host, port = tcp.removeprefix("http://").split(":")
        crowd = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
        waiting = asyncio.create_task(healthy(tcp))
        await until(lambda: "not-accepting" in capsys.readouterr().out)
        assert await healthy(unix)
        assert not waiting.done()
        for _, writer in crowd:
            writer.close()
        async with asyncio.timeout(30):
            assert await waiting


async def test_many_connect_at_once(branch: Service, run: Path) -> None:
    path = f"{run}/api.sock"
    async with serving(branch, f"unix:{path}"):
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(400)]  # asyncio's own backlog is 100
        for one in crowd:
            one.setblocking(False)
            one.connect(path)  # BlockingIOError where the backlog is full
            one.close()
        assert await healthy(f"unix:{path}")


async def test_without_descriptors_it_says_so_once_and_goes_on_when_there_are(
    branch: Service, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accepting, "RETRY", 0.01)
    refused: list[str] = []
    pause = Acceptor._pause
    monkeypatch.setattr(Acceptor, "_pause", lambda self, reason: (refused.append(reason), pause(self, reason))[1])
    path, loop = f"{run}/api.sock", asyncio.get_running_loop()
    async with serving(branch, f"unix:{path}"):
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.dup(client.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            try:
                await loop.sock_connect(client, path)
                await until(lambda: len(refused) >= 3)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await loop.sock_sendall(client, b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b"200 OK" in await asyncio.wait_for(loop.sock_recv(client, 100), 30)
    assert set(refused) == {os.strerror(errno.EMFILE)}
    said = capsys.readouterr()
    assert said.out.count("not-accepting") == 1
    assert "Traceback" not in said.out + said.err


async def test_ipv6_loopback_is_served(branch: Service) -> None:
    async with serving(branch, "[::1]:0") as server, aiohttp.ClientSession() as session:
        assert server.addresses[0].startswith("http://[::1]:")
        async with session.get(f"{server.addresses[0]}/healthz") as response:
            assert response.status == 200


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """A certificate for localhost, and its key."""
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


async def test_tls_is_spoken_with_a_certificate_and_its_key(branch: Service, pair: tuple[str, str]) -> None:
    certificate, key = pair
    trusted = ssl.create_default_context(cafile=certificate)
    settings = {"tls_certificate": certificate, "tls_key": key}
    async with serving(branch, "0.0.0.0:0", **settings) as server, aiohttp.ClientSession() as session:
        port = server.addresses[0].removeprefix("https://0.0.0.0:")
        headers = {"Authorization": f"Bearer {ADMIN}"}
        url = f"https://localhost:{port}/v1/whoami"
        async with session.get(url, ssl=trusted, headers=headers) as response:
            assert (await response.json())["scope"] == "admin"
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://localhost:{port}/healthz")
    assert "certificate and its key" in await fails(branch, ":0", tls_certificate=certificate)
    assert "cannot use" in await fails(branch, ":0", tls_certificate=key, tls_key=key)
    assert "cannot use" in await fails(branch, ":0", tls_certificate="/nonexistent", tls_key=key)


async def test_a_server_that_stopped_answers_no_more(branch: Service) -> None:
    async with serving(branch, ":0") as server:
        url = server.addresses[0]
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(f"{url}/healthz")


def test_the_server_is_imported_without_what_only_documents_and_clients_need() -> None:
    program = "import sys, branchd.api.server; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not {"click", "rich_click", "psutil", "kombu", "sqlite3", "celery"} & set(loaded)


# Sockets that are open already


async def test_who_connects_while_no_server_is_there_is_answered_by_the_next(branch: Service, tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    first = Server(branch, HttpSettings(listen=(f"unix:{path}", ":0"), socket_group=GROUP))
    await first.start()
    addresses, inode = first.addresses, os.stat(path).st_ino
    await first.release()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    given = first.hand_over()
    await first.stop()
    second = Server(branch, HttpSettings(listen=(":0", f"unix:{path}"), socket_group=GROUP), given)
    await second.start()
    try:
        assert b" 200 " in await reader.readline()
        assert (set(second.addresses), os.stat(path).st_ino) == (set(addresses), inode)
    finally:
        writer.close()
        await second.stop()
    assert not (tmp_path / "api.sock").exists()


async def test_what_is_asked_on_a_connection_that_is_open_is_answered_and_ends_it(
    branch: Service, tmp_path: Path
) -> None:
    async with serving(branch, f"unix:{tmp_path}/api.sock") as server:
        kept = await asyncio.open_unix_connection(f"{tmp_path}/api.sock")
        kept[1].write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await kept[0].readuntil(b"\r\n\r\n")
        await kept[0].readuntil(b"}")
        assert b"close" not in head
        releasing = asyncio.create_task(server.release())
        await asyncio.sleep(0)
        kept[1].write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"Connection: close" in await kept[0].readuntil(b"\r\n\r\n")
        assert await kept[0].read() != b""
        await releasing
        kept[1].close()


async def test_a_socket_of_the_service_managers_is_used_and_its_path_left_there(
    branch: Service, tmp_path: Path
) -> None:
    path = str(tmp_path / "api.sock")
    made, unused = socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))
    made.bind(path)
    made.listen()
    os.chmod(path, 0o600)
    server = Server(branch, HttpSettings(listen=(f"unix:{path}",)), (Given(made, False), Given(unused, False)))
    await server.start()
    assert server.addresses == (f"unix:{path}",)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # as the unit says
    assert unused.fileno() == -1
    await server.stop()
    assert (tmp_path / "api.sock").exists()


async def test_sockets_of_the_service_managers_without_an_address_of_ours_are_given_up(
    branch: Service,
) -> None:
    abstract, unnamed = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0branchd-{os.getpid()}")
    unused = abstract, unnamed
    server = Server(branch, HttpSettings(listen=(":0",)), [Given(one, False) for one in unused])
    await server.start()
    await server.stop()
    assert [one.fileno() for one in unused] == [-1, -1]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("instead", [False, True])
async def test_a_socket_whose_path_was_taken_away_is_opened_anew(
    branch: Service, tmp_path: Path, ours: bool, instead: bool
) -> None:
    path = tmp_path / "api.sock"
    first = Server(branch, HttpSettings(listen=(f"unix:{path}",), socket_group=GROUP))
    await first.start()
    await first.release()
    [given] = first.hand_over()
    path.rename(tmp_path / "away.sock")
    if instead:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    second = Server(branch, HttpSettings(listen=(f"unix:{path}",), socket_group=GROUP), [replace(given, ours=ours)])
    await second.start()
    try:
        assert os.stat(path).st_ino != given.inode
        assert given.socket.fileno() == -1
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()
    finally:
        await second.stop()


async def test_an_address_that_is_no_longer_asked_for_is_given_up(branch: Service, tmp_path: Path) -> None:
    first = Server(branch, HttpSettings(listen=(f"unix:{tmp_path}/old.sock",), socket_group=GROUP))
    await first.start()
    await first.release()
    async with AsyncExitStack() as stack:
        second = Server(branch, HttpSettings(listen=(":0",)), first.hand_over())
        await second.start()
        stack.push_async_callback(second.stop)
        assert not (tmp_path / "old.sock").exists()
