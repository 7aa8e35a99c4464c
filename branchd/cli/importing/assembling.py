"""A whole supervisord configuration as definitions of apps, with what became of every key of every section."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from branchd.cli.importing import lints, sections
from branchd.cli.importing.celery_command import call
from branchd.cli.importing.machine import Machine
from branchd.cli.importing.notes import Entry, Imported, Note, Verdict, once
from branchd.cli.importing.order import priorities
from branchd.cli.importing.reading import Configuration, read
from branchd.cli.importing.supervisord import Parsed, Process, parse
from branchd.cli.importing.translate import Translated, translate, unknown
from branchd.core.errors import Invalid
from branchd.core.faults import name_fault
from branchd.wire.spec import effective

#: field of a spec -> the key that it comes from, where they differ
_KEYS = {"env": "environment", "stop": "stopwaitsecs", "ready": "startsecs", "restart": "startretries",
         "application": "command", "python": "command", "arguments": "command", "queues": "command",
         "concurrency": "command", "autoscale": "command", "broker": "command"}  # fmt: skip

#: what no key says
_INHERITED = (
    Note(Verdict.CHANGED, (), "programs get nothing of the daemon's environment: PATH is a login's, HOME, USER and "
         "LOGNAME are the account's, LANG is C.UTF-8, and there is no SUPERVISOR_... variable",
         "give what they need in `env` or `env_file`"),
    Note(Verdict.CHANGED, (), "a program that ended is restarted at once, and then after waits of random length that "
         "double up to a minute; supervisord waits a second more each time", "`restart`: floor and ceiling"),
)  # fmt: skip
_NO_DIRECTORY = Note(Verdict.CHANGED, (), "programs without a directory run in /, not where supervisord was started",
                     "`directory`")  # fmt: skip
_NO_USER = Note(Verdict.CHANGED, (), "programs without a user run as [auth] default_user, else as branchd's own, not "
                "as supervisord's", "`user`")  # fmt: skip


def of_supervisord(
    path: Path, host: str, variables: Mapping[str, str], machine: Machine, keep_commands: bool
) -> Imported:
    """Unreadable. `host` and `variables` are what %(host_node_name)s and %(ENV_...)s mean."""
    configuration = read(path, host, variables)
    parsed = parse(configuration, host, variables)
    numbers = priorities(parsed.processes)
    notes: dict[str, list[Note]] = {}
    made: dict[str, list[tuple[Process, Translated]]] = {}
    for process in parsed.processes:
        number = numbers[process.group, process.name]
        found = translate(process, number, parsed.daemon, machine, keep_commands)
        told = notes.setdefault(process.section, [])
        told += found.notes
        if found.spec:
            told += [*_faults(process, found.spec), *lints.program(process, found.words, found.spec, machine)]
            made.setdefault(process.section, []).append((process, found))
    for section, several in made.items():
        notes[section] += lints.same_port([process for process, _ in several])
    _node_names(made, notes)
    wrong = {section for section, told in notes.items() if any(note.verdict is Verdict.INVALID for note in told)}
    good = [pair for section, several in made.items() if section not in wrong | set(parsed.faults) for pair in several]
    instances: dict[str, dict[str, dict[str, Any]]] = {}
    for process, found in good:
        instances.setdefault(process.group, {})[process.name] = found.spec
    up = [(numbers[one.group, one.name], one.group, one.name) for one, found in good if found.spec["wanted"] == "up"]
    return Imported(
        apps={app: lifted(specs) for app, specs in instances.items()},
        entries=tuple(_entries(path, configuration, parsed, notes, good)),
        started=tuple(f"{group}:{name}" for _, group, name in sorted(up)),
    )


def lifted(instances: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An app of these: what all of them say stands in its own spec, but for `queues`, which there are declarations."""
    first, *others = instances.values()
    kept = {"wanted", "queues"}
    shared = {
        field: value
        for field, value in first.items()
        if others and field not in kept and all(field in one and one[field] == value for one in others)
    }
    own = {name: {k: v for k, v in spec.items() if k not in shared} for name, spec in instances.items()}
    return {**shared, "instances": own, "queues": {}}


