"""What a daemon refuses, in words that say what to do, with nothing lost: at its start and while it runs."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from branchd.client import ApiProblem, BranchdClient
from tests.adapters.small_disk import fill, small_disk
from tests.e2e.branch import RunningBranch, alive
from tests.e2e.conftest import Maker
from tests.e2e.programs import Programs
from tests.free_port import free_port
from tests.waiting import until


def refused(branch: RunningBranch, *arguments: str, **env: str) -> str:
    """The words of a start that must fail: a few lines for people, and the exit code 1."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BRANCHD_")}
    ended = subprocess.run(
        branch.command(*arguments), env=inherited | env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    words = ended.stderr.decode()
    assert ended.returncode == 1, words
    assert words.startswith("branchd: "), words
    assert "Traceback" not in words
    assert ended.stdout == b""
    return words


@pytest.fixture
def other(folder: Path, make_branch: Maker) -> RunningBranch:
    """One with folders of its own, not started."""
    (folder / "other").mkdir()
    return make_branch(where=folder / "other")


# At the start


async def test_a_second_daemon_on_the_same_state_is_told_the_pid_of_the_first_which_goes_on(
    programs: Programs, branch: RunningBranch, other: RunningBranch, folder: Path
) -> None:
    await branch.client.put_app("shop", {"kind": "command"})
    await branch.client.create_instance("shop", {"name": "w", "command": programs.waiting("w")}, wait=30)
    before = programs.only("w")
    words = refused(other, "--state", str(folder / "state"))
    assert f"pid {branch.pid}" in words
    assert "give this one a state folder of its own" in words
    assert (await branch.status("shop", "w"))["pid"] == programs.only("w") == before


async def test_an_address_in_use_is_named_and_whoever_has_it_keeps_it(
    branch: RunningBranch, other: RunningBranch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = refused(other, "--listen", f"127.0.0.1:{port}")
        assert f"127.0.0.1:{port} is in use" in words
        assert "choose another address" in words
    words = refused(other, "--listen", f"unix:{branch.socket}")
    assert f"unix:{branch.socket} is in use" in words
    assert "choose another path" in words
    assert await branch.client.ready()
    assert not other.socket.exists(), "what it had opened before is taken away"
    await other.start()


async def test_the_socket_of_a_killed_daemon_is_replaced_and_a_file_in_its_place_is_not(branch: RunningBranch) -> None:
    branch.kill()
    assert stat.S_ISSOCK(branch.socket.stat().st_mode)
    await branch.start()
    assert branch.stop() == 0
    assert not branch.socket.exists()
    branch.socket.write_text("mine")
    assert "something else than a socket stands there" in refused(branch)
    assert branch.socket.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[branch]\nnmae = 'x'\nslots = 'many'\n[http]\nbody_limit = 1\n[htpp]\n",
         ["nmae", "did you mean name?", "slots", "body_limit", "htpp", "did you mean http?"]),
        ("[branch\n", ["branchd.toml", "line 1"]),
        (None, ["branchd.toml", "No such file"]),
    ],
    ids=["several-faults", "not-toml", "missing"],
)  # fmt: skip
def test_a_configuration_that_cannot_be_used_is_told_with_all_its_faults(
    content: str | None, expected: list[str], other: RunningBranch, folder: Path
) -> None:
    file = folder / "branchd.toml"
    if content is not None:
        file.write_text(content)
    words = refused(other, "--config", str(file))
    assert [word for word in expected if word not in words] == [], words
    assert not (folder / "other/state").exists()


def test_without_tls_it_listens_on_loopback_only(other: RunningBranch) -> None:
    words = refused(other, "--listen", f"0.0.0.0:{free_port()}")
    assert "is not loopback, and there is no TLS" in words
    assert "tls_certificate" in words
    assert "insecure = true" in words


def test_the_state_of_another_user_is_left_alone(other: RunningBranch, folder: Path) -> None:
    state = folder / "other/state"
    state.mkdir(mode=0o755)
    os.chown(state, 65534, 65534)
    words = refused(other)
    assert f"{state} belongs to uid 65534" in words
    assert "choose another state folder" in words
    assert (state.stat().st_uid, stat.S_IMODE(state.stat().st_mode), list(state.iterdir())) == (65534, 0o755, [])


