"""Definitions in TOML: the tables [apps.NAME], with [apps.NAME.instances.NAME] and [apps.NAME.queues.NAME].

In the daemon's own files they are its own (branch/files.py); `branchctl apply` takes the same tables. Only the shape is
looked at here: what makes a spec wrong stands with the daemon.
"""

import asyncio
import os
import stat
import tomllib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from branchd.cli.sources import has_date
from branchd.core.errors import Fault
from branchd.core.file_apps import FileApp, FileDefinitions

#: beside the main file; only [apps] may stand in them
FOLDER = "conf.d"


def paths(main: Path) -> list[Path]:
    """The main file, and those beside it, in the order of their names, without hidden ones. OSError.

    Not by glob(): to that a folder that may not be read is an empty one, and what it defines would be taken away.
    """
    folder = main.parent / FOLDER
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        names = []
    return [main, *(folder / name for name in sorted(names) if name.endswith(".toml") and not name.startswith("."))]


def reader(main: Path | None) -> Callable[[], Awaitable[FileDefinitions]]:
    """Reads the files as they are when it is called. None: there are none."""

    async def read_again() -> FileDefinitions:
        return FileDefinitions() if main is None else await asyncio.to_thread(read, main)

    return read_again


def read(main: Path) -> FileDefinitions:
    """What the daemon's files define; every fault of reading them is in it."""
    try:
        found = paths(main)
    except OSError as error:
        wrong = Fault(_name(main.parent / FOLDER), f"cannot be read: {error.strerror}")
        return FileDefinitions(faults=(wrong,), files=(_name(main),))
    return gather([(_name(one), *_parse_file(one)) for one in found], f"only [apps] may stand in {FOLDER}", _name(main))


def gather(documents: Iterable[tuple[str, dict[str, Any], list[Fault]]], hint: str, whole: str = "") -> FileDefinitions:
    """What several documents define together, each a name, its tables and the faults of reading it.

    `hint` to those who write other sections; in the document named `whole` they may stand.
    """
    apps: dict[str, FileApp] = {}
    faults: list[Fault] = []
    names = []
    for source, document, wrong in documents:
        names.append(source)
        faults += wrong
        if source != whole:
            faults += [Fault(f"{source}: [{one}]", "is no definition", hint) for one in document if one != "apps"]
        for app in definitions(document.get("apps", {}), source, faults):
            if app.name in apps:
                told = f"is defined in {apps[app.name].source} too"
                faults.append(Fault(app.place(), told, "an app stands in one file, with all its instances and queues"))
            else:
                apps[app.name] = app
    return FileDefinitions(apps, tuple(faults), tuple(names))


def parse(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """The tables of a file; empty where it cannot be read, with the reason."""
    try:
        return parsed(path.read_text("utf-8"), str(path))
    except OSError as error:
        return {}, [Fault(str(path), f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        return {}, [Fault(str(path), f"is not TOML: {error}")]


def _parse_file(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """The same, of one that stays where it is: a pipe or a device would keep the daemon waiting."""
    if (name := _name(path)) != str(path):  # it is told over the API, and stored
        return {}, [Fault(name, "has a name that is not UTF-8", "rename it")]
    with suppress(OSError):  # what is wrong with it, parse() says
        if not stat.S_ISREG(path.stat().st_mode):
            return {}, [Fault(name, "is not a regular file")]
    return parse(path)


def _name(path: Path) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")


def parsed(content: str, source: str) -> tuple[dict[str, Any], list[Fault]]:
    try:
        return tomllib.loads(content), []
    except tomllib.TOMLDecodeError as error:
        return {}, [Fault(source, f"is not TOML: {error}")]
    except RecursionError:
        return {}, [Fault(source, "is nested too deeply")]


def definitions(apps: Any, source: str, faults: list[Fault]) -> Iterator[FileApp]:
    """Of the content of [apps]; faults of its shape are added to the list."""
    if not isinstance(apps, Mapping):
        faults.append(Fault(f"{source}: apps", "is a table of apps", "write [apps.NAME] and its fields below"))
        return
    for name, table in apps.items():
        app = FileApp(name, source, {})
        if not isinstance(table, Mapping):
            faults.append(Fault(app.place(), "is a table", f"write [apps.{name}] and its fields below"))
        elif has_date(table):
            faults.append(Fault(app.place(), "has a date in it", "text stands in quotes"))
        else:
            spec = dict(table)
            instances = spec.pop("instances", {})
            # A list is the field of the spec: what the instances consume from.
            queues = spec.pop("queues") if isinstance(spec.get("queues"), Mapping) else {}
            tables = {"instances": instances, "queues": queues}
            wrong = [
                Fault(app.place(kind, *([one] if one else [])), "is a table", f"write [apps.{name}.{kind}.NAME]")
                for kind, found in tables.items()
                for one in _no_tables(found)
            ]
            faults += wrong
            if not wrong:
                yield FileApp(name, source, spec, instances, queues)


def _no_tables(found: Any) -> list[str]:
    if not isinstance(found, Mapping):
        return [""]
    return [name for name, table in found.items() if not isinstance(table, Mapping)]
