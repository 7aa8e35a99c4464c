"""`branchctl import` at a real daemon: what is made, what is left alone, and what runs then."""

import asyncio
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from branchd.cli.control import main
from tests.e2e.conftest import Maker, folder, make_branch
from tests.running_daemon import RunningDaemon

__all__ = ["folder", "make_branch"]  # fixtures of theirs

Control = Callable[..., Result]

CONF = """
[supervisord]
nodaemon = true

[program:alone]
command = sleep 1000
environment = STAGE="live",DB_PASSWORD="hunter2"
startsecs = 0
stopwaitsecs = 3

[program:many]
command = sh -c 'exec sleep 10%(process_num)02d'
process_name = %(program_name)s_%(process_num)02d
numprocs = 2
startsecs = 0

[program:front]
command = sleep 1000
startsecs = 0

[program:back]
command = sleep 1000
startsecs = 0
autostart = false

[group:web]
programs = front,back
"""
NAMES = ["alone:alone", "many:many_00", "many:many_01", "web:front", "web:back"]


@pytest.fixture
def control(daemon: RunningDaemon) -> Iterator[Control]:
    def call(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["--url", daemon.url, *arguments])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
        return result

    yield call
    for app in json.loads(call("app", "ls", "-o", "json").stdout)["items"]:
        call("app", "rm", app["name"], "--cascade")


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "supervisord.conf"
    path.write_text(CONF)
    return path


def states(control: Control) -> dict[str, str]:
    items = json.loads(control("ps", "-o", "json").stdout)["items"]
    return {
        f"{one['app']}:{one['name']}": f"{one['status']['state']} {one['status']['reason']}".strip() for one in items
    }


def wanted(control: Control) -> dict[str, str]:
    items = json.loads(control("ps", "-o", "json").stdout)["items"]
    return {f"{one['app']}:{one['name']}": one["status"]["wanted"] for one in items}


def test_names_are_supervisords_and_nothing_runs_before_it_is_moved(control: Control, conf: Path) -> None:
    result = control("import", str(conf))
    assert states(control) == dict.fromkeys(sorted(NAMES), "STOPPED")
    assert "hunter2" not in result.output
    items = json.loads(control("ps", "-o", "json").stdout)["items"]
    assert {one["placement"] for one in items} == {"pinned"}
    following = [line.strip() for line in result.stdout.splitlines() if "&& branchctl start" in line]
    assert following == [
        f"supervisorctl -c {conf} stop alone && branchctl start alone:alone",
        f"supervisorctl -c {conf} stop 'many:*' && branchctl start 'many:*'",
        f"supervisorctl -c {conf} stop web:front && branchctl start web:front",
    ]
    for line in following:
        control(*shlex.split(line.partition("&& branchctl ")[2]))
    up = {name: "STOPPED" if name == "web:back" else "RUNNING" for name in sorted(NAMES)}
    assert states(control) == up
    # once more: all of it is there, and what runs is left alone
    again = control("import", str(conf))
    assert again.stdout.count("is there already, and the same") == 5
    assert states(control) == up


def test_with_start_what_supervisord_starts_by_itself_is_started(control: Control, conf: Path) -> None:
    control("import", str(conf), "--start")
    control("start", "alone:alone", "many:*", "web:front")  # waits
    assert states(control) == {name: "STOPPED" if name == "web:back" else "RUNNING" for name in sorted(NAMES)}


def test_what_is_there_and_differs_is_left_alone_unless_it_may_be_replaced(control: Control, conf: Path) -> None:
    control("import", str(conf))
    control("start", "web:front")
    control("set", "web:front", "--env", "A=1")
    control("rm", "alone:alone")
    result = control("import", str(conf), code=1)
    assert "web:front: is there already, and differs in env (--replace overwrites it)" in result.stderr
    assert "nothing was created" in result.stderr
    assert "alone:alone" not in states(control)
    control("import", str(conf), "--partial", code=1)
    assert states(control)["alone:alone"] == "STOPPED"
    result = control("import", str(conf), "--replace")
    assert "web:front: replaced on here" in result.stdout
    assert wanted(control) == dict.fromkeys(NAMES, "down") | {"web:front": "up"}
    front = json.loads(control("show", "web:front", "-o", "json").stdout)
    assert "A" not in str(front.get("items", [front])[0]["spec"].get("env"))


