"""Traps of what is imported, each with what to do: some were there already, some begin with branchd."""

import os.path
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from branchd.cli.importing.celery_command import Call, call
from branchd.cli.importing.machine import Machine
from branchd.cli.importing.notes import Note, Verdict
from branchd.cli.importing.outputs import STREAMS
from branchd.cli.importing.supervisord import Process
from branchd.drivers.environment import PATH

#: seconds that a worker's tasks have at a stop, up to which it is short
_SHORT_STOP = 10

_SHELL = re.compile(r"(ba|da|z|k|a)?sh")
_SHELL_WORDS = frozenset({"&", "&&", "|", "||", ";", ">", ">>", "<", "2>&1", "2>"})
_PORT = re.compile(
    r"(^|[\s=/@])([\w.*-]+|\[[0-9a-f:]*\])?:\d{2,5}\b|--?(http-)?port[ =]\d+|--bind[ =]\d+|\blisten[ =]\d+"
)
_LOG_ARGUMENT = re.compile(r"--?[a-z-]*log[a-z-]*=(/.+)")
_PASSWORD = re.compile(
    r"://[^/@\s:]*:[^/@\s]+@|--?[a-z.-]*(password|passwd|secret|token|basic_auth)[a-z-]*=\S", re.IGNORECASE
)
_ONCE = re.compile(
    r"\b(manage\.py|django-admin|flask|alembic|airflow|superset|rails?|rake|artisan|certbot|npm|yarn)\b.*"
    r"\b(migrate|collectstatic|upgrade|init|initdb|db:\S+|compilemessages|loaddata|createcachetable|schedule:run|"
    r"optimize|renew|install|build|clearsessions)\b"
)

#: program -> (what sends it to the background, or "" where only the flags that keep it in front do; those flags)
_DAEMONS: Mapping[str, tuple[str, str]] = {
    "nginx": ("", r"daemon\s+off"),
    "gunicorn": (r"(^|\s)(-D|--daemon)(\s|$)", ""),
    "redis-server": (r"--daemonize\s+yes", ""),
    "uwsgi": (r"(^|\s)(-d|--daemonize)", ""),
    "php-fpm": ("", r"(^|\s)(-\w*F|--nodaemonize)"),
    "memcached": (r"(^|\s)(-d|--daemon)(\s|$)", ""),
    "mongod": (r"--fork(\s|$)", ""),
    "haproxy": (r"(^|\s)-D(\s|$)", ""),
    "sshd": ("", r"(^|\s)-\w*[Dd]"),
    "cron": ("", r"(^|\s)-\w*f"),
    "crond": ("", r"(^|\s)-\w*[fn]"),
    "apachectl": ("", r"FOREGROUND"),
    "apache2ctl": ("", r"FOREGROUND"),
    "service": (r"\s(start|restart)(\s|$)", ""),
    "systemctl": (r"\b(start|restart)\b", ""),
    "start-stop-daemon": ("", r"^$"),
    "pidproxy": ("", r"^$"),
}


def program(process: Process, words: Sequence[str], spec: Mapping[str, Any], machine: Machine) -> Iterator[Note]:
    """Of one process; `words` is its command, `spec` what came of it."""
    celery = call(words)
    works = celery is not None and celery.subcommand == "worker"
    if celery is not None and works:
        yield from _worker(process, celery, spec)
    elif celery is not None and celery.subcommand == "beat" and process.numprocs > 1:
        yield _lint(("numprocs",), "each of several beats sends every task", "one beat for an application")
    yield from _wrapper(process, words, machine)
    if celery is None or not works:
        yield from _background(words, celery)
    for word in words[1:]:
        if any(word == stream or word.endswith(f"={stream}") for stream in STREAMS):
            yield _lint(
                ("command",), f"the program itself opens {word}: it truncates the log, or may not open it",
                "let it write to its standard output: most programs do so for `-` or no name",
            )  # fmt: skip
        elif (found := _LOG_ARGUMENT.fullmatch(word)) and not machine.has_folder(os.path.dirname(found[1])):
            missing = os.path.dirname(found[1])
            yield _lint(("command",), f"{missing} is missing here", "make it, or leave the option out")
        if word in _SHELL_WORDS:
            yield _lint(("command",), f"there is no shell: {word} is an argument of the program", "sh -c 'exec ...'")
    text = " ".join(words)
    if _PASSWORD.search(text) and spec["kind"] == "command":
        yield _lint(("command",), "a password on the command line is shown to everybody who may read",
                    "give it in `env` as a secret")  # fmt: skip
    if process.autorestart == "always" and _ONCE.search(text):
        yield _lint(("autorestart",), "a program that ends when its work is done is started again for ever",
                    '`restart`: {"policy": "on-failure"}')  # fmt: skip
    if process.startsecs == 0 and "startsecs" in process.given:
        yield _lint(("startsecs",), "0: it counts as started at once, also where it ends in its first second",
                    "a program that ends is on-failure; any other wants a second, or `ready.probe`")  # fmt: skip
    yield from _places(process, words, spec, machine)


