"""Traps: each is told where it is, and not where it is not."""

from pathlib import Path

import pytest

from branchd.cli.importing.assembling import of_supervisord
from branchd.cli.importing.notes import Verdict
from tests.cli.importing.machines import HOST, FakeMachine

WORKER = "/v/bin/celery -A p worker"
MACHINE = FakeMachine(
    programs={"there": "/usr/bin/there", "nginx": "/usr/sbin/nginx", "sh": "/bin/sh", "bash": "/bin/bash",
              "celery": "/usr/bin/celery"},
    scripts={
        "/s/plain.sh": ("#!/bin/sh", "cd /x", "run"),
        "/s/env.sh": ("#!/usr/bin/env bash", "run; serve"),
        "/s/exec.sh": ("#!/bin/sh", "cd /x && exec run", "# done", ""),
        "/s/python": ("#!/usr/bin/python3", "print(1)"),
    },
    users=frozenset({"www"}),
    folders=frozenset({"/logs"}),
)  # fmt: skip


def lints(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "supervisord.conf"
    path.write_text(text)
    found = of_supervisord(path, HOST, {}, MACHINE, keep_commands=False)
    return [note.text for entry in found.entries for note in entry.notes if note.verdict is Verdict.LINT]


def program(command: str, *lines: str) -> str:
    return "\n".join(["[program:x]", f"command={command}", "directory=/s", *lines])


TRAPS = [
    (program(WORKER, "stopwaitsecs=60", "stopasgroup=true"), "running tasks are lost"),
    (program(WORKER, "stopwaitsecs=10"), "after 10 s a worker is killed"),
    (program(f"{WORKER} -X a"), "after 10 s a worker is killed"),
    (program(WORKER, "stopwaitsecs=60", "stopsignal=QUIT"), "QUIT ends a worker without its tasks"),
    (program(f"{WORKER} -D -X a"), "--detach leaves nothing to supervise"),
    (program(f"{WORKER} -B", "numprocs=2", "process_name=%(process_num)s"), "-B in several workers"),
    (program("/v/bin/celery -A p beat", "numprocs=2", "process_name=%(process_num)s"), "each of several beats"),
    (program("/v/bin/celery beat --detach"), "--detach leaves nothing"),
    (program("/v/bin/celery multi start 3"), "celery multi starts workers in the background"),
    (program("sh -c 'cd /x; run'"), "a shell without exec"),
    (program("/bin/bash -lc run"), "a shell without exec"),
    (program("sh -c 'run &'"), "goes to the background"),
    (program("sh plain.sh"), "does not exec its last command"),
    (program("/s/plain.sh"), "does not exec its last command"),
    (program("/s/env.sh"), "does not exec its last command"),
    (program("/s/gone.sh"), "cannot be read here"),
    (program("nginx"), "nginx goes to the background"),
    (program("/v/bin/gunicorn app -D"), "gunicorn goes to the background"),
    (program("/usr/bin/redis-server --daemonize yes"), "redis-server goes to the background"),
    (program("/usr/sbin/php-fpm8.2"), "php-fpm8.2 goes to the background"),
    (program("/usr/bin/pidproxy /run/x.pid x"), "pidproxy goes to the background"),
    (program("/x --log=/dev/stdout"), "the program itself opens"),
    (program("/x /dev/stderr"), "the program itself opens"),
    (program("/x --error-log=/none/x.log"), "/none is missing here"),
    (program("/x > out"), "there is no shell: >"),
    (program("/x --db-password=pear"), "a password on the command line"),
    (program("/x amqp://a:b@h"), "a password on the command line"),
    (program("/v/bin/python manage.py migrate", "autorestart=true"), "started again for ever"),
    (program("/x", "startsecs=0"), "0: it counts as started at once"),
    (program("/x --port 80", "numprocs=2", "process_name=%(process_num)s"), "2 processes of one command"),
    (program("/x -b 0.0.0.0:8000", "numprocs=2", "process_name=%(process_num)s"), "2 processes of one command"),
    (program("/x", "user=nobody-here"), "this machine has no user nobody-here"),
    (program("/x", "stdout_logfile=/none/x.log"), "/none is missing here; supervisord would not start"),
    (program("nothere"), "no nothere is in the PATH"),
    (program("there", "environment=PATH=/x"), "no there is in the PATH /x"),
    (program("~/x"), "nobody expands ~"),
    ("[program:x]\ncommand=./x", "./x is looked for in /"),
    ("[program:x]\ncommand=" + WORKER, "p is looked for in /"),
    (program("/x", "stopwaitsec=5"), "stopwaitsecs may be meant"),
    (program(f"{WORKER} -X a") + "\n[program:y]\ncommand=" + WORKER, "2 workers have no -n"),
    (program(f"{WORKER} -X a -n w") + f"\n[program:y]\ncommand={WORKER} -nw -X b", "2 workers have the node name w"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TRAPS)
def test_a_trap_is_told(tmp_path: Path, text: str, expected: str) -> None:
    found = lints(tmp_path, text)
    assert any(expected in one for one in found), found


@pytest.mark.parametrize(
    "text",
    [
        program(WORKER, "stopwaitsecs=60"),
        program(WORKER),
        program(f"{WORKER} -D", "stopwaitsecs=60"),
        program(WORKER) + "\n[program:y]\ndirectory=/s\ncommand=" + WORKER,
        program(f"{WORKER} -n a -X q", "stopwaitsecs=60") + f"\n[program:y]\ndirectory=/s\ncommand={WORKER} -n b",
        program("sh -c 'cd /x && exec run'"),
        program("/s/exec.sh"),
        program("/s/python"),
        program("nginx -g 'daemon off;'"),
        program("/usr/sbin/php-fpm8.2 -F"),
        program("/v/bin/gunicorn app -b :80"),
        program("/x --log=/logs/x.log", "stdout_logfile=/logs/y.log", "user=www"),
        program("/v/bin/python manage.py migrate", "autorestart=unexpected"),
        program("/x --port 80%(process_num)02d", "numprocs=2", "process_name=%(process_num)s"),
        program("/x work", "numprocs=2", "process_name=%(process_num)s"),
        program("there ./relative"),
        program("./x"),
        program("/x", "stdout_logfile=/dev/stdout", "stderr_logfile=NONE"),
    ],
)
def test_what_is_no_trap_is_not_told(tmp_path: Path, text: str) -> None:
    assert lints(tmp_path, text) == []
