"""Probes of real servers on loopback and by real programs; the conformance suite for them and for the fake."""

import asyncio
import errno
import os
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec.structs import replace

from branchd.adapters import dialing, errands
from branchd.adapters.dialing import Failed, dial
from branchd.adapters.errands import Errands
from branchd.adapters.probes import LocalProber
from branchd.adapters.process import LinuxProcesses
from branchd.core.errors import SpawnFailed, Unavailable
from branchd.core.spec import Probe
from branchd.core.values import Launch
from tests.adapters.conformance_prober import Asked, ProberConformance, unheard
from tests.fakes.probes import SILENT, FakeProber
from tests.waiting import until

SEEN = web.AppKey("seen", list[web.Request])
END = web.AppKey("end", asyncio.Event)

#: of this process, before it raises them as the daemon does
SOFT_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

PATH = "/usr/local/bin:/usr/bin:/bin"

#: leaves a process in a session of its own whose parent has ended, writes its number to $1, and waits for good
ESCAPING = "setsid sh -c 'setsid sleep 1000 & echo $! >$0.new; mv $0.new $0' \"$1\"; sleep 1000"


@pytest.fixture
async def processes() -> AsyncIterator[LinuxProcesses]:
    processes = LinuxProcesses(uuid.uuid4().hex, None)
    yield processes
    processes.close()


@pytest.fixture
async def errand(processes: LinuxProcesses) -> AsyncIterator[Errands]:
    errand = Errands(processes)
    yield errand
    errand.close()


@pytest.fixture
def prober(errand: Errands) -> LocalProber:
    return LocalProber(errand)


@pytest.fixture
def folder() -> Iterator[Path]:
    """That every user may write to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
async def site() -> AsyncIterator[TestServer]:
    async def answer(request: web.Request) -> web.StreamResponse:
        request.app[SEEN].append(request)
        if request.path == "/silent":
            await request.app[END].wait()
        return web.Response(status=int(request.query.get("status", 200)), headers={"Location": "/elsewhere"})

    app = web.Application()
    app[SEEN], app[END] = [], asyncio.Event()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield server
        app[END].set()


class TestFake(ProberConformance):
    @pytest.fixture
    def asked(self) -> Asked:
        prober, failing, silent = FakeProber(), Probe(tcp=":2"), Probe(tcp=":3", timeout=0.2)
        prober.failing = {failing: "refused", silent: SILENT}
        return Asked(prober, Probe(tcp=":1"), failing, "refused", silent)


class TestHttp(ProberConformance):
    @pytest.fixture
    def asked(self, prober: LocalProber, site: TestServer) -> Asked:
        well, failing, silent = (Probe(http=str(site.make_url(path))) for path in ("/x", "/x?status=503", "/silent"))
        return Asked(prober, well, failing, "answered 503", silent)


class TestTcp(ProberConformance):
    @pytest.fixture
    def asked(self, prober: LocalProber, site: TestServer) -> Iterator[Asked]:
        with socket.socket() as unused, socket.socket() as full:
            unused.bind(("127.0.0.1", 0))
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            address = full.getsockname()
            waiting = [socket.socket() for _ in range(3)]
            for one in waiting:  # the backlog is full: the kernel answers no further one
                one.setblocking(False)
                one.connect_ex(address)
            yield Asked(
                prober, Probe(tcp=f":{site.port}"), Probe(tcp=f"127.0.0.1:{unused.getsockname()[1]}"),
                "connection refused", Probe(tcp=f"127.0.0.1:{address[1]}"),
            )  # fmt: skip
            for one in waiting:
                one.close()


class TestExec(ProberConformance):
    @pytest.fixture
    def asked(self, prober: LocalProber, folder: Path) -> Asked:
        well, failing, silent = (
            Probe(exec=("sh", "-c", script))
            for script in ("exit 0", "echo first; echo 'no space' >&2; exit 4", "sleep 1000")
        )
        return Asked(prober, well, failing, "exit code 4: no space", silent, Launch((), str(folder), {"PATH": PATH}))


async def ask(prober: LocalProber, probe: Probe, launch: Launch | None = None) -> str | None:
    return await prober.ask(probe, launch, unheard)


# http


async def test_a_redirect_is_a_success_and_not_followed(prober: LocalProber, site: TestServer) -> None:
    assert await ask(prober, Probe(http=str(site.make_url("/a?status=302")))) is None
    assert [request.path for request in site.app[SEEN]] == ["/a"]


async def test_what_is_asked_is_a_get_with_its_query_and_who_asks(prober: LocalProber, site: TestServer) -> None:
    url = f"http://me:p%40ss@127.0.0.1:{site.port}/a/b?c=d"
    assert await ask(prober, Probe(http=url)) is None
    [request] = site.app[SEEN]
    assert (request.method, request.path_qs, request.host) == ("GET", "/a/b?c=d", f"127.0.0.1:{site.port}")
    assert request.headers["User-Agent"].startswith("branchd/")
    assert request.headers["Authorization"] == "Basic bWU6cEBzcw=="


async def serve(answer: bytes) -> asyncio.Server:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    return await asyncio.start_server(talk, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.0 200\r\n\r\n", None),
        (b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 204 No\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5_000_000, None),
        (b"HTTP/1.1 500 Oh\r\n\r\n", "answered 500"),
        (b"", "the connection was closed without an answer"),
        (b"SSH-2.0-x\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 200 OK" + b"x" * 100_000, "the answer is not HTTP: its first line has no end"),
        (b"HTTP/1.1 100 C\r\n" + b"a: b\r\n" * 1000, "the answer is not HTTP"),
    ],
    ids=["1.0", "interim", "endless body", "500", "nothing", "not HTTP", "endless line", "endless head"],
)
async def test_only_the_status_counts(prober: LocalProber, answer: bytes, reason: str | None) -> None:
    async with await serve(answer) as server:
        port = server.sockets[0].getsockname()[1]
        assert await ask(prober, Probe(http=f"http://127.0.0.1:{port}")) == reason


def certificate(folder: Path) -> tuple[Path, Path]:
    key, made = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", made, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return made, key


async def test_https_is_asked_whatever_its_certificate(prober: LocalProber, tmp_path: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate(tmp_path))
    async with TestServer(web.Application()) as plain:
        reason = await ask(prober, Probe(http=f"https://127.0.0.1:{plain.port}/"))
        assert reason is not None
        assert reason.startswith("TLS: ")
    runner = web.AppRunner(web.Application())
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await listener.start()
    port = runner.addresses[0][1]
    assert await ask(prober, Probe(http=f"https://127.0.0.1:{port}/")) == "answered 404"
    await runner.cleanup()


# addresses


#: where clouds serve credentials, as addresses
GUARDED = (
    "169.254.169.254", "169.254.170.2", "168.63.129.16", "192.0.0.192", "100.100.100.200",
    "fe80::1", "fe80::a9fe:a9fe", "fe80::1%lo", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe",
    "fd00:42::42", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::ffff:100.100.100.200", "::169.254.169.254",
    "::ffff:0:169.254.169.254", "64:ff9b::169.254.169.254", "64:ff9b:1::169.254.169.254", "2002:a9fe:a9fe::1",
)  # fmt: skip

#: the same as libraries read what is no address: decimal, hexadecimal, octal, with fewer parts, in other digits
DISGUISED = (
    "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "169.16689662", "①69.254.169.254",
)  # fmt: skip


@pytest.fixture
def dialed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a connection was begun to; none is made."""
    found: list[str] = []

    async def connect(address: str, *_: object, **__: object) -> None:
        found.append(address)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "")

    monkeypatch.setattr(asyncio, "open_connection", connect)
    return found