def spec_faults(spec: Mapping[str, Any], keys: Mapping[str, str]) -> list[Note]:
    """What branchd would refuse."""
    try:
        effective({}, dict(spec))
    except Invalid as error:
        return [
            Note(Verdict.INVALID, (keys.get(field, field),), f"{fault.pointer}: {fault.detail}", fault.hint)
            for fault in error.faults
            for field in fault.pointer.split("/")[1:2]
        ]
    return []


def _faults(process: Process, spec: Mapping[str, Any]) -> list[Note]:
    found = [
        Note(Verdict.INVALID, keys, fault.detail, fault.hint)
        for name, keys in ((process.group, ()), (process.name, ("process_name",)))
        if (fault := name_fault(name, "", "name here"))
    ]
    return [*found, *spec_faults(spec, _KEYS)]


def _node_names(made: Mapping[str, Sequence[tuple[Process, Translated]]], notes: dict[str, list[Note]]) -> None:
    workers, section_of = [], {}
    for process, found in (pair for several in made.values() for pair in several):
        celery = call(found.words)
        if celery is not None and celery.subcommand == "worker":
            name = f"{process.group}:{process.name}"
            section_of[name] = process.section
            workers.append((name, _node_name(celery.words), found.spec["kind"] == "command"))
    for name, note in lints.node_names(workers):
        notes[section_of[name]].append(note)


def _node_name(words: Sequence[str]) -> str:
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word in {"-n", "--hostname"}:
            return after
        if word.startswith(("--hostname=", "-n")):
            return word.removeprefix("--hostname=").removeprefix("-n")
    return ""


def _entries(
    path: Path,
    configuration: Configuration,
    parsed: Parsed,
    notes: Mapping[str, Iterable[Note]],
    good: Sequence[tuple[Process, Translated]],
) -> Iterable[Entry]:
    if parsed.processes:
        own = [pair for pair in good if "user" not in pair[1].spec]
        lost = [pair for pair in good if "directory" not in pair[1].spec]
        told = (*_INHERITED, *([_NO_DIRECTORY] if lost else []), *([_NO_USER] if own else []))
        yield Entry("what no key says", str(path), (), told)
    for title, section in configuration.sections.items():
        kind = title.partition(":")[0]
        instances = tuple(f"{one.group}:{one.name}" for one, _ in good if one.section == title)
        faults = parsed.faults.get(title, ())
        if kind == "program":
            found = [*faults, *notes.get(title, ())]
            if not found:
                text = "has no processes" if section.get("numprocs", "1") != "1" else "is not in the group's processes"
                found = [Note(Verdict.LINT, ("numprocs",) if "numprocs" in section else (), text)]
            known = (
                ()
                if notes.get(title)
                else tuple(key for key in section if key not in {k for n in found for k in n.keys})
            )
            found += [Note(Verdict.DROPPED, known, "as nothing of this section is carried over")] if known else []
        elif kind == "group":
            instances = tuple(
                f"{one.group}:{one.name}" for one, _ in good if one.group == title.partition(":")[2].strip()
            )
            found = [*faults, *_group(title, section)]
        else:
            found = [*faults, *sections.notes(title, section), *(configuration.notes if kind == "include" else ())]
        yield Entry(f"[{title}]", configuration.files[title], instances, once(found))


def _group(title: str, section: Mapping[str, str]) -> Iterable[Note]:
    if "programs" in section:
        yield Note(Verdict.CARRIED, ("programs",), f"the app {title.partition(':')[2]}")
    if "priority" in section:
        yield Note(Verdict.CARRIED, ("priority",), "in the priority of each of its programs")
    yield from unknown(section, ("programs", "priority"))
