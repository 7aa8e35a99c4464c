"""Command lines of Celery: which are workers, what of them become fields, and what keeps them commands."""

import shlex
from typing import Any

import pytest
from celery.apps.multi import MultiParser, NamespacedOptionParser

from branchd.cli.importing import celery_lines
from branchd.cli.importing.celery_command import Kept, call, worker
from branchd.cli.importing.celery_lines import of_celery_multi
from branchd.cli.importing.celery_sources import lines
from branchd.cli.importing.notes import Imported, Verdict
from branchd.cli.importing.reading import Unreadable
from tests.cli.importing.machines import FakeMachine

MACHINE = FakeMachine(
    programs={"celery": "/usr/local/bin/celery", "python3": "/usr/bin/python3"},
    scripts={"/opt/x/bin/celery": ("#!/opt/x/bin/python3.12", "")},
)


def made(line: str, **env: str) -> dict[str, Any]:
    found = call(shlex.split(line))
    assert found is not None
    assert found.subcommand == "worker"
    return dict(worker(found, env, MACHINE).spec)


@pytest.mark.parametrize(
    ("line", "python"),
    [
        ("/srv/v/bin/celery -A p worker", "/srv/v/bin/python"),
        ("/opt/x/bin/celery -A p worker", "/opt/x/bin/python3.12"),
        ("/usr/bin/celery worker -A p", "/usr/bin/python3"),
        ("celery -A p worker", "/usr/local/bin/python3"),
        ("/srv/v/bin/python -m celery -A p worker", "/srv/v/bin/python"),
        ("/srv/v/bin/python3.11 -u /srv/v/bin/celery -A p worker", "/srv/v/bin/python3.11"),
        ("python3 -m celery -A p worker", "/usr/bin/python3"),
        ("/usr/bin/env celery -A p worker", "/usr/local/bin/python3"),
        ("env A=1 /srv/v/bin/celery -A p worker", "/srv/v/bin/python"),
    ],
)
def test_the_interpreter_is_the_one_of_its_celery(line: str, python: str) -> None:
    assert made(line) == {"kind": "celery", "python": python, "application": "p"}


def test_a_virtual_environment_that_comes_first_in_path_has_it() -> None:
    assert made("celery -A p worker", PATH="/srv/v/bin:/usr/bin:/bin")["python"] == "/srv/v/bin/python"
    assert made("python -m celery -A p worker", PATH="/srv/v/bin:/usr/bin")["python"] == "/srv/v/bin/python"


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ("-c4 -Pthreads", {"concurrency": 4, "pool": "threads"}),
        ("--concurrency 4 --pool processes", {"concurrency": 4, "pool": "prefork"}),
        ("--autoscale=10,2", {"autoscale": {"min": 2, "max": 10}}),
        ("--autoscale 10", {"autoscale": {"min": 1, "max": 10}}),
        ("-Q a,b", {"queues": ["a", "b"]}),
        ("-l info -n w1@%h --pidfile=x --logfile x -D --without-gossip", {}),
        ("-lDEBUG -Ofair -EB", {"arguments": ["-l", "DEBUG", "--optimization", "fair", "--task-events", "--beat"]}),
        ("--max-tasks-per-child=5 -s /x", {"arguments": ["--max-tasks-per-child", "5", "--schedule", "/x"]}),
        ("--workdir /w --uid u --gid g --umask 022", {"directory": "/w", "user": "u", "group": "g", "umask": "022"}),
        ("-b amqp://h", {"broker": "amqp://h"}),
        ("-- worker.prefetch=1", {"arguments": ["--", "worker.prefetch=1"]}),
    ],
)
def test_options_of_a_worker_become_fields(options: str, fields: dict[str, Any]) -> None:
    found = made(f"/v/bin/celery -A p worker {options}")
    assert found == {"kind": "celery", "python": "/v/bin/python", "application": "p"} | fields


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("/v/bin/celery worker", "not named with -A"),
        ("/v/bin/celery -A p worker -X a", "--exclude-queues"),
        ("/v/bin/celery -A p worker --pool custom", "pool custom"),
        ("/v/bin/celery -A p worker --odd", "--odd is not an option"),
        ("/v/bin/celery -A p worker odd", "'odd' is not an option"),
        ("/v/bin/celery -A p worker -c", "-c has no value"),
        ("/v/bin/celery -A p worker -c many", "many is not a number"),
        ("/v/bin/celery -A p worker --result-backend=x", "--result-backend has no field"),
        ("v/bin/celery -A p worker", "relative path"),
        ("python2 -m celery -A p worker", "which interpreter has its python2"),
    ],
)
def test_what_has_no_field_keeps_a_worker_a_command(line: str, why: str) -> None:
    with pytest.raises(Kept, match=why):
        made(line)


