"""supervisord's own supervisorctl, as its package ships it, and tools of superlance, against a real daemon."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supervisor.childutils import getRPCInterface

from tests.e2e.branch import RunningBranch, alive
from tests.e2e.conftest import Maker
from tests.e2e.programs import WAIT, Programs
from tests.free_port import free_port
from tests.waiting import until, until_sync

#: writes to both of its streams, tells of USR1, and waits
TALKING = f"""trap 'echo got-usr1' USR1; echo to-stdout; echo to-stderr >&2; while :; do {WAIT}; done"""

#: seconds
PATIENCE = 30

SCRIPTS = Path(sys.executable).parent


class Ctl:
    """supervisorctl, told where to ask; its words come without its own configuration's."""

    def __init__(self, folder: Path, *where: str) -> None:
        self._configuration = folder / "supervisorctl.ini"
        self._configuration.write_text("[supervisorctl]\n")
        self._where = where

    def _command(self, *words: str) -> list[str]:
        return [str(SCRIPTS / "supervisorctl"), "-c", str(self._configuration), *self._where, *words]

    def __call__(self, *words: str, code: int = 0) -> str:
        """What it prints, once it has ended with that exit code."""
        ended = subprocess.run(self._command(*words), capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == code, (words, ended.returncode, ended.stdout, ended.stderr)
        assert not ended.stderr, ended.stderr
        return ended.stdout

    def states(self, *names: str, code: int = 0) -> dict[str, str]:
        return {line.split()[0]: line.split()[1] for line in self("status", *names, code=code).splitlines()}

    def follow(self, *words: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            self._command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )


class Install:
    """A daemon with its files: the groups shop (web_0 and web_1, the second with a file for its stderr) and cron."""

    def __init__(self, folder: Path, programs: Programs) -> None:
        self.folder = folder
        self.port = free_port()
        self._programs = programs
        (folder / "conf.d").mkdir()
        self.configuration = folder / "branchd.toml"
        self.configuration.write_text("[http]\nsupervisor_door = true\n")
        self.define("shop", web_0=programs.waiting("web_0"), web_1=programs.shell("web_1", TALKING))
        self.define("cron", cron=programs.waiting("cron"))

    def define(self, app: str, **commands: list[str]) -> None:
        lines = [f"[apps.{app}]", "kind = 'command'", "stop = [{signal = 'KILL', patience = 5}]"]
        for name, command in commands.items():
            lines += [f"[apps.{app}.instances.{name}]", f"command = {json.dumps(command)}"]
            lines += ["logs = {stderr = 'file'}"] if name == "web_1" else []
        self.path(app).write_text("\n".join(lines))

    def path(self, app: str) -> Path:
        return self.folder / "conf.d" / f"{app}.toml"

    def pid(self, name: str) -> int:
        return self._programs.only(name)


@pytest.fixture
def install(folder: Path, programs: Programs) -> Install:
    return Install(folder, programs)


@pytest.fixture
async def here(make_branch: Maker, install: Install) -> RunningBranch:
    branch = await make_branch("--config", str(install.configuration), "--listen", f"127.0.0.1:{install.port}").start()
    for app, name in (("shop", "web_0"), ("shop", "web_1"), ("cron", "cron")):
        await branch.state(app, name, "RUNNING")
    said = branch.folder / "state/logs/shop/web_1/stderr.log"
    await until(lambda: said.read_text() == "to-stderr\n", PATIENCE, "web_1 to be all ears")
    return branch


@pytest.fixture(params=["unix", "tcp"])
async def ctl(request: pytest.FixtureRequest, here: RunningBranch, install: Install) -> Ctl:
    if request.param == "unix":
        return over_unix(here)
    # Not that of admin.token: `tail -f` breaks its header in two where user and password have more than 57 bytes.
    token = (await here.client.create_token("ctl", "admin"))["token"]
    return Ctl(here.folder, "-s", f"http://127.0.0.1:{install.port}", "-u", "anybody", "-p", token)


def process_info(here: RunningBranch) -> list[dict[str, Any]]:
    """As supervisor's childutils get it for event listeners."""
    with getRPCInterface({"SUPERVISOR_SERVER_URL": f"unix://{here.socket}"}) as proxy:
        return list(proxy.supervisor.getAllProcessInfo())


def read(path: str) -> str:
    return Path(path).read_text()


def over_unix(here: RunningBranch) -> Ctl:
    return Ctl(here.folder, "-s", f"unix://{here.socket}")


async def test_what_runs_is_looked_at(ctl: Ctl, here: RunningBranch, install: Install) -> None:
    assert ctl.states() == ctl.states("all") == {"cron": "RUNNING", "shop:web_0": "RUNNING", "shop:web_1": "RUNNING"}
    assert ctl.states("shop:*") == {"shop:web_0": "RUNNING", "shop:web_1": "RUNNING"}
    assert ctl.states("cron", "shop:web_1") == {"cron": "RUNNING", "shop:web_1": "RUNNING"}
    assert re.search(rf"^cron +RUNNING +pid {install.pid('cron')}, uptime 0:00:\d\d$", ctl("status"), re.MULTILINE)
    assert "nope: ERROR (no such process)" in ctl("status", "nope", code=4)
    assert "nope: ERROR (no such group)" in ctl("status", "nope:*", code=4)
    assert ctl("version") == "4.3.0\n"
    assert ctl("pid") == f"{here.pid}\n"
    assert ctl("pid", "shop:web_0") == f"{install.pid('web_0')}\n"
    assert sorted(ctl("pid", "all").split()) == sorted(str(install.pid(name)) for name in ("cron", "web_0", "web_1"))
    assert ctl("pid", "nope", code=1) == "No such process nope\n"
    assert [line.split() for line in ctl("avail").splitlines()] == [
        [name, "in", "use", "auto", "999:999"] for name in ("cron", "shop:web_0", "shop:web_1")
    ]
    assert "event=ready" in ctl("maintail", "-100000")
    (web,) = (one for one in process_info(here) if one["name"] == "web_1")
    assert (read(web["stdout_logfile"]), read(web["stderr_logfile"])) == ("to-stdout\n", "to-stderr\n")


async def test_one_a_group_and_all_are_stopped_started_and_restarted(ctl: Ctl, install: Install) -> None:
    first = install.pid("web_0")
    assert ctl("stop", "shop:web_0") == "shop:web_0: stopped\n"
    assert not alive(first)
    assert ctl.states(code=3) == {"cron": "RUNNING", "shop:web_0": "STOPPED", "shop:web_1": "RUNNING"}
    assert ctl("pid", "shop:web_0", code=7) == "0\n"
    assert ctl("stop", "shop:web_0") == "shop:web_0: ERROR (not running)\n"
    assert ctl("start", "shop:web_0") == "shop:web_0: started\n"
    assert ctl("start", "shop:web_0") == "shop:web_0: ERROR (already started)\n"
    second = install.pid("web_0")
    assert ctl("restart", "shop:web_0") == "shop:web_0: stopped\nshop:web_0: started\n"
    assert install.pid("web_0") != second != first

    assert sorted(ctl("stop", "shop:*").splitlines()) == ["shop:web_0: stopped", "shop:web_1: stopped"]
    assert sorted(ctl("start", "shop:*", "cron").splitlines()) == [
        "cron: ERROR (already started)", "shop:web_0: started", "shop:web_1: started",
    ]  # fmt: skip
    assert len(ctl("restart", "shop:*").splitlines()) == 4
    names = ["cron", "shop:web_0", "shop:web_1"]
    assert sorted(ctl("stop", "all").splitlines()) == [f"{name}: stopped" for name in names]
    assert ctl.states("cron", code=3) == {"cron": "STOPPED"}
    assert sorted(ctl("start", "all").splitlines()) == [f"{name}: started" for name in names]
    assert len(ctl("restart", "all").splitlines()) == 6
    assert set(ctl.states().values()) == {"RUNNING"}
    assert ctl("start", "nope", code=1) == "nope: ERROR (no such process)\n"
    assert ctl("start", "nope:*", code=2) == "nope: ERROR (no such group)\n"
    assert ctl("stop", "nope", code=1) == "nope: ERROR (no such process)\n"


async def test_what_does_not_come_up_is_told(ctl: Ctl, here: RunningBranch, install: Install) -> None:
    body = {"name": "broken", "kind": "command", "command": ["/nowhere/at-all"], "restart": {"max_restarts": 0},
            "wanted": "down"}  # fmt: skip
    await here.client.put_app("lost", {})
    await here.client.create_instance("lost", body)
    assert ctl("start", "lost:broken", code=7) == "lost:broken: ERROR (spawn error)\n"
    assert re.search(r"^lost:broken +FATAL +.*/nowhere/at-all", ctl("status", "lost:broken", code=3))
    assert ctl.states("cron") == {"cron": "RUNNING"}


async def test_output_is_shown_followed_and_cleared(ctl: Ctl, install: Install) -> None:
    assert ctl("tail", "shop:web_1") == "to-stdout\n\n"
    assert ctl("tail", "shop:web_1", "stderr") == "to-stderr\n\n"
    assert ctl("tail", "-7", "shop:web_1") == "stdout\n\n"
    assert ctl("tail", "shop:web_0", "stderr", code=1) == "shop:web_0: ERROR (no log file)\n"
    assert ctl("tail", "nope", code=1) == "nope: ERROR (no such process name)\n"
    for words, said in (
        ("tail -f shop:web_1", b"to-stdout"),
        ("tail -f shop:web_1 stderr", b"to-stderr"),
        ("maintail -f", b"event=ready"),
    ):
        following(ctl, words.split(), said)
    following(ctl, ["tail", "-f", "shop:web_1"], b"got-usr1", lambda: ctl("signal", "USR1", "shop:web_1"))
    assert ctl("clear", "shop:web_1") == "shop:web_1: cleared\n"
    assert ctl("tail", "shop:web_1") == "\n"
    assert ctl("signal", "USR1", "shop:web_1") == "shop:web_1: signalled\n"
    await until(lambda: ctl("tail", "shop:web_1") == "got-usr1\n\n", PATIENCE)  # it writes on
    assert sorted(ctl("clear", "all").splitlines()) == ["cron: cleared", "shop:web_0: cleared", "shop:web_1: cleared"]


def following(ctl: Ctl, words: list[str], said: bytes, then: Callable[[], object] | None = None) -> None:
    """It shows that, after `then` was done, and a Ctrl-C ends it."""
    process = ctl.follow(*words)
    assert process.stdout is not None
    shown = b""
    try:
        os.set_blocking(process.stdout.fileno(), False)

        def more(enough: bytes) -> bool:
            nonlocal shown
            assert process.poll() is None, shown
            shown += process.stdout.read() or b"" if process.stdout else b""
            return enough in shown

        until_sync(lambda: more(b"to-" if then else said), PATIENCE)
        if then is not None:
            then()
            until_sync(lambda: more(said), PATIENCE)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_signals_are_sent(ctl: Ctl, install: Install) -> None:
    assert ctl("signal", "USR1", "shop:web_1") == "shop:web_1: signalled\n"
    assert ctl("signal", "CONT", "shop:*", "cron").splitlines() == [
        "shop:web_0: signalled", "shop:web_1: signalled", "cron: signalled",
    ]  # fmt: skip
    assert len(ctl("signal", "18", "all").splitlines()) == 3
    assert ctl("signal", "NOPE", "cron", code=1) == "cron: ERROR (bad signal name)\n"
    assert ctl("signal", "HUP", "nope", code=1) == "nope: ERROR (no such process)\n"
    ctl("stop", "cron")
    assert ctl("signal", "HUP", "cron", code=7) == "cron: ERROR (not running)\n"


async def test_files_are_reread_added_updated_and_removed(
    ctl: Ctl, here: RunningBranch, install: Install, programs: Programs
) -> None:
    assert ctl("reread") == "No config updates to processes\n"
    untouched = install.pid("cron")
    install.define("mail", mail=programs.waiting("mail"))
    install.define("shop", web_0=programs.waiting("web_0"), web_2=programs.waiting("web_2"))
    assert ctl("reread") == "mail: available\nshop: changed\n"
    assert "mail" not in programs.running()
    assert re.search(r"^mail +avail +auto +999:999$", ctl("avail"), re.MULTILINE)

    assert ctl("add", "mail") == "mail: added process group\n"
    await here.state("mail", "mail", "RUNNING")
    assert ctl.states("mail") == {"mail": "RUNNING"}
    assert ctl("add", "mail") == "ERROR: process group already active\n"
    assert ctl("add", "nope", code=1) == "ERROR: no such process/group: nope\n"

    assert ctl("update") == "shop: stopped\nshop: updated process group\n"
    for name in ("web_0", "web_2"):
        await here.state("shop", name, "RUNNING")
    assert ctl.states("shop:*") == {"shop:web_0": "RUNNING", "shop:web_2": "RUNNING"}
    assert "web_1" not in programs.running()
    assert install.pid("cron") == untouched

    assert ctl("remove", "mail", code=1) == "ERROR: process/group still running: mail\n"
    ctl("stop", "mail")
    assert ctl("remove", "mail") == "mail: removed process group\n"
    assert ctl("remove", "nope", code=1) == "ERROR: no such process/group: nope\n"
    assert "mail" not in ctl("status")
    await here.client.put_app("own", {})
    assert "FAILED" in ctl("remove", "own", code=1)  # the API made it, and deletes it
    assert ctl("reread") == "mail: available\n"  # its file is still there
    install.path("mail").unlink()
    install.path("shop").unlink()
    assert ctl("update") == "shop: stopped\nshop: removed process group\n"
    assert ctl.states() == {"cron": "RUNNING"}

    install.path("shop").write_text("[apps.shop]\nkind = 'wrong'\n")
    assert "shop.toml" in ctl("reread", code=1)
    assert ctl.states() == {"cron": "RUNNING"}


async def test_who_has_no_right_is_told_so(here: RunningBranch, install: Install) -> None:
    token = (await here.client.create_token("looker", "read"))["token"]
    where = "-s", f"http://127.0.0.1:{install.port}", "-u", "anybody", "-p"
    looker = Ctl(here.folder, *where, token)
    assert looker.states("cron") == {"cron": "RUNNING"}
    assert "403" in looker("stop", "cron", code=1)
    assert looker.states("cron") == {"cron": "RUNNING"}
    stranger = Ctl(here.folder, *where, "no-token")
    assert "Server requires authentication" in stranger("status", code=1)


async def test_a_reload_leaves_every_process_as_it_is(here: RunningBranch, install: Install) -> None:
    ctl = over_unix(here)
    pids = {name: install.pid(name) for name in ("cron", "web_0", "web_1")}
    before = (await here.client.branch("here"))["started_at"]
    assert ctl("reload") == "Restarted supervisord\n"

    async def anew() -> bool:
        return bool((await here.client.branch("here"))["started_at"] != before)

    await until(anew, PATIENCE)
    assert ctl("pid") == f"{here.pid}\n"
    assert {name: install.pid(name) for name in pids} == pids


async def test_a_shutdown_ends_the_daemon_and_all_that_it_runs(ctl: Ctl, here: RunningBranch, install: Install) -> None:
    pids = [install.pid(name) for name in ("cron", "web_0", "web_1")]
    assert ctl("shutdown") == "Shut down\n"
    await until(lambda: not alive(here.pid), PATIENCE)
    assert here.stop() == 0
    assert not any(map(alive, pids))


# Event listeners of superlance: they run outside, and hear of time passing from whoever feeds them


class Listener:
    """A program that speaks supervisord's protocol of events."""

    def __init__(self, environment: dict[str, str], *command: str) -> None:
        self._process = subprocess.Popen(
            [str(SCRIPTS / command[0]), *command[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, **environment},
        )  # fmt: skip

    def tick(self) -> None:
        """Tells it that a minute has passed, and waits until it has done what it does then."""
        assert self._process.stdin and self._process.stdout  # noqa: PT018
        assert self._process.stdout.readline() == b"READY\n"
        payload = b"when:1795382400"
        head = b"ver:3.0 server:supervisor serial:1 pool:own poolserial:1 eventname:TICK_60 len:%d\n" % len(payload)
        self._process.stdin.write(head + payload)
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"RESULT 2\n"
        assert self._process.stdout.read(2) == b"OK"

    def end(self) -> str:
        """What it told of its doings."""
        self._process.kill()
        return self._process.communicate()[1].decode()


async def test_httpok_restarts_what_does_not_answer(here: RunningBranch, install: Install) -> None:
    before, other = install.pid("web_0"), install.pid("web_1")
    listener = Listener(
        {"SUPERVISOR_SERVER_URL": f"unix://{here.socket}"},
        "httpok", "-p", "shop:web_0", "-t", "1", f"http://127.0.0.1:{free_port()}/",
    )  # fmt: skip
    try:
        listener.tick()
    finally:
        told = listener.end()
    assert "shop:web_0 restarted" in told
    assert not alive(before)
    assert install.pid("web_0") != before
    assert install.pid("web_1") == other


async def test_memmon_restarts_what_takes_too_much(here: RunningBranch, install: Install) -> None:
    before, other = install.pid("cron"), install.pid("web_0")
    environment = {
        "SUPERVISOR_SERVER_URL": f"http://127.0.0.1:{install.port}",
        "SUPERVISOR_USERNAME": "memmon",
        "SUPERVISOR_PASSWORD": (await here.client.create_token("memmon", "operate"))["token"],
    }
    listener = Listener(environment, "memmon", "-g", "cron=1KB")
    try:
        listener.tick()
    finally:
        told = listener.end()
    assert "Restarting cron:cron" in told
    assert not alive(before)
    assert install.pid("cron") != before
    assert install.pid("web_0") == other
