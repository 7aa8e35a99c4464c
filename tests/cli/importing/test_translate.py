"""What each key of a program is as a field of a spec."""

from pathlib import Path
from typing import Any

import pytest

from branchd.cli.importing.assembling import of_supervisord
from branchd.cli.importing.notes import Imported, Verdict
from branchd.cli.importing.translate import window
from branchd.core.restart import Again, GiveUp, decide
from branchd.core.spec import Restart, RestartPolicy
from branchd.core.values import Exit
from tests.cli.importing.machines import HOST, FakeMachine


def imported(tmp_path: Path, *keys: str, daemon: str = "", command: str = "/x", keep: bool = False) -> Imported:
    path = tmp_path / "supervisord.conf"
    path.write_text("\n".join(["[supervisord]", daemon, "[program:x]", f"command={command}", *keys]))
    return of_supervisord(path, HOST, {}, FakeMachine(), keep)


def spec(tmp_path: Path, *keys: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = imported(tmp_path, *keys, **options).apps["x"]["instances"]["x"]
    return found


def test_what_supervisord_takes_without_a_key_is_written_out(tmp_path: Path) -> None:
    assert spec(tmp_path) == {
        "kind": "command", "command": ["/x"], "wanted": "up", "ready": {"after": 1.0},
        "restart": {"policy": "on-failure", "max_restarts": 3, "window": 7.0},
        "logs": {"stderr": "file", "rotate_at": "50MiB", "keep": 10},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("autostart=false", "wanted", "down"),
        ("priority=5", "priority", 5),
        ("umask=7", "umask", "007"),
        ("user=www", "user", "www"),
        ("directory=/d", "directory", "/d"),
        ('environment=A=1,B="x,y"', "env", {"A": "1", "B": "x,y"}),
        ("environment=API_TOKEN=1", "env", {"API_TOKEN": {"secret": "1"}}),
        ("environment=URL='redis://:pw@h/0'", "env", {"URL": {"secret": "redis://:pw@h/0"}}),
        ("startsecs=5", "ready", {"after": 5.0}),
        ("stopsignal=INT", "stop", [{"signal": "INT", "patience": 10.0}]),
        ("stopwaitsecs=99", "stop", [{"signal": "TERM", "patience": 99.0}]),
        ("stopwaitsecs=-1", "stop", [{"signal": "TERM", "patience": 0.0}]),
        ("redirect_stderr=true", "logs", {"rotate_at": "50MiB", "keep": 10}),
        ("stdout_logfile=/a\nstderr_logfile=/a", "logs", {"rotate_at": "50MiB", "keep": 10}),
        (
            "stdout_logfile_maxbytes=1KB\nstderr_logfile_maxbytes=1KB",
            "logs",
            {"stderr": "file", "rotate_at": "64KiB", "keep": 10},
        ),
        ("stdout_logfile_backups=0\nredirect_stderr=1", "logs", {"rotate_at": "50MiB", "keep": 1}),
        ("stdout_logfile=/dev/fd/1", "logs", {"stderr": "file", "to": "inherit"}),
        ("stdout_syslog=true\nredirect_stderr=1", "logs", {"to": "journal"}),
    ],
)
def test_a_key_becomes_a_field(tmp_path: Path, key: str, field: str, value: Any) -> None:
    assert spec(tmp_path, key)[field] == value


@pytest.mark.parametrize(
    ("keys", "policy", "codes"),
    [
        ("true", "always", None),
        ("false", "never", None),
        ("unexpected", "on-failure", None),
        ("unexpected\nexitcodes=0,2", "on-failure", [0, 2]),
    ],
)
def test_autorestart_becomes_a_policy(tmp_path: Path, keys: str, policy: str, codes: list[int] | None) -> None:
    restart = spec(tmp_path, f"autorestart={keys}")["restart"]
    assert restart["policy"] == policy
    assert restart.get("expected_exit_codes") == codes