@pytest.mark.parametrize(
    "line",
    ["gunicorn p", "sh -c 'celery -A p worker'", "poetry run celery -A p worker", "python manage.py celery", "env", ""],
)
def test_what_is_no_celery_is_none(line: str) -> None:
    assert call(shlex.split(line)) is None


@pytest.mark.parametrize("line", ["celery -A p beat", "celery --app p flower", "celery multi start worker", "celery"])
def test_what_is_no_worker_is_none(line: str) -> None:
    found = call(shlex.split(line))
    assert found is not None
    assert found.subcommand != "worker"


# celery multi


@pytest.mark.parametrize(
    "text",
    [
        "3 -A p -c4",
        "image video data -c 3 -c:image 10 -Q:2 v",
        "5 -c 3 -c:1-3 10 -Q:4,5 data -Q default",
        "foo bar baz -c 3 -c:foo,baz 10",
        "3 --range-prefix=w -l INFO",
        "a b --prefix=x --suffix=host",
        "2 --hostname=example.com",
        "foo@example.com bar@%h -c:foo 2",
        "foo@h -c:foo@h 9 -E",
        "2 -c:7-9 1 -Q:1 x -- a.b=1",
        "one -c:1,1 2",
        "10 -l INFO -Q:1-3 images,video -Q:4,5 data -L:4,5 DEBUG --x --y=1",
        "w1-2 -c:1 3",
    ],
)
def test_nodes_and_their_options_are_as_celery_has_them(text: str) -> None:
    """Celery's own parser reads the same line."""
    parser = NamespacedOptionParser(shlex.split(text))
    parser.parse()
    merged: list[tuple[str, dict[str, Any]]] = []

    class Multi(MultiParser):  # type: ignore[misc]
        def Node(self, name: str, cmd: str, append: str, options: dict[str, Any], extra: str) -> None:
            merged.append((name, dict(options)))

    list(Multi().parse(parser))
    mine = celery_lines._cluster(shlex.split(text))
    assert [node.name for node in mine] == [name.partition("@")[0] for name, _ in merged]
    assert [{k: v for k, v in node.options.items() if k != "--"} for node in mine] == [options for _, options in merged]


def multi(line: str, app: str | None = None) -> Imported:
    return of_celery_multi(lines(line, {}), app, MACHINE)


def test_each_node_becomes_an_instance_of_the_application() -> None:
    found = multi(
        "/v/bin/celery multi start 3 -A proj.main:app -c4 -c:1 2 -Q:2,3 mail --pidfile=/p/%n.pid --logfile=/l/%n%I.log"
    )
    assert found.apps == {
        "proj": {
            "kind": "celery", "python": "/v/bin/python", "application": "proj.main:app",
            "instances": {
                "celery1": {"concurrency": 2, "wanted": "up"},
                "celery2": {"concurrency": 4, "queues": ["mail"], "wanted": "up"},
                "celery3": {"concurrency": 4, "queues": ["mail"], "wanted": "up"},
            },
            "queues": {},
        }
    }  # fmt: skip
    assert not found.incomplete


