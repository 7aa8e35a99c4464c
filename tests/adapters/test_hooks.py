"""Hooks told to real servers and programs; the conformance suite for them and for the fake."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from branchd.adapters.errands import Errands
from branchd.adapters.hooks import LocalTeller
from branchd.adapters.process import LinuxProcesses
from branchd.core.spec import Hook
from branchd.core.values import Launch
from tests.adapters.conformance_teller import EVENT, TellerConformance, Told
from tests.adapters.test_probes import PATH, certificate, processes
from tests.fakes.hooks import FakeTeller

__all__ = ["processes"]  # a fixture


class TestFake(TellerConformance):
    @pytest.fixture
    def told(self) -> Told:
        teller, takes, refuses, silent = FakeTeller(), Hook(url="a"), Hook(url="b"), Hook(url="c")
        teller.failing[refuses] = "no"
        teller.silent.add(silent)
        return Told(teller, takes, refuses, silent, lambda: [event for _, _, event in teller.told])


class TestCommand(TellerConformance):
    @pytest.fixture
    def told(self, tmp_path: Path, processes: LinuxProcesses) -> Told:
        takes, refuses, silent = (
            Hook(command=("sh", "-c", script)) for script in ("cat >said", "echo 'no mail'; exit 1", "sleep 1000")
        )
        launch = Launch((), str(tmp_path), {"PATH": PATH})
        teller = LocalTeller(Errands(processes))
        return Told(teller, takes, refuses, silent, lambda: [(tmp_path / "said").read_bytes()], launch)


class Receiver:
    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.requests: list[tuple[web.Request, bytes]] = []
        self.end = asyncio.Event()
        self._tls = tls

    async def start(self) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        return f"{'https' if self._tls else 'http'}://localhost:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        self.end.set()
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.requests.append((request, await request.read()))
        if request.path == "/silent":
            await self.end.wait()
        status = {"/refuses": 500, "/moved": 307}.get(request.path, 202)
        return web.Response(status=status, headers={"Location": "/elsewhere"})


@pytest.fixture(params=["http", "https"])
async def receiver(
    request: pytest.FixtureRequest, tmp_path: Path, processes: LinuxProcesses
) -> AsyncIterator[tuple[Receiver, str, LocalTeller]]:
    tls, trusted = None, None
    if request.param == "https":
        made, key = certificate(tmp_path)
        tls, trusted = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), str(made)
        tls.load_cert_chain(made, key)
    receiver = Receiver(tls)
    yield receiver, await receiver.start(), LocalTeller(Errands(processes), trusted)
    await receiver.stop()


Received = tuple[Receiver, str, LocalTeller]


class TestUrl(TellerConformance):
    @pytest.fixture
    def told(self, receiver: Received) -> Told:
        to, url, teller = receiver
        takes, refuses, silent = (Hook(url=f"{url}/{path}") for path in ("takes", "refuses", "silent"))
        return Told(teller, takes, refuses, silent, lambda: [body for _, body in to.requests])

    async def test_it_is_a_post_of_json(self, receiver: Received) -> None:
        to, url, teller = receiver
        assert await teller.tell(Hook(url=f"{url}/takes?token=x"), None, EVENT, 10) is None
        [(request, body)] = to.requests
        assert (request.method, request.path_qs, body) == ("POST", "/takes?token=x", EVENT)
        assert request.headers["Content-Type"] == "application/json"
        assert request.headers["User-Agent"].startswith("branchd/")

    async def test_redirects_are_not_followed(self, receiver: Received) -> None:
        to, url, teller = receiver
        reason = await teller.tell(Hook(url=f"{url}/moved"), None, EVENT, 10)
        assert reason == "answered 307; redirects are not followed"
        assert len(to.requests) == 1


@pytest.mark.parametrize("receiver", ["https"], indirect=True)
async def test_a_certificate_that_is_not_trusted_is_told_nothing(receiver: Received, processes: LinuxProcesses) -> None:
    to, url, trusting = receiver
    reason = await LocalTeller(Errands(processes)).tell(Hook(url=url), None, EVENT, 10)
    assert reason is not None
    assert reason.startswith("its certificate is not trusted")
    other_name = url.replace("localhost", "127.0.0.1")
    reason = await trusting.tell(Hook(url=other_name), None, EVENT, 10)
    assert reason is not None
    assert reason.startswith("its certificate is not trusted")
    assert to.requests == []


async def test_where_clouds_serve_credentials_nothing_is_told(processes: LinuxProcesses) -> None:
    reason = await LocalTeller(Errands(processes)).tell(Hook(url="http://169.254.169.254/"), None, EVENT, 10)
    assert reason is not None
    assert "clouds" in reason