async def test_a_damaged_database_is_told_and_not_touched(
    programs: Programs, branch: RunningBranch, folder: Path
) -> None:
    await branch.client.put_app("shop", {"kind": "command"})
    await branch.client.create_instance("shop", {"name": "w", "command": programs.waiting("w")}, wait=30)
    pid = programs.only("w")
    branch.kill()
    files = {path: path.read_bytes() for path in (folder / "state").glob("branchd.db*")}
    for path in files:
        path.unlink()  # the write-ahead log alone could mend it
    database = folder / "state/branchd.db"
    database.write_bytes(b"not a database at all" * 1000)
    words = refused(branch)
    assert str(database) in words
    assert database.read_bytes() == b"not a database at all" * 1000
    assert alive(pid), "what runs goes on"
    for path, content in files.items():
        path.write_bytes(content)
    await branch.start()
    assert await branch.pids() == {"shop:w": pid}


# While it runs


async def test_a_hangup_ends_no_daemon_and_programs_may_still_hear_it(
    programs: Programs, branch: RunningBranch
) -> None:
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(branch.pid, number)
    await until(lambda: branch.log.count("event=ready") == 2, 60, "the reload that the first of them asks for")
    assert await branch.client.healthy()
    await branch.client.put_app("shop", {"kind": "command", "restart": {"policy": "never"}})
    await branch.client.create_instance("shop", {"name": "w", "command": programs.waiting("w")}, wait=30)
    await branch.client.signal("shop", "w", "HUP")
    assert (await branch.state("shop", "w", "EXITED"))["last_exit"]["signal"] == "SIGHUP"


async def test_folders_sockets_and_tokens_are_for_their_owner(branch: RunningBranch, folder: Path) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(folder / "state") == 0o700
    assert mode(folder / "state/admin.token") == 0o600
    assert mode(branch.socket) == 0o660