def node_names(workers: Iterable[tuple[str, str, bool]]) -> Iterator[tuple[str, Note]]:
    """Of (APP:NAME, the worker's -n or "", whether it stays a command): those of commands that share a name."""
    by_name: dict[str, list[tuple[str, bool]]] = {}
    for name, node, stays in workers:
        by_name.setdefault(node, []).append((name, stays))
    for node, several in by_name.items():
        stay = [name for name, stays in several if stays]
        if len(several) > 1:
            shown = f"the node name {node}" if node else "no -n, and so the node name celery@HOST"
            text = f"{len(several)} workers have {shown}: they take each other's orders, and monitors see one"
            for name in stay:
                yield name, _lint(("command",), text, "give each a -n of its own, such as -n NAME%(process_num)s@%%h")


def _worker(process: Process, celery: Call, spec: Mapping[str, Any]) -> Iterator[Note]:
    carried = spec["kind"] == "celery"
    if process.stopasgroup:
        yield _lint(("stopasgroup",), "on a Celery worker it sends TERM to the pool too, and running tasks are lost",
                    "nothing: branchd signals the main process alone")  # fmt: skip
    short = process.stopwaitsecs <= _SHORT_STOP
    if short and ("stopwaitsecs" in process.given or not carried or "stop" in spec):
        yield _lint(("stopwaitsecs",) if "stopwaitsecs" in process.given else (),
                    f"after {process.stopwaitsecs} s a worker is killed, and its longer tasks with it",
                    '`stop`: [{"signal": "TERM", "patience": 600}], as long as the longest task')  # fmt: skip
    if process.stopsignal in {"QUIT", "KILL", "ABRT", "HUP"}:
        yield _lint(("stopsignal",), f"{process.stopsignal} ends a worker without its tasks", "TERM lets them end")
    detaches = any(word in {"-D", "--detach"} for word in celery.words)
    if detaches and not carried:
        yield _lint(("command",), "--detach leaves nothing to supervise", "take it out")
    beat = any(word in {"-B", "--beat"} for word in celery.words)
    if beat and process.numprocs > 1:
        yield _lint(
            ("numprocs",), "-B in several workers: each beat sends every task", "one beat, as a program of its own"
        )
    if carried and "directory" not in spec and "PYTHONPATH" not in spec.get("env", {}):
        yield _lint(("directory",), f"{spec['application']} is looked for in /, for no directory is given",
                    "`directory`, unless it is installed in the interpreter's environment")  # fmt: skip


def _wrapper(process: Process, words: Sequence[str], machine: Machine) -> Iterator[Note]:
    """A shell between branchd and the program gets the signals, and the program none."""
    cure = "put `exec` before its last command, or name that program itself"
    if _SHELL.fullmatch(os.path.basename(words[0])):
        flag = next((at for at, word in enumerate(words) if re.fullmatch(r"-[a-z]*c", word)), None)
        if flag is not None and flag + 1 < len(words):
            if not _hands_over(words[flag + 1].splitlines()):
                group = "; with stopasgroup supervisord signalled both" if process.stopasgroup else ""
                yield _lint(("command",), f"a shell without exec: TERM reaches the shell alone{group}", cure)
            return
        script = next((word for word in words[1:] if not word.startswith("-")), "")
    else:
        script = words[0]
    if not script:
        return
    lines = machine.script(os.path.join(process.directory or "/", script))
    if lines is None:
        if script is not words[0] or script.endswith(".sh"):
            yield _lint(
                ("command",),
                f"{script} cannot be read here: where it does not exec, TERM reaches the shell alone",
                cure,
            )
    elif _SHELL.fullmatch(_interpreter(lines[0])) and not _hands_over(lines):
        yield _lint(("command",), f"{script} does not exec its last command: TERM reaches the shell alone", cure)


