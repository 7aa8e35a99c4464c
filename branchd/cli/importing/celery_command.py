"""A command line of Celery: whether it is one, of which interpreter, and what its worker's options are as fields.

An option that no field and no argument can carry leaves the worker what it was: a command, with the reason.
"""

import os.path
import re
from collections.abc import Mapping, Sequence
from typing import Any

from branchd.cli.importing.machine import Machine
from branchd.cli.importing.notes import Note, Verdict
from branchd.cli.importing.values import octal
from branchd.core.spec import Pool
from branchd.core.value import Value
from branchd.drivers.environment import PATH

#: option -> whether a value follows it; "worker" options and those that may stand before the subcommand
_OPTIONS = {
    "--app": True, "--broker": True, "--result-backend": True, "--loader": True, "--config": True, "--workdir": True,
    "--no-color": False, "--quiet": False, "--skip-checks": False, "--hostname": True, "--detach": False,
    "--statedb": True, "--loglevel": True, "--optimization": True, "--prefetch-multiplier": True,
    "--disable-prefetch": False, "--concurrency": True, "--pool": True, "--task-events": False, "--time-limit": True,
    "--soft-time-limit": True, "--max-tasks-per-child": True, "--max-memory-per-child": True,
    "--pool-start-method": True, "--purge": False, "--queues": True, "--exclude-queues": True, "--include": True,
    "--without-gossip": False, "--without-mingle": False, "--without-heartbeat": False, "--heartbeat-interval": True,
    "--autoscale": True, "--beat": False, "--schedule": True, "--scheduler": True, "--logfile": True,
    "--pidfile": True, "--uid": True, "--gid": True, "--umask": True, "--executable": True,
}  # fmt: skip

_ALIASES = {
    "-A": "--app", "-b": "--broker", "-C": "--no-color", "-q": "--quiet", "-n": "--hostname", "-D": "--detach",
    "-S": "--statedb", "-l": "--loglevel", "-O": "--optimization", "-c": "--concurrency", "-P": "--pool",
    "-E": "--task-events", "--events": "--task-events", "--discard": "--purge", "-Q": "--queues",
    "-X": "--exclude-queues", "-I": "--include", "-B": "--beat", "-s": "--schedule",
    "--schedule-filename": "--schedule", "-f": "--logfile", "-p": "--pidfile",
}  # fmt: skip

#: They would change what the worker's other options mean, and branchd has no field for them.
_WITHOUT_FIELD = ("--result-backend", "--loader", "--config", "--statedb", "--exclude-queues")

#: folders of the system's own programs: a celery there belongs to the system's Python
_SYSTEM = frozenset(PATH.split(":"))

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_PYTHON = re.compile(r"(python|pypy)[0-9.]*")


class Call(Value):
    program: str | None  #: celery as it was written; None: as a module of `python`
    python: str | None  #: as it was written
    env: Mapping[str, str]  #: what env(1) adds
    words: tuple[str, ...]  #: after the program

    @property
    def subcommand(self) -> str | None:
        words = iter(self.words)
        for word in words:
            if not word.startswith("-"):
                return word
            if _valued(word):
                next(words, None)
        return None


class Worker(Value):
    spec: Mapping[str, Any]
    env: Mapping[str, str]
    notes: tuple[Note, ...]


class Kept(ValueError):
    """Why the worker stays a command."""


def call(argv: Sequence[str]) -> Call | None:
    """None where it is not a Celery of which that can be told."""
    words, env = list(argv), {}
    if words and os.path.basename(words[0]) == "env":
        words.pop(0)
        while words and _ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            env[name] = value
    if words and os.path.basename(words[0]) == "celery":
        return Call(words[0], None, env, tuple(words[1:]))
    if words and _PYTHON.fullmatch(os.path.basename(words[0])):
        python, rest = words[0], words[1:]
        if rest[:1] == ["-u"]:
            rest = rest[1:]
        if rest[:2] == ["-m", "celery"]:
            return Call(None, python, env, tuple(rest[2:]))
        if rest and os.path.basename(rest[0]) == "celery":
            return Call(rest[0], python, env, tuple(rest[1:]))
    return None


def worker(call: Call, env: Mapping[str, str], machine: Machine) -> Worker:
    """As fields of a spec; Kept where one of its words has none. `env` is the process's, with the call's."""
    options, tail = _options(call.words)
    python, how = _interpreter(call, env.get("PATH", PATH), machine)
    spec: dict[str, Any] = {"kind": "celery", "python": python}
    notes = [how] if how else []
    arguments: list[str] = []
    for name, value in options:
        if name in _WITHOUT_FIELD:
            raise Kept(f"{name} has no field")
        _carry(name, value, spec, arguments, notes)
    if "application" not in spec:
        raise Kept("its application is not named with -A")
    if tail:
        arguments += ["--", *tail]
    if arguments:
        spec["arguments"] = arguments
    return Worker(spec, call.env, tuple(notes))


