"""`celery multi` command lines as instances: which nodes there are, and what the options of each are.

Nodes, ranges and the options of some (`-c:1-3 10`) are as celery/apps/multi.py has them; nothing is executed.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from branchd.cli.importing.assembling import lifted, spec_faults
from branchd.cli.importing.celery_command import Call, Kept, call, worker
from branchd.cli.importing.celery_sources import Line
from branchd.cli.importing.machine import Machine
from branchd.cli.importing.notes import Entry, Imported, Note, Verdict, once
from branchd.core.faults import name_fault
from branchd.core.value import Value

#: nodes of one line
MOST_NODES = 1000

_VERBS = frozenset({"start", "restart", "stop", "stopwait", "stop_verify", "kill", "show", "names", "expand", "get"})

#: of celery multi itself, and not of its workers
_OWN = frozenset({"--nosplash", "--quiet", "--verbose", "--no-color", "-q"})
_SIGNAL = re.compile(r"-(SIG)?(TERM|INT|QUIT|KILL|HUP|USR1|USR2|ABRT|9|15)")

#: options that want a value, and whose value celery multi takes for a node's name where there is no `=`
_VALUED = re.compile(r"--(loglevel|logfile|pidfile|concurrency|queues|app|pool|autoscale|workdir|uid|gid|broker)")


class Node(Value):
    name: str  #: without its host
    host: str  #: "" where it is this machine's
    options: Mapping[str, str | None]


def of_celery_multi(given: Sequence[Line], app: str | None, machine: Machine) -> Imported:
    """`app`: what the app is called; else as the Celery application, up to its first dot."""
    instances: dict[str, dict[str, dict[str, Any]]] = {}
    entries = []
    for line in given:
        notes = list(line.notes)
        made: dict[str, tuple[str, dict[str, Any]]] = {}
        try:
            celery, nodes = _nodes(line.words, notes)
            shown = ", ".join(f"{node.name}@{node.host or '%h'}" for node in nodes[:3]) + (", ..." if nodes[3:] else "")
            text = f"each node is called APP:NAME@BRANCH, and no more {shown}"
            notes.append(Note(Verdict.CHANGED, (), text, "tell what addresses workers by their node names"))
            for node in nodes:
                name, spec = _instance(line, celery, node, machine, notes)
                target = app or str(spec["application"]).split(":")[0].split(".")[0]
                if node.name in made or node.name in instances.get(target, {}):
                    notes.append(Note(Verdict.INVALID, (), f"{target}:{node.name} is there twice"))
                made[name] = (target, spec)
                notes += [Note(Verdict.INVALID, (), fault.detail, fault.hint)
                          for one in (target, name) if (fault := name_fault(one, "", "name here"))]  # fmt: skip
                notes += spec_faults(spec, {})
        except ValueError as error:
            notes.append(Note(Verdict.INVALID, (), str(error)))
        good = not any(note.verdict is Verdict.INVALID for note in notes)
        for name, (target, spec) in made.items() if good else ():
            instances.setdefault(target, {})[name] = spec
        names = tuple(f"{target}:{name}" for name, (target, _) in made.items()) if good else ()
        entries.append(Entry(line.title, line.file, names, once(notes)))
    return Imported(
        {name: lifted(specs) for name, specs in instances.items()},
        tuple(entries),
        tuple(f"{target}:{name}" for target, specs in instances.items() for name in specs),
    )


def _nodes(words: Sequence[str], notes: list[Note]) -> tuple[Call, list[Node]]:
    """ValueError where it is no line of celery multi."""
    celery = call(words)
    if celery is None or "multi" not in celery.words:
        raise ValueError("is not a line of celery multi")
    at = celery.words.index("multi")
    before, rest = list(celery.words[:at]), list(celery.words[at + 1 :])
    verb = rest.pop(0) if rest and rest[0] in _VERBS else ""
    if not verb:
        raise ValueError(f"celery multi wants one of {', '.join(sorted(_VERBS))}")
    if verb in {"expand", "get"} and rest:
        rest.pop(0)
    own = tuple(word for word in rest if word in _OWN or _SIGNAL.fullmatch(word))
    if own:
        notes.append(Note(Verdict.DROPPED, own, "of celery multi itself"))
    rest = [word for word in rest if word not in own]
    for word in rest:
        if _VALUED.fullmatch(word):
            text = f"{word} without = : celery multi takes what follows for a node's name, and so does this"
            notes.append(Note(Verdict.LINT, (word,), text, f"{word}=VALUE"))
    return replace(celery, words=tuple(before)), _cluster(rest)


class _Options(Struct):
    all: dict[str, str | None] = field(default_factory=dict)
    of: dict[str, dict[str, str | None]] = field(default_factory=dict)  #: node, number or list of them -> its own
    names: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)

    def add(self, name: str, value: str | None) -> None:
        option, colon, whose = name.partition(":")
        (self.of.setdefault(whose, {}) if colon else self.all)[option] = value


def _cluster(words: Sequence[str]) -> list[Node]:
    options = _Options()
    rest = [word for word in words if word]
    while rest:
        word = rest.pop(0)
        if word == "--":
            options.tail, rest = rest, []
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            options.add(name, value if equals else None)
        elif word.startswith("-"):
            options.add(word, rest.pop(0) if rest and not rest[0].startswith("-") else None)
        else:
            options.names.append(word)
    shared = options.all
    host = shared.pop("--hostname", None) or shared.pop("-n", None) or ""
    suffix = shared.pop("--suffix", None) or host
    prefix = shared.pop("--prefix", None) or ""
    ranged = shared.pop("--range-prefix", None) or "celery"
    names, counted = options.names, len(options.names) == 1 and options.names[0].isdigit()
    if not names:
        raise ValueError("names no nodes")
    if counted:
        if int(names[0][:10]) > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} nodes")
        names, prefix = [str(number) for number in range(1, int(names[0]) + 1)], ranged
    whose = _owners(options.of, names, counted)
    nodes = []
    for name in names:
        short, at, own_host = name.partition("@")
        mine = whose.get(name, {}) | ({} if name == short else whose.get(short, {}))
        found = {**shared, **mine}
        if options.tail:
            found["--"] = shlex.join(options.tail)
        nodes.append(Node(short if at else f"{prefix}{short}", own_host if at else suffix, found))
    return nodes


def _owners(
    of: Mapping[str, dict[str, str | None]], names: Sequence[str], counted: bool
) -> dict[str, dict[str, str | None]]:
    """The options of single nodes: by a name, a number, or a list or range of those."""
    found: dict[str, dict[str, str | None]] = {}
    for text, options in of.items():
        for one in text.split(","):
            bounds = re.fullmatch(r"(\d{1,6})-(\d{1,6})", one) if counted else None
            for name in range(int(bounds[1]), int(bounds[2]) + 1) if bounds else (one,):
                target = str(name)
                if not counted and target.isdigit():
                    if not 1 <= int(target[:10]) <= len(names):
                        raise ValueError(f"there is no node {target}")
                    target = names[int(target) - 1]
                found.setdefault(target, {}).update(options)
    return found


def _instance(line: Line, celery: Call, node: Node, machine: Machine, notes: list[Note]) -> tuple[str, dict[str, Any]]:
    """ValueError where a worker of it cannot be made."""
    words = [*celery.words, "worker"]
    tail: list[str] = []
    for option, value in node.options.items():
        if option == "--":
            tail = ["--", *shlex.split(value or "")]
        elif option in {"--cmd", "--append"}:
            raise ValueError(f"{option}: branchd starts a worker, and nothing else")
        elif option.startswith("--"):
            words.append(option if value is None else f"{option}={value}")
        else:
            words += [option] if value is None else [option, value]
    try:
        made = worker(replace(celery, words=(*words, *tail)), {**line.env, **celery.env}, machine)
    except Kept as why:
        raise ValueError(f"{node.name}: {why}") from None
    notes += [replace(note, keys=()) for note in made.notes]
    spec = {**line.spec, **made.spec}
    if env := {**line.env, **made.env}:
        spec["env"] = env
    if "directory" not in spec and "PYTHONPATH" not in env:
        notes.append(Note(Verdict.LINT, (), f"{spec['application']} is looked for in /, for no --workdir is given",
                          "`directory`, unless it is installed in the interpreter's environment"))  # fmt: skip
    return node.name, {**spec, "wanted": "up"}
