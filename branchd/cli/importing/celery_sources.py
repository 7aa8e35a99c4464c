"""Where `celery multi` command lines come from: one that is given, a file of them, or the settings of Celery's init
scripts and units, /etc/default/celeryd, which stand for a line. What a line means stands in celery_lines.py.

Settings are lines of a shell that is not run: plain assignments, with the variables of lines before and of the caller.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import field

from branchd.cli.importing.notes import Note, Verdict
from branchd.cli.importing.reading import Unreadable
from branchd.core.value import Value

_ASSIGNMENT = re.compile(r"(?P<export>export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")

#: of the script: who the workers are, and what starts them
_KNOWN = ("CELERY_BIN", "CELERY_APP", "CELERYD_NODES", "CELERYD_OPTS", "CELERYD_CHDIR", "CELERYD_USER",
          "CELERYD_GROUP", "CELERYD_LOG_LEVEL")  # fmt: skip
_GONE = ("CELERYD_PID_FILE", "CELERYD_LOG_FILE", "CELERYD_MULTI", "CELERY_CREATE_DIRS", "CELERY_CREATE_RUNDIR",
         "CELERY_CREATE_LOGDIR", "CELERYD_SU", "CELERYD_SU_ARGS", "CELERYD_PID_DIR", "CELERYD_LOG_DIR")  # fmt: skip


class Line(Value):
    """A command line, and what is told of its workers elsewhere."""

    title: str
    file: str
    words: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)  #: fields that the line's own options beat
    notes: tuple[Note, ...] = ()


def lines(text: str, variables: Mapping[str, str]) -> list[Line]:
    """Of one command line, or of @FILE: one with such lines, or settings for Celery's init script. Unreadable."""
    if not text.startswith("@"):
        return [_line(text, "--celery-multi")]
    path = text[1:]
    try:
        content = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from None
    content = content.replace("\\\n", " ")
    if re.search(r"^\s*(export\s+)?(CELERYD?_[A-Z_]+)=", content, re.MULTILINE):
        return [_of_settings(content, path, variables)]
    found = [_line(one, path) for one in content.splitlines() if one.strip() and not one.strip().startswith("#")]
    if not found:
        raise Unreadable(f"{path} has no lines of celery multi")
    return found


def _line(text: str, file: str) -> Line:
    try:
        return Line(text.strip(), file, tuple(shlex.split(text, comments=True)))
    except ValueError as error:
        raise Unreadable(f"{text.strip()[:80]}: {str(error).lower()}") from None


def _of_settings(content: str, path: str, variables: Mapping[str, str]) -> Line:
    """Unreadable where a line is no assignment, or needs a shell."""
    found: dict[str, str] = {}
    exported: dict[str, str] = {}
    for number, text in enumerate(content.splitlines(), 1):
        if not text.strip() or text.strip().startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(text.strip())
        if match is None or "$(" in text or "`" in text:
            raise Unreadable(f"{path}:{number} is no plain assignment, and nothing is executed")
        value = _value(match["value"], f"{path}:{number}", {**variables, **found})
        found[match["name"]] = value
        if match["export"]:
            exported[match["name"]] = value
    spec = {field: found[name] for field, name in (("directory", "CELERYD_CHDIR"), ("user", "CELERYD_USER"),
                                                  ("group", "CELERYD_GROUP")) if found.get(name)}  # fmt: skip
    words = [found.get("CELERY_BIN") or "celery"]
    words += ["-A", found["CELERY_APP"]] if found.get("CELERY_APP") else []
    words += ["multi", "start", *_split(found.get("CELERYD_NODES") or "celery", path)]
    words += [f"--loglevel={found['CELERYD_LOG_LEVEL']}"] if found.get("CELERYD_LOG_LEVEL") else []
    words += _split(found.get("CELERYD_OPTS", ""), path)
    env = {name: value for name, value in exported.items() if name not in (*_KNOWN, *_GONE)}
    return Line(path, path, tuple(words), env, spec, tuple(_notes(found, env)))


def _value(text: str, where: str, variables: Mapping[str, str]) -> str:
    if not text.startswith("'"):
        names = {one or other for one, other in _VARIABLE.findall(text)}
        for name in sorted(names - set(variables)):
            raise Unreadable(f"{where}: the variable {name} is not set; give it with --env {name}=VALUE")
        text = _VARIABLE.sub(lambda match: variables[match[1] or match[2]], text)
    words = _split(text, where)
    if len(words) > 1:
        raise Unreadable(f"{where}: is no plain assignment, and nothing is executed")
    return words[0] if words else ""


def _split(text: str, where: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise Unreadable(f"{where}: {str(error).lower()}") from None


def _notes(found: Mapping[str, str], env: Mapping[str, str]) -> list[Note]:
    notes = [Note(Verdict.CARRIED, tuple(name for name in _KNOWN if name in found))]
    if env:
        notes.append(Note(Verdict.CARRIED, tuple(env), "in `env`"))
    if gone := tuple(name for name in _GONE if name in found):
        notes.append(Note(Verdict.DROPPED, gone, "branchd has its own files for pids and logs"))
    if beat := tuple(name for name in found if name.startswith("CELERYBEAT_")):
        cure = "branchctl create APP beat -- celery -A APPLICATION beat"
        notes.append(Note(Verdict.LINT, beat, "beat is not imported: it is a program of its own", cure))
    told = {name for note in notes for name in note.keys}
    if rest := tuple(name for name in found if name not in told):
        notes.append(Note(Verdict.DROPPED, rest, "neither exported nor known to Celery's script"))
    return notes