@pytest.mark.parametrize("address", [*GUARDED, *DISGUISED])
async def test_where_clouds_serve_credentials_is_not_asked(address: str, dialed: list[str]) -> None:
    for host in (address, f"[{address}]") if ":" in address else (address,):
        with pytest.raises(Failed, match="is where clouds serve a machine's credentials, and is not asked"):
            await dial(host, 80)
    assert dialed == []


@pytest.mark.parametrize("address", GUARDED)
async def test_nor_is_it_where_a_name_leads_there(
    address: str, prober: LocalProber, dialed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lookup(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    for probe in (Probe(http="http://innocent.example/"), Probe(tcp="innocent.example:80")):
        reason = await ask(prober, probe)
        assert reason == "innocent.example is where clouds serve a machine's credentials, and is not asked"
    assert dialed == []


async def test_the_address_that_was_looked_at_is_the_one_that_is_connected_to(
    dialed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [["192.0.2.7"], ["169.254.169.254"]]

    async def lookup(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in answers.pop(0)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    with pytest.raises(Failed, match="refused"):
        await dial("changing.example", 80)
    assert dialed == ["192.0.2.7"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.0.0.1", "100.100.100.100", "fd00::1", "64:ff9b::a00:1", "::ffff:7f00:1"]
)
async def test_all_else_is_asked(address: str, dialed: list[str]) -> None:
    with pytest.raises(Failed, match="refused"):
        await dial(address, 80)
    assert dialed == [address]


async def test_a_name_that_nobody_knows_is_a_failure(prober: LocalProber) -> None:
    reason = await ask(prober, Probe(tcp="no-such-host.invalid:1"))
    assert reason is not None
    assert reason.startswith("no-such-host.invalid is not known")


async def test_that_there_are_no_descriptors_is_no_answer(prober: LocalProber, monkeypatch: pytest.MonkeyPatch) -> None:
    async def short(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(dialing.asyncio, "open_connection", short)
    with pytest.raises(Unavailable):
        await ask(prober, Probe(tcp=":1"))


# programs


def launch(folder: Path, *argv: str, **more: object) -> Launch:
    return replace(Launch(argv, str(folder), {"PATH": PATH}), **more)


async def test_a_program_is_run_as_it_is_told(prober: LocalProber, folder: Path) -> None:
    script = 'echo "$(id -un) $(pwd) $(umask) $X ${HOME-none}" >said; cat >>said; ps -o sid= -p $$ >>said'
    run = launch(folder, "sh", "-c", script, user="nobody", umask=0o027, env={"PATH": PATH, "X": "y"})
    assert await ask(prober, Probe(exec=run.argv), run) is None
    first, session = (folder / "said").read_text().split("\n")[:2]
    assert first == f"nobody {folder} 0027 y none"
    assert int(session) != os.getsid(0)


async def test_it_has_as_many_descriptors_as_is_usual(prober: LocalProber, folder: Path) -> None:
    run = launch(folder, "sh", "-c", f"test $(ulimit -n) = {SOFT_DESCRIPTORS}")
    assert await ask(prober, Probe(exec=run.argv), run) is None


@pytest.mark.parametrize("how", ["time", "cancelled", "closed"])
async def test_one_that_takes_too_long_is_killed_with_its_whole_tree(
    prober: LocalProber, errand: Errands, folder: Path, how: str
) -> None:
    run = launch(folder, "sh", "-c", ESCAPING, "sh", str(folder / "escaped"))
    asking = asyncio.create_task(ask(prober, Probe(exec=run.argv, timeout=2 if how == "time" else 1000), run))
    await until((folder / "escaped").exists)
    escaped = int((folder / "escaped").read_text())
    if how == "cancelled":
        asking.cancel()
    elif how == "closed":
        errand.close()
    await asyncio.wait([asking])
    if how == "time":
        assert await asking == "not done within 2 s"

    def gone() -> bool:
        try:
            return os.waitpid(escaped, os.WNOHANG)[0] == escaped
        except ChildProcessError:
            return not Path(f"/proc/{escaped}").exists()

    await until(gone)


async def test_what_it_leaves_in_its_session_ends_with_it(prober: LocalProber, folder: Path) -> None:
    run = launch(folder, "sh", "-c", "sleep 1000 & echo $! >left")
    assert await ask(prober, Probe(exec=run.argv), run) is None
    left = int((folder / "left").read_text())
    await until(lambda: not Path(f"/proc/{left}/cmdline").exists() or not Path(f"/proc/{left}/cmdline").read_bytes())


async def test_a_talkative_one_is_ended_and_what_it_said_is_told_in_short(prober: LocalProber, folder: Path) -> None:
    run = launch(folder, "yes", "\x1b[31m" + "x" * 1000)
    reason = await ask(prober, Probe(exec=run.argv), run)
    assert reason is not None
    assert reason.startswith("it wrote more than 1 MiB: ")
    assert len(reason) < 400
    assert "\x1b" not in reason


async def test_a_program_that_is_not_there_is_told(prober: LocalProber, folder: Path) -> None:
    run = launch(folder, "no-such-program")
    with pytest.raises(SpawnFailed, match="no-such-program"):
        await ask(prober, Probe(exec=run.argv), run)


async def test_that_no_program_can_be_started_for_want_of_descriptors_is_no_answer(
    prober: LocalProber, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    run = launch(folder, "true")
    monkeypatch.setattr(errands.os, "pipe", short)
    with pytest.raises(SpawnFailed) as failure:
        await ask(prober, Probe(exec=run.argv), run)
    assert failure.value.ours


async def test_one_that_is_killed_says_so(prober: LocalProber, folder: Path) -> None:
    run = launch(folder, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert await ask(prober, Probe(exec=run.argv), run) == "killed by SIGKILL"


async def test_so_many_run_at_a_time_and_no_more(prober: LocalProber, folder: Path) -> None:
    run = launch(folder, "sh", "-c", "echo . >>begun; read _ <go")
    os.mkfifo(folder / "go")
    asking = [asyncio.create_task(ask(prober, Probe(exec=run.argv, timeout=60), run)) for _ in range(30)]
    begun = folder / "begun"
    await until(lambda: begun.exists() and len(begun.read_text().split()) == errands.AT_ONCE)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(begun.read_text().split()) == errands.AT_ONCE
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
