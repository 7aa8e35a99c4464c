"""Followers of a real daemon that is restarted, and of an instance that is deleted."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from branchd.cli import watching
from branchd.cli.control import main
from branchd.client import BranchdClient, Unreachable
from tests.running_daemon import RunningDaemon
from tests.waiting import until_sync

PROGRAM = [sys.executable, "-c", "from branchd.cli.control import main; main()"]


class Restartable(RunningDaemon):
    def kill(self) -> None:
        self._process.kill()
        self._process.wait(60)
        (self.folder / "log").write_text("")

    def again(self) -> None:
        self._process = subprocess.Popen(self._process.args, stdout=self._log, stderr=self._log)
        until_sync(self._ready, 30, "the daemon is ready again")


class Follower:
    """branchctl, with its output in files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen([*PROGRAM, *arguments], stdout=out, stderr=err)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)


@pytest.fixture
def restartable() -> Iterator[Restartable]:
    daemon = Restartable()
    yield daemon
    daemon.stop()


def control(daemon: RunningDaemon, *arguments: str) -> None:
    result = CliRunner().invoke(main, ["--url", daemon.url, *arguments])
    assert result.exit_code == 0, result.output


def test_a_follower_of_events_goes_on_after_a_restart_without_leaving_one_out(
    restartable: Restartable, tmp_path: Path
) -> None:
    control(restartable, "app", "set", "before")
    follower = Follower(tmp_path, "--url", restartable.url, "events", "-f", "-n", "1", "-o", "jsonl")
    try:
        until_sync(lambda: "before" in follower.out, 60, "the first event")
        restartable.kill()
        until_sync(lambda: "waiting for the daemon" in follower.err, 60, "the note")
        restartable.again()
        control(restartable, "app", "set", "after")
        until_sync(lambda: '"after"' in follower.out, 60, "what came after the restart")
        assert "it is there again" in follower.err
        ids = [json.loads(line)["id"] for line in follower.out.splitlines()]
        assert ids == list(range(ids[0], ids[0] + len(ids)))
        assert follower.process.poll() is None
    finally:
        follower.end()


async def test_a_follower_of_events_gives_up_when_nobody_comes_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 0.0)
    client = BranchdClient("http://127.0.0.1:1")
    with pytest.raises(Unreachable):
        await anext(watching.following(client, client.events, 3, None))
    assert "waiting for the daemon" in capsys.readouterr().err


def test_a_follower_of_a_log_ends_with_a_note_when_the_instance_is_gone(daemon: RunningDaemon, tmp_path: Path) -> None:
    control(daemon, "app", "set", "shop", "--", "sh", "-c", "echo hi; sleep 1000")
    control(daemon, "create", "shop", "web")
    follower = Follower(tmp_path, "--url", daemon.url, "logs", "-f", "shop:web")
    try:
        until_sync(lambda: "hi" in follower.out, 60, "its output")
        control(daemon, "app", "rm", "shop", "--cascade")
        assert follower.process.wait(60) == 0
        assert follower.err == "shop:web: it is gone\n"
    finally:
        follower.end()