class Tcp:
    """Requests over TCP as anybody could send them."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __call__(
        self, method: str, path: str, body: bytes = b"", token: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status, and the problem document."""
        headers = {"Content-Type": "application/json"} if body else {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return await asyncio.to_thread(self._ask, method, path, body, headers)

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            with contextlib.suppress(ConnectionError):  # it answers, and hangs up, before it has read a large body
                connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status >= 400:
                assert answer.headers["Content-Type"].startswith("application/problem+json")
            return answer.status, json.loads(content) if content else {}
        finally:
            connection.close()


async def definitions(branch: RunningBranch) -> list[Any]:
    return [(await branch.client.apps())["items"], (await branch.client.instances())["items"]]


async def test_over_tcp_nothing_goes_without_a_token_of_a_sufficient_scope(make_branch: Maker, folder: Path) -> None:
    port = free_port()
    branch = await make_branch("--listen", f":{port}").start()
    await branch.client.put_app("shop", {"kind": "command"})
    before = await definitions(branch)
    tcp = Tcp(port)
    status, problem = await tcp("PUT", "/v1/apps/evil", b'{"kind": "command"}')
    assert (status, problem["title"]) == (401, "A valid token is needed")
    assert problem["detail"]
    status, _ = await tcp("PUT", "/v1/apps/evil", b'{"kind": "command"}', token="0" * 64)
    assert status == 401
    for scope in ("read", "operate"):
        token = (await branch.client.create_token(scope, scope))["token"]
        status, problem = await tcp("PUT", "/v1/apps/evil", b'{"kind": "command"}', token=token)
        assert status == 403
        assert "the scope admin" in problem["detail"]
        assert (await tcp("GET", "/v1/apps/shop", token=token))[0] == 200
    assert await definitions(branch) == before
    admin = (folder / "state/admin.token").read_text().strip()
    assert (await tcp("PUT", "/v1/apps/good", b'{"kind": "command"}', token=admin))[0] == 201
    with pytest.raises(ApiProblem):
        await BranchdClient(f"http://127.0.0.1:{port}").apps()


TWELVE = {
    "name": "../x", "kind": "cron", "pool": "fibers", "concurrency": 0, "command": ["a\0b"], "directory": "relative",
    "umask": "9", "user": "a b", "weight": -1, "restart": {"policy": "sometimes"}, "logs": {"keep": "many"},
    "colour": "red",
}  # fmt: skip


async def test_bad_input_is_refused_in_words_and_changes_nothing(make_branch: Maker, folder: Path) -> None:
    port = free_port()
    branch = await make_branch("--listen", f":{port}").start()
    await branch.client.put_app("shop", {"kind": "command"})
    before = await definitions(branch)
    tcp, admin = Tcp(port), (folder / "state/admin.token").read_text().strip()
    instances = "/v1/apps/shop/instances"
    for method, path, body, expected in [
        ("POST", instances, b'{"name": "w", "command": ["sleep"', 400),
        ("PUT", "/v1/apps/shop", b"\xff\xfe", 400),
        ("POST", instances, b"x" * (100 << 20), 413),
        ("POST", instances, json.dumps(TWELVE).encode(), 422),
        ("POST", instances, b'{"name": "../x", "command": ["sleep", "1"]}', 422),
        ("PUT", f"{instances}/..%2Fx", b'{"command": ["sleep", "1"]}', 422),
        ("PUT", f"{instances}/%2e%2e", b'{"command": ["sleep", "1"]}', 422),
        ("PUT", "/v1/apps/..%2F..%2Fetc", b"{}", 422),
        ("PUT", "/v1/apps/a%00b", b"{}", 422),
    ]:
        status, problem = await tcp(method, path, body, admin)
        assert status == expected, (method, path, problem)
        assert problem["title"]
        assert problem["detail"]
        if body == json.dumps(TWELVE).encode():
            told = {error["pointer"].split("/")[1] for error in problem["errors"]}
            assert told == TWELVE.keys()
            assert all(error["detail"] for error in problem["errors"])
    assert await definitions(branch) == before
    assert sorted(os.listdir(folder)) == ["api.sock", "daemon.log", "run", "state"]
    assert branch.stop() == 0


async def test_a_full_disk_refuses_what_is_new_and_what_runs_goes_on(
    programs: Programs, make_branch: Maker, folder: Path
) -> None:
    branch = make_branch()
    with small_disk(folder / "state", "4m") as disk:
        try:
            await branch.start()
            await on_a_full_disk(branch, programs, disk)
        finally:
            branch.clean_up()


async def on_a_full_disk(branch: RunningBranch, programs: Programs, disk: Path) -> None:
    await branch.client.put_app("shop", {"kind": "command", "restart": {"max_restarts": 1000, "ceiling": 0}})
    await branch.client.create_instance("shop", {"name": "w", "command": programs.waiting("w")}, wait=30)
    for name in ("other", "third"):
        await branch.client.create_instance("shop", {"name": name, "command": programs.waiting(name)}, wait=30)
    pids = await branch.pids()
    filler = fill(disk)

    confirmed = set()

    async def refusal() -> ApiProblem | None:
        """What is left of the file's last page takes some more."""
        name = f"down-{len(confirmed)}"
        try:
            await branch.client.create_instance("shop", {"name": name, "command": ["true"], "wanted": "down"})
        except ApiProblem as problem:
            return problem
        confirmed.add(name)
        return None

    problem = await until(refusal, 30, "the store to refuse")
    assert problem is not None
    assert (problem.status, problem.type) == (503, "urn:branchd:problem:storage-failed")
    assert "full" in str(problem)
    assert await branch.pids() == pids, "what runs goes on"
    assert {item["name"] for item in (await branch.client.instances())["items"]} == confirmed | {"w", "other", "third"}

    async def crash() -> dict[str, Any] | None:
        """Crashes it until what the store still takes is used up: how it is then, between two attempts to start it."""
        status = await branch.status("shop", "w")
        if status["state"] == "RUNNING":
            os.kill(status["pid"], signal.SIGKILL)
            await until(lambda: not alive(status["pid"]))
        return status if status["state"] == "BACKOFF" else None

    status = await until(crash, 60, "a start that cannot be written down")
    assert status is not None
    assert "disk may be full" in status["reason"]
    assert "w" not in programs.running()
    assert programs.only("other") == pids["shop:other"]

    for _ in range(2):
        with pytest.raises(ApiProblem, match="shop:other runs on, because it could not be started again") as refused:
            await branch.client.restart("shop", "other")
        assert (refused.value.status, refused.value.type) == (503, "urn:branchd:problem:storage-failed")
    assert (await branch.status("shop", "other"))["state"] == "RUNNING"
    assert programs.only("other") == pids["shop:other"]
    with pytest.raises(ApiProblem, match="shop:third is being stopped, but that is not remembered"):
        await branch.client.stop("shop", "third")
    await branch.state("shop", "third", "STOPPED", 30)
    assert "third" not in programs.running()

    branch.kill()
    await branch.start()
    assert (await branch.status("shop", "other"))["pid"] == pids["shop:other"], "a daemon starts all the same"

    filler.unlink()
    status = await branch.state("shop", "w", "RUNNING", 30)
    assert status["pid"] == programs.only("w")
    await branch.client.create_instance("shop", {"name": "late", "command": programs.waiting("late")}, wait=30)
    before = await branch.pids()
    branch.kill()
    await branch.start()
    assert await branch.pids() == before
    names = {item["name"] for item in (await branch.client.instances())["items"]}
    assert names == confirmed | {"w", "other", "third", "late"}, (
        "what was confirmed is kept, what was refused is not there"
    )