def test_nothing_is_made_where_something_cannot_be_carried_over(control: Control, conf: Path) -> None:
    conf.write_text(f"{CONF}\n[eventlistener:x]\ncommand = memmon -a 1GB\nevents = TICK_60\n")
    result = control("import", str(conf), code=1)
    assert "nothing was created: 1 thing cannot be carried over, and --partial creates the rest" in result.stderr
    assert not states(control)
    control("import", str(conf), "--partial", code=1)
    assert sorted(states(control)) == sorted(NAMES)


def test_a_dry_run_asks_no_daemon(conf: Path) -> None:
    result = CliRunner().invoke(
        main, ["--url", "unix:/nowhere/api.sock", "import", str(conf), "--dry-run", "-o", "json"]
    )
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert sorted(f"{app}:{name}" for app, spec in document["apps"].items() for name in spec["instances"]) == sorted(
        NAMES
    )
    assert "hunter2" not in result.stdout


def test_the_toml_is_what_a_daemon_reads_in_conf_d(conf: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["import", str(conf), "--toml"])
    assert result.exit_code == 0
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "imported.toml").write_text(result.stdout)
    main_file = tmp_path / "branchd.toml"
    main_file.write_text(f'[branch]\nstate = "{tmp_path}/s"\nrun = "{tmp_path}/r"\n')
    checked = subprocess.run(
        [sys.executable, "-m", "branchd.cli.daemon", "check", "--config", str(main_file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_celery_multi_becomes_workers(control: Control) -> None:
    line = f"{Path(sys.executable).parent}/celery multi start 2 -A proj -c 1 --pidfile=/x/%n.pid"
    result = control("import", "--celery-multi", line, "--app", "shop")
    assert sorted(states(control)) == ["shop:celery1", "shop:celery2"]
    assert "branchctl start 'shop:*'" in result.stdout


async def test_a_refusal_of_the_branch_takes_back_what_was_made(make_branch: Maker, conf: Path) -> None:
    branch = await make_branch(env={"BRANCHD_ALLOW_USERS": "nobody", "BRANCHD_DEFAULT_USER": "nobody"}).start()
    await asyncio.to_thread(conf.write_text, "[program:a]\ncommand=/x\n[program:z]\ncommand=/x\nuser=root\n")

    async def control(*arguments: str) -> Result:
        return await asyncio.to_thread(
            CliRunner().invoke, main, ["--url", branch.client.url, "import", str(conf), *arguments]
        )

    result = await control()
    assert result.exit_code == 1
    assert "root is not in [auth] allow_users" in result.stderr
    assert "nothing was created" in result.stderr
    assert (await branch.client.instances())["items"] == (await branch.client.apps())["items"] == []
    result = await control("--partial")
    assert result.exit_code == 1
    assert [one["name"] for one in (await branch.client.instances())["items"]] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["import"], 2, "give a supervisord configuration FILE"),
        (["import", "x", "--celery-multi", "y"], 2, "give a supervisord configuration FILE"),
        (["import", "/nowhere/x.conf"], 1, "/nowhere/x.conf cannot be read: No such file"),
        (["import", "--celery-multi", "@/nowhere"], 1, "/nowhere cannot be read"),
        (["import", "--celery-multi", "celery multi '"], 1, "no closing quotation"),
    ],
)
def test_what_cannot_be_read_is_told(arguments: list[str], code: int, words: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code
    assert words in result.output


def test_a_variable_may_be_given(conf: Path) -> None:
    conf.write_text("[program:x]\ncommand = sleep %(ENV_SECONDS)s")
    arguments = ["import", str(conf), "--dry-run", "-o", "name"]
    assert CliRunner(env={"SECONDS": None}).invoke(main, arguments).exit_code == 1
    result = CliRunner().invoke(main, [*arguments, "--env", "SECONDS=1"])
    assert (result.exit_code, result.stdout) == (0, "x:x\n")