def _interpreter(first: str) -> str:
    """Of a script, by its first line."""
    words = [os.path.basename(word) for word in first.removeprefix("#!").split()]
    return words[1] if words[:1] == ["env"] and words[1:] else (words or [""])[0]


def _hands_over(lines: Sequence[str]) -> bool:
    """Whether the last command of a shell script, as far as that can be seen, replaces the shell."""
    code = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    last = re.split(r"&&|\|\||;", code[-1])[-1].strip() if code else "exec"
    return last.startswith("exec ") or last == "exec"


def _background(words: Sequence[str], celery: Call | None) -> Iterator[Note]:
    text = " ".join(words[1:])
    inner = os.path.basename(words[0])
    if _SHELL.fullmatch(inner) and text.rstrip().endswith("&"):
        yield _lint(("command",), "goes to the background, and leaves nothing to supervise", "take the & out")
    if celery is not None and celery.subcommand == "multi":
        yield _lint(("command",), "celery multi starts workers in the background, and leaves nothing to supervise",
                    "`branchctl import --celery-multi` makes an instance of each")  # fmt: skip
        return
    if celery is not None and "--detach" in celery.words:
        yield _lint(("command",), "--detach leaves nothing to supervise", "take it out")
    name = re.sub(r"[0-9.]+$", "", inner) or inner
    if name not in _DAEMONS:
        return
    goes, stays = _DAEMONS[name]
    if (goes and re.search(goes, text)) or (not goes and not re.search(stays, text)):
        cures = {"nginx": "nginx -g 'daemon off;'", "pidproxy": "name the program itself, in the foreground"}
        yield _lint(("command",), f"{inner} goes to the background, and leaves nothing to supervise",
                    cures.get(name, "the option that keeps it in the foreground"))  # fmt: skip


def _places(process: Process, words: Sequence[str], spec: Mapping[str, Any], machine: Machine) -> Iterator[Note]:
    user = spec.get("user")
    if user is not None and not machine.has_user(user):
        yield _lint(("user",) if process.user else (), f"this machine has no user {user}", "make it, or change `user`")
    for channel, output in (("stdout", process.stdout), ("stderr", process.stderr)):
        folder = os.path.dirname(output.logfile)
        if output.logfile.startswith("/") and output.logfile not in STREAMS and not machine.has_folder(folder):
            yield _lint((f"{channel}_logfile",), f"{folder} is missing here; supervisord would not start",
                        "nothing: branchd has a folder of its own")  # fmt: skip
    if spec["kind"] != "command":
        return
    if words[0].startswith("/") or words[0].startswith("~"):
        if words[0].startswith("~"):
            yield _lint(("command",), f"{words[0]}: nobody expands ~", "write the whole path")
        return
    if "/" in words[0]:
        if "directory" not in spec:
            yield _lint(
                ("command",), f"{words[0]} is looked for in /, for no directory is given", "write the whole path"
            )
        return
    path = process.environment.get("PATH", PATH)
    if machine.which(words[0], path) is None:
        yield _lint(("command",), f"no {words[0]} is in the PATH {path}", "write its whole path, or set PATH in `env`")


def same_port(processes: Sequence[Process]) -> Iterator[Note]:
    """Of the processes of one section: equal commands that bind a port, of which all but one fail."""
    first = processes[0]
    alike = len(processes) > 1 and len({(one.command, tuple(one.environment.items())) for one in processes}) == 1
    if alike and _PORT.search(first.command):
        yield _lint(("numprocs",), f"{len(processes)} processes of one command that names a port: one can have it",
                    "%(process_num)s in the port, such as --port=80%(process_num)02d")  # fmt: skip


def _lint(keys: tuple[str, ...], text: str, cure: str) -> Note:
    return Note(Verdict.LINT, keys, text, cure)
