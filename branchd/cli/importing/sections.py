"""The sections of a supervisord configuration that are no programs: what each of their keys is here, or why not."""

import re
import shlex
from collections.abc import Iterable, Mapping
from itertools import pairwise

from branchd.cli.importing.notes import Note, Verdict
from branchd.cli.importing.translate import unknown

CARRIED, CHANGED, DROPPED, UNSUPPORTED = Verdict.CARRIED, Verdict.CHANGED, Verdict.DROPPED, Verdict.UNSUPPORTED

_DOOR = "`[http] supervisor_door = true` lets supervisorctl in, and `branchctl token create` makes its password"
_JOURNAL = "the daemon's own log goes to its standard error, systemd's journal; [branch] log_level"

_SUPERVISORD: Mapping[str, tuple[Verdict, str, str]] = {
    "environment": (CARRIED, "in each program's env", ""),
    "user": (CARRIED, "of programs that name none", ""),
    "umask": (CARRIED, "of programs that name none", ""),
    "directory": (CARRIED, "of programs that name none", ""),
    "nodaemon": (DROPPED, "`branchd run` stays in the foreground always", ""),
    "logfile": (DROPPED, _JOURNAL, ""),
    "logfile_maxbytes": (DROPPED, _JOURNAL, ""),
    "logfile_backups": (DROPPED, _JOURNAL, ""),
    "loglevel": (DROPPED, _JOURNAL, ""),
    "silent": (DROPPED, _JOURNAL, ""),
    "pidfile": (DROPPED, "systemd knows the pid", ""),
    "minfds": (DROPPED, "branchd's unit gives each process 65536; limits.open_files asks for another number", ""),
    "minprocs": (DROPPED, "branchd's unit sets no limit", ""),
    "childlogdir": (DROPPED, "[branch] logs is the folder of what programs write", ""),
    "identifier": (DROPPED, "[branch] name", ""),
    "nocleanup": (DROPPED, "no log is ever removed at a start", ""),
    "strip_ansi": (DROPPED, "logs keep the bytes as they were written", ""),
}  # fmt: skip

_SERVER = ("file", "port", "chmod", "chown", "username", "password")
_CONTROL = ("serverurl", "username", "password", "prompt", "history_file")


def notes(title: str, section: Mapping[str, str]) -> list[Note]:
    """For each key of a section that is neither a program nor a group."""
    kind, _, name = title.partition(":")
    match kind:
        case "supervisord":
            return _supervisord(section)
        case "unix_http_server" | "inet_http_server":
            return _server(kind, section)
        case "supervisorctl":
            known = tuple(key for key in _CONTROL if key in section)
            gone = [Note(DROPPED, known, "branchctl finds its daemon by itself, or by --url")] if known else []
            return [*gone, *unknown(section, _CONTROL)]
        case "rpcinterface" if name == "supervisor":
            return [Note(DROPPED, tuple(section), "of branchd's supervisor door: [http] supervisor_door")]
        case "rpcinterface":
            return [Note(UNSUPPORTED, tuple(section), "methods that a plug-in adds to supervisord's XML-RPC",
                         "branchd's own API is HTTP: /v1/openapi.json")]  # fmt: skip
        case "ctlplugin":
            return [Note(DROPPED, tuple(section), "supervisorctl is not what branchd is asked with")]
        case "include":
            return [*([Note(CARRIED, ("files",))] if "files" in section else []), *unknown(section, ("files",))]
        case "eventlistener":
            return _listener(section)
        case "fcgi-program":
            return [Note(UNSUPPORTED, tuple(section), "supervisord opens its socket and hands it on, branchd does not",
                         "let the program open it (php-fpm, uwsgi, daphne -u), or let a systemd.socket do it, and "
                         "import it as a program")]  # fmt: skip
        case _:
            return [Note(DROPPED, tuple(section), "supervisord does not know such a section either")]


def _supervisord(section: Mapping[str, str]) -> list[Note]:
    found = []
    for key, (verdict, text, cure) in _SUPERVISORD.items():
        if key not in section:
            continue
        if key == "directory" and section.get("nodaemon", "").lower() in {"true", "yes", "on", "1"}:
            found.append(Note(DROPPED, (key,), "with nodaemon supervisord does not go there"))
        elif key == "minfds" and section[key].isdigit() and int(section[key][:12]) > 65536:
            found.append(Note(CARRIED, (key,), "limits.open_files of each program"))
        else:
            found.append(Note(verdict, (key,), text, cure))
    return [*found, *unknown(section, _SUPERVISORD)]


def _server(kind: str, section: Mapping[str, str]) -> list[Note]:
    known = tuple(key for key in _SERVER if key in section)
    where = (
        "the daemon's socket RUN/api.sock, open to [auth] socket_group"
        if kind == "unix_http_server"
        else "[http] listen, and a token for whoever asks"
    )
    found = [Note(CHANGED, known, where, _DOOR)] if known else []
    return [*found, *unknown(section, _SERVER)]


def _listener(section: Mapping[str, str]) -> list[Note]:
    """What replaces it: by the tool, where it is a known one, else by the events that it hears."""
    try:
        words = shlex.split(section.get("command", ""))
    except ValueError:
        words = section.get("command", "").split()
    cure = next((cure for word in words[:3] if (cure := _superlance(word.rpartition("/")[2], words))), "")
    return [
        Note(UNSUPPORTED, tuple(section), "there are no event listeners", cure or _by_events(section.get("events", "")))
    ]


def _superlance(tool: str, words: list[str]) -> str:
    match tool:
        case "memmon":
            caps = [
                f"{name} at {size}" for name, _, size in (word.partition("=") for word in _values(words, "-p", "-g"))
            ]
            caps += [f"every program at {size}" for size in _values(words, "-a")]
            return "`max_memory` restarts a program: " + ", ".join(caps or ["set it in the app's spec"])
        case "httpok":
            programs = " and ".join(_values(words, "-p")) or "the program"
            url = next((word for word in words if re.match(r"https?://", word)), "URL")
            return f'`alive` restarts a program: {{"alive": {{"http": "{url}"}}}} for {programs}'
        case "crashmail" | "crashmailbatch" | "crashsms":
            return "`hooks.on_exit` calls a command or a URL when a program ended that was wanted up"
        case "fatalmailbatch":
            return "`hooks.on_fatal` calls a command or a URL when a program is given up"
        case _:
            return ""


def _values(words: Iterable[str], *flags: str) -> list[str]:
    listed = list(words)
    return [after for flag, after in pairwise(listed) if flag in flags]


def _by_events(events: str) -> str:
    found = []
    names = {name.strip().upper() for name in events.split(",")}
    if any(name in {"PROCESS_STATE", "EVENT", "PROCESS_STATE_FATAL"} for name in names):
        found.append("`hooks.on_fatal` of the programs")
    if any(name in {"PROCESS_STATE", "EVENT", "PROCESS_STATE_EXITED", "PROCESS_STATE_BACKOFF"} for name in names):
        found.append("`hooks.on_exit` of the programs")
    if any(name.startswith("TICK") for name in names):
        found.append("`alive` or `ready.probe` of the programs, or a timer of systemd's")
    if any(name.startswith("PROCESS_LOG") for name in names):
        found.append("`branchctl logs --follow`")
    return " · ".join([*found, "`branchctl events --follow -o json` tells a program what happens"])
