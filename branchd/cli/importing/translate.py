"""A process of supervisord as the spec of an instance, with a note for each key that its section has.

Where a default of supervisord differs from branchd's, supervisord's is written out: the program goes on as it was.
"""

import difflib
import re
import shlex
from collections.abc import Iterable
from typing import Any

from branchd.cli.importing.celery_command import Kept, call, worker
from branchd.cli.importing.machine import Machine
from branchd.cli.importing.notes import Note, Verdict
from branchd.cli.importing.outputs import logs
from branchd.cli.importing.supervisord import PRIORITY, Daemon, Process
from branchd.core.faults import SIGNALS
from branchd.core.restart import BASE
from branchd.core.spec import Restart
from branchd.core.value import Value

CARRIED, CHANGED, DROPPED = Verdict.CARRIED, Verdict.CHANGED, Verdict.DROPPED

#: keys of [program:x]
KEYS = (
    "command", "process_name", "numprocs", "numprocs_start", "directory", "umask", "priority", "autostart",
    "startsecs", "startretries", "autorestart", "exitcodes", "stopsignal", "stopwaitsecs", "stopasgroup",
    "killasgroup", "user", "redirect_stderr", "environment", "serverurl",
    *(f"{channel}_{key}" for channel in ("stdout", "stderr") for key in (
        "logfile", "logfile_maxbytes", "logfile_backups", "capture_maxbytes", "events_enabled", "syslog")),
)  # fmt: skip

#: seconds; the longest patience of a stop plan
_MOST_PATIENCE = 7 * 86400

#: what branchd's units give each process; fewer need not be asked for
_OPEN_FILES = 65536

#: seconds; the longest window of a restart policy
_LONGEST_WINDOW = 30 * 86400

_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL|DSN", re.IGNORECASE)
_SECRET_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@\s]*:[^/@\s]+@")


class Translated(Value):
    spec: dict[str, Any]
    words: tuple[str, ...]  #: of the command
    notes: tuple[Note, ...]


def translate(process: Process, priority: int, daemon: Daemon, machine: Machine, keep_commands: bool) -> Translated:
    """`priority`: as order.py gives it."""
    notes: list[Note] = []
    try:
        words = tuple(shlex.split(process.command))
        if not words:
            raise ValueError("it is empty")
    except ValueError as error:
        cure = "a comment begins at ' ;' and ' #', also within quotes: move such a text to a script"
        return Translated({}, (), (Note(Verdict.INVALID, ("command",), str(error).lower(), cure),))
    environment = dict(process.environment)
    spec = _program(words, environment, machine, keep_commands, notes)
    _account(process, spec, daemon, machine, notes)
    _directory(process, spec, daemon, notes)
    if environment:
        spec["env"] = {name: {"secret": text} if _secret(name, text) else text for name, text in environment.items()}
        if secrets := [name for name, text in process.environment.items() if _secret(name, text)]:
            notes.append(Note(CARRIED, ("environment",), f"{', '.join(secrets)} as a secret, never shown again"))
    if priority != PRIORITY:
        spec["priority"] = priority
    if priority != process.priority:
        notes.append(Note(CHANGED, ("priority",), f"is {priority}: one number keeps its place among all groups"))
    spec["wanted"] = "up" if process.autostart else "down"
    _starts(process, spec, notes)
    _stops(process, spec, notes)
    spec["logs"], told = logs(process)
    notes += told
    if daemon.minfds > _OPEN_FILES:
        spec["limits"] = {"open_files": daemon.minfds}
    if "serverurl" in process.given:
        notes.append(Note(DROPPED, ("serverurl",), "programs do not speak to branchd"))
    return Translated(spec, words, _complete(notes, process.given))


def _program(
    words: tuple[str, ...], environment: dict[str, str], machine: Machine, keep_commands: bool, notes: list[Note]
) -> dict[str, Any]:
    found = call(words)
    if found is not None and found.subcommand == "worker" and not keep_commands:
        try:
            made = worker(found, {**environment, **found.env}, machine)
        except (Kept, ValueError) as why:
            notes.append(Note(CARRIED, ("command",), f"a Celery worker that stays a command: {why}"))
        else:
            environment |= made.env
            notes += [Note(CARRIED, ("command",), "as a Celery worker"), *made.notes]
            return dict(made.spec)
    return {"kind": "command", "command": list(words)}


def _account(process: Process, spec: dict[str, Any], daemon: Daemon, machine: Machine, notes: list[Note]) -> None:
    user = spec.get("user") or process.user or daemon.user
    if user is not None and user.isdigit():
        name = machine.account(int(user[:10]))
        if name is None:
            notes.append(Note(Verdict.INVALID, ("user",), f"this machine has no user {user}", "give its name"))
        user = name
    if user is not None:
        spec["user"] = user
    umask = process.umask if process.umask is not None else daemon.umask
    if umask is not None:
        spec.setdefault("umask", f"{umask:03o}")