@pytest.mark.parametrize(
    "verb", ["restart", "stop", "stopwait", "show", "names", "expand %n.pid", "get hostname", "kill"]
)
def test_any_verb_tells_the_nodes(verb: str) -> None:
    found = multi(f"/v/bin/celery -A p multi {verb} a b -QUIT --quiet", app="shop")
    assert list(found.apps["shop"]["instances"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("celery -A p worker", "is not a line of celery multi"),
        ("/v/bin/celery multi start -A p", "names no nodes"),
        ("/v/bin/celery multi frobnicate 3 -A p", "celery multi wants one of"),
        ("/v/bin/celery multi start a@x a@y -A p", "p:a is there twice"),
        ("/v/bin/celery multi start a -A p -c:2 4", "there is no node 2"),
        ("/v/bin/celery multi start a --cmd=x -A p", "--cmd"),
        ("/v/bin/celery multi start 3", "not named with -A"),
        ("/v/bin/celery multi start 99999 -A p", "more than 1000 nodes"),
        ("/v/bin/celery multi start _x -A p", "is not a valid name here"),
        ("/v/bin/celery multi start 2 -A p -Q ''", "no value"),
    ],
)
def test_a_line_that_cannot_be_carried_over_is_told(line: str, why: str) -> None:
    found = multi(line)
    wrong = [note.text for entry in found.entries for note in entry.notes if note.verdict is Verdict.INVALID]
    assert any(why in text for text in wrong), wrong
    assert not found.apps


def test_a_value_without_its_equals_sign_is_told() -> None:
    """Celery itself starts a node of that name then, or tries to."""
    found = multi("/v/bin/celery multi start a -A p --loglevel INFO")
    assert not found.apps
    assert any("for a node's name" in note.text for note in found.entries[0].notes)


def test_a_file_of_lines_is_read(tmp_path: Any) -> None:
    file = tmp_path / "workers"
    file.write_text("# mine\n/v/bin/celery multi start a -A p \\\n  -c 2\n\n/v/bin/celery multi start b -A p\n")
    found = multi(f"@{file}")
    assert list(found.apps["p"]["instances"]) == ["a", "b"]


SETTINGS = """
# of the init script
CELERYD_NODES="w1 w2"
CELERY_BIN="/srv/v/bin/celery"
CELERY_APP='proj'
BASE=/srv/proj
CELERYD_CHDIR="$BASE/code"
CELERYD_OPTS="--time-limit=300 -c:w1 8 --concurrency=${SIZE}"
CELERYD_LOG_FILE="/var/log/celery/%n%I.log"
CELERYD_LOG_LEVEL="DEBUG"
CELERYD_USER="celery"
CELERYBEAT_CHDIR="/x"
export DJANGO_SETTINGS_MODULE="proj.settings"
"""


def test_settings_of_celerys_init_script_are_the_line_that_they_stand_for(tmp_path: Any) -> None:
    file = tmp_path / "celeryd"
    file.write_text(SETTINGS)
    found = of_celery_multi(lines(f"@{file}", {"SIZE": "3"}), None, MACHINE)
    app = found.apps["proj"]
    assert app["directory"] == "/srv/proj/code"
    assert app["user"] == "celery"
    assert app["env"] == {"DJANGO_SETTINGS_MODULE": "proj.settings"}
    assert app["arguments"] == ["-l", "DEBUG", "--time-limit", "300"]
    assert {name: spec["concurrency"] for name, spec in app["instances"].items()} == {"w1": 8, "w2": 3}
    told = {key for note in found.entries[0].notes for key in note.keys}
    assert {"CELERYD_LOG_FILE", "CELERYBEAT_CHDIR", "BASE"} <= told


@pytest.mark.parametrize("line", ["X=$(id)", "X=`id`", "if true; then", "X=$NOT_SET", "X=a b", "CELERYD_OPTS='"])
def test_settings_that_need_a_shell_are_refused(tmp_path: Any, line: str) -> None:
    file = tmp_path / "celeryd"
    file.write_text(f"CELERYD_NODES=1\n{line}\n")
    with pytest.raises(Unreadable):
        lines(f"@{file}", {})
