"""A real supervisord is left: the commands at the end of the report move what it runs, and no name changes."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running_daemon import RunningDaemon
from tests.waiting import until_sync

BIN = Path(sys.executable).parent

CONF = """
[unix_http_server]
file = {folder}/s.sock

[supervisord]
logfile = {folder}/log
pidfile = {folder}/pid
childlogdir = {folder}
nodaemon = true

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = unix://{folder}/s.sock

[program:alone]
command = sleep 1000

[program:many]
command = sleep 100%(process_num)d
process_name = many_%(process_num)02d
numprocs = 2

[program:front]
command = sleep 1000

[program:back]
command = sleep 1000
autostart = false

[group:web]
programs = front,back
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for a socket stands in it."""
    path = Path(tempfile.mkdtemp(prefix="br-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def conf(folder: Path) -> Iterator[Path]:
    path = folder / "supervisord.conf"
    path.write_text(CONF.format(folder=folder))
    with subprocess.Popen(
        [BIN / "supervisord", "-c", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until_sync(lambda: list(statuses(path).values()).count("RUNNING") == 4, 60, "supervisord runs them")
        yield path
        process.terminate()


def statuses(conf: Path) -> dict[str, str]:
    """As supervisorctl has them: a process whose group is called the same is one word."""
    result = subprocess.run(
        [BIN / "supervisorctl", "-c", conf, "status"], capture_output=True, text=True, check=False
    ).stdout
    return dict(re.findall(r"^(\S+)\s+(RUNNING|STOPPED|STARTING)\b", result, re.MULTILINE))


def test_the_commands_of_the_report_move_all_that_runs(daemon: RunningDaemon, conf: Path) -> None:
    env = {**os.environ, "BRANCHD_URL": daemon.url, "PATH": f"{BIN}:{os.environ['PATH']}"}

    def shell(line: str) -> str:
        return subprocess.run(["bash", "-c", line], env=env, check=True, capture_output=True, text=True).stdout

    before = statuses(conf)
    report = shell(f"branchctl import {conf}")
    for line in (line for line in report.splitlines() if "&& branchctl start" in line):
        shell(line)
    assert set(statuses(conf).values()) == {"STOPPED"}
    items = json.loads(shell("branchctl ps -o json"))["items"]
    names = {one["name"] if one["app"] == one["name"] else f"{one['app']}:{one['name']}": one for one in items}
    assert {name: one["status"]["state"] for name, one in names.items()} == before