@pytest.mark.parametrize(("retries", "startsecs"), [(1, 1), (3, 1), (3, 10), (10, 1), (20, 5), (100, 0)])
@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_program_that_fails_to_start_is_given_up_after_startretries(
    retries: int, startsecs: int, chance: float
) -> None:
    """With the waits at their shortest and at their longest; each try lasts almost startsecs."""
    policy = Restart(RestartPolicy.ALWAYS, max_restarts=retries, window=window(retries, startsecs))
    now, crashes, tries = 0.0, (), 0
    while True:
        tries += 1
        now += startsecs * 0.99
        decision, crashes = decide(policy, Exit(code=1), crashes, now, chance)
        if not isinstance(decision, Again):
            break
        now += decision.delay
    assert isinstance(decision, GiveUp)
    assert tries == retries + 1


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_program_that_runs_for_a_while_in_between_is_restarted_for_ever(chance: float) -> None:
    policy = Restart(RestartPolicy.ALWAYS, max_restarts=3, window=window(3, 1))
    now, crashes = 0.0, ()
    for _ in range(1000):
        now += 3.0
        decision, crashes = decide(policy, Exit(code=1), crashes, now, chance)
        assert isinstance(decision, Again)
        now += decision.delay


def test_what_supervisord_itself_has_its_programs_inherit(tmp_path: Path) -> None:
    daemon = "user=www\numask=077\ndirectory=/d\nenvironment=A=1,B=2\nminfds=100000"
    found = spec(tmp_path, "environment=B=3", daemon=daemon)
    assert {name: found[name] for name in ("user", "umask", "directory", "env", "limits")} == {
        "user": "www", "umask": "077", "directory": "/d", "env": {"A": "1", "B": "3"}, "limits": {"open_files": 100000},
    }  # fmt: skip
    assert "directory" not in spec(tmp_path, daemon="directory=/d\nnodaemon=true")
    assert spec(tmp_path, "directory=e", daemon="directory=/d")["directory"] == "/d/e"


def test_a_worker_whose_stop_is_not_told_has_branchds(tmp_path: Path) -> None:
    line = "/v/bin/celery -A p worker"
    assert "stop" not in spec(tmp_path, command=line)
    assert spec(tmp_path, "stopwaitsecs=10", command=line)["stop"] == [{"signal": "TERM", "patience": 10.0}]
    assert spec(tmp_path, command=line, keep=True)["command"] == line.split()


def test_workdir_and_the_words_of_env_beat_the_section(tmp_path: Path) -> None:
    line = "/usr/bin/env A=2 /v/bin/celery -A p --workdir=/w worker"
    found = spec(tmp_path, "directory=/d", "environment=A=1", command=line)
    assert (found["directory"], found["env"]) == ("/w", {"A": "2"})


@pytest.mark.parametrize(
    "key", ["stopsignal=PWR", "stdout_events_enabled=true", "stderr_capture_maxbytes=1MB", "directory=d", "user=99999"]
)
def test_what_is_lost_makes_it_incomplete(tmp_path: Path, key: str) -> None:
    found = imported(tmp_path, key)
    assert found.incomplete == 1
    (entry,) = [entry for entry in found.entries if entry.title == "[program:x]"]
    assert any(key.partition("=")[0] in note.keys for note in entry.notes
               if note.verdict in {Verdict.UNSUPPORTED, Verdict.INVALID})  # fmt: skip


def test_the_queues_that_all_workers_of_an_app_share_are_said_of_each(tmp_path: Path) -> None:
    keys = ("numprocs=2", "process_name=w%(process_num)d")
    found = imported(tmp_path, *keys, command="/v/bin/celery -A shop worker -Q mail")
    app = found.apps["x"]
    assert app["application"] == "shop"
    assert {name: one["queues"] for name, one in app["instances"].items()} == {"w0": ["mail"], "w1": ["mail"]}