def _directory(process: Process, spec: dict[str, Any], daemon: Daemon, notes: list[Note]) -> None:
    base = daemon.directory if daemon.directory is not None and not daemon.nodaemon else None
    directory = spec.pop("directory", None) or process.directory or base
    if directory is None:
        return
    if not directory.startswith("/") and base is not None and base.startswith("/"):
        directory = f"{base}/{directory}"
    if directory.startswith("/"):
        spec["directory"] = directory
    else:
        text = f"{directory} is relative to wherever supervisord was started"
        notes.append(Note(Verdict.INVALID, ("directory",), text, "write the whole path"))


def _secret(name: str, text: str) -> bool:
    return bool(_SECRET_NAME.search(name) or _SECRET_URL.search(text))


def _starts(process: Process, spec: dict[str, Any], notes: list[Note]) -> None:
    if process.startsecs > 0:
        spec["ready"] = {"after": min(float(process.startsecs), 86400.0)}
    retries = max(process.startretries, 1)
    policy = {"always": "always", "unexpected": "on-failure", "never": "never"}[process.autorestart]
    spec["restart"] = {
        "policy": policy, "max_restarts": min(retries, 1_000_000), "window": window(retries, process.startsecs)
    }  # fmt: skip
    if process.exitcodes != (0,):
        spec["restart"]["expected_exit_codes"] = list(process.exitcodes)
    if process.autorestart == "never" and process.startsecs > 0:
        text = "false: a start that fails is not tried again either, where supervisord tries it startretries times"
        notes.append(Note(CHANGED, ("autorestart",), text))
    if "startretries" in process.given:
        text = (
            f"{process.startretries}: one end more than {retries} within {spec['restart']['window']:g} s is FATAL; "
            "ends after a good start count too where they come that fast"
        )
        notes.append(Note(CHANGED, ("startretries",), text, "`restart`: max_restarts and window"))


def window(retries: int, startsecs: int) -> float:
    """Seconds in which that many starts fail, waits between them at their longest; more than these is no crash loop.

    So that a program that does not start is given up after as many tries as supervisord gives it, and one that ran
    in between is restarted for ever, as there.
    """
    ceiling = Restart().ceiling
    waits = sum(min(ceiling, BASE * 2**step) for step in range(min(retries, 10) - 1)) + max(0, retries - 10) * ceiling
    return float(min(_LONGEST_WINDOW, max(1.0, waits + (retries + 1) * max(1, min(startsecs, _LONGEST_WINDOW)))))


def _stops(process: Process, spec: dict[str, Any], notes: list[Note]) -> None:
    celery = spec["kind"] == "celery"
    signal = process.stopsignal
    if signal not in SIGNALS:
        cure = f"a stop plan knows {', '.join(SIGNALS)}"
        notes.append(Note(Verdict.UNSUPPORTED, ("stopsignal",), f"{signal}: TERM is sent instead", cure))
        signal = "TERM"
    patience = max(0, min(process.stopwaitsecs, _MOST_PATIENCE))
    if patience != process.stopwaitsecs:
        notes.append(Note(CHANGED, ("stopwaitsecs",), f"{process.stopwaitsecs} s is {patience} s here"))
    if celery and not {"stopsignal", "stopwaitsecs"} & process.given:
        text = "stopwaitsecs is not given, 10 s: a worker has 60 s for its tasks here, and 10 s more after QUIT"
        notes.append(Note(CHANGED, (), text, "`stop` where its tasks take longer"))
    elif celery or (signal, patience) != ("TERM", 10):
        spec["stop"] = [{"signal": signal, "patience": float(patience)}]
    if "stopasgroup" in process.given:
        text = (
            "true: the signal goes to the main process alone, and what is left when it has ended is killed"
            if process.stopasgroup
            else "false: as it always is here"
        )
        notes.append(Note(CHANGED if process.stopasgroup else DROPPED, ("stopasgroup",), text))
    if "killasgroup" in process.given:
        text = "the whole tree is killed always" + ("" if process.killasgroup else ", not the main process alone")
        notes.append(Note(DROPPED if process.killasgroup else CHANGED, ("killasgroup",), text))


def _complete(notes: Iterable[Note], given: frozenset[str]) -> tuple[Note, ...]:
    """With a note for every key that has none yet."""
    told = list(notes)
    named = {key for note in told for key in note.keys}
    told += [Note(CARRIED, (key,)) for key in KEYS if key in given - named]
    return (*told, *unknown(given, KEYS))


def unknown(given: Iterable[str], known: Iterable[str]) -> list[Note]:
    """Notes about keys that supervisord ignores without a word."""
    names = tuple(known)
    notes = []
    for key in sorted(set(given) - set(names)):
        notes.append(Note(DROPPED, (key,), "supervisord does not know it either"))
        if close := difflib.get_close_matches(key, names, 1, 0.8):
            notes.append(Note(Verdict.LINT, (key,), f"is ignored; {close[0]} may be meant"))
    return notes