def _carry(name: str, value: str, spec: dict[str, Any], arguments: list[str], notes: list[Note]) -> None:
    match name:
        case "--app":
            spec["application"] = value
        case "--broker":
            spec["broker"] = value
        case "--workdir":
            spec["directory"] = value
        case "--executable":
            spec["python"] = value
        case "--uid":
            spec["user"] = value
        case "--gid":
            spec["group"] = value
        case "--umask":
            spec["umask"] = f"{octal(value):03o}"
        case "--queues":
            spec["queues"] = [queue.strip() for queue in value.split(",")]
        case "--pool":
            pool = "prefork" if value == "processes" else value
            if pool not in set(Pool):
                raise Kept(f"the pool {value} is none that branchd knows")
            spec["pool"] = pool
        case "--concurrency" if value == "auto":
            notes.append(_changed("-c auto: as many as there are CPUs", "set `concurrency` where a quota allows fewer"))
        case "--concurrency":
            spec["concurrency"] = _number(name, value)
        case "--autoscale":
            most, _, least = value.partition(",")
            spec["autoscale"] = {"min": _number(name, least or "0"), "max": _number(name, most)}
            if spec["autoscale"]["min"] < 1:
                spec["autoscale"]["min"] = 1
                notes.append(_changed("--autoscale: at least 1 process stays"))
        case "--hostname":
            notes.append(_changed("-n: branchd gives each worker a node name of its own, APP:NAME@BRANCH",
                                  "tell what addresses workers by their node names; [branch] node_name"))  # fmt: skip
        case "--loglevel":
            arguments += [] if value.upper() == "INFO" else ["-l", value.upper()]
        case "--logfile":
            notes.append(_changed(f"--logfile {value}: what it writes goes to branchd's logs",
                                  "point what reads the file at `branchctl logs`"))  # fmt: skip
        case "--pidfile":
            notes.append(Note(Verdict.DROPPED, ("command",), f"--pidfile {value}: branchd knows the pid"))
        case "--detach":
            notes.append(Note(Verdict.DROPPED, ("command",), "--detach: a supervised program stays in the foreground"))
        case "--without-gossip" | "--without-mingle" | "--no-color" | "--quiet" | "--skip-checks":
            notes.append(Note(Verdict.DROPPED, ("command",), f"{name}: branchd starts workers so, or it shows nothing"))
        case _:
            arguments += [name, value] if _OPTIONS[name] else [name]


def _changed(text: str, cure: str = "") -> Note:
    return Note(Verdict.CHANGED, ("command",), text, cure)


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        raise Kept(f"{name} {value} is not a number")
    return int(value)


def _valued(word: str) -> bool:
    """Whether the next word is this option's value."""
    return (len(word) == 2 and _OPTIONS.get(_ALIASES.get(word, ""), False)) or _OPTIONS.get(word, False)


def _options(words: Sequence[str]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """The options of `celery ... worker ...` by their long names, and what stands after `--`. Kept."""
    found: list[tuple[str, str]] = []
    rest, seen = list(words), False
    while rest:
        word = rest.pop(0)
        if word == "--":
            return found, tuple(rest)
        if not word.startswith("-") or word == "-":
            if word != "worker" or seen:
                raise Kept(f"{word!r} is not an option of a worker")
            seen = True
            continue
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            letters = ""
        else:
            name, value, letters = word[:2], word[2:], word[2:]
            equals = value
        name = _ALIASES.get(name, name)
        if name not in _OPTIONS:
            raise Kept(f"{word} is not an option that branchd knows")
        if not _OPTIONS[name]:
            found.append((name, ""))
            if letters:  # such as -EB
                rest.insert(0, f"-{letters}")
        elif equals:
            found.append((name, value))
        elif rest:
            found.append((name, rest.pop(0)))
        else:
            raise Kept(f"{word} has no value")
    return found, ()


def _interpreter(call: Call, path: str, machine: Machine) -> tuple[str, Note | None]:
    """Where the Python is that has this Celery; Kept where that cannot be told."""
    program = call.python or call.program or ""
    folders = [folder for folder in path.split(":") if folder.startswith("/") and folder not in _SYSTEM]
    if "/" not in program:
        found = machine.which(program, path)
        if found is None and folders:
            found = f"{folders[0]}/{program}"
        if found is None:
            raise Kept(f"which interpreter has its {program} is not known here; write the whole path of {program}")
        program = found
    if not program.startswith("/"):
        raise Kept(f"{program} is a relative path, and so is its interpreter's")
    if call.python is not None:
        return program, None
    if (lines := machine.script(program)) and (match := re.fullmatch(r"#!\s*(/\S*python[0-9.]*)\s*(-\S+)?", lines[0])):
        python = match[1]
    else:
        folder = os.path.dirname(program)
        python = f"{folder}/{'python3' if folder in _SYSTEM else 'python'}"
    return python, Note(Verdict.CHANGED, ("command",), f"started with {python}, the interpreter of {program}")
