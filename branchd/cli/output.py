"""How objects are shown: aligned lines for people, JSON for programs.

On a terminal there are colours; the lines are the same everywhere, from version to version. Whatever another person
wrote is made harmless first. What the columns of a command are stands beside the command.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from branchd.core.value import Value

if TYPE_CHECKING:
    from branchd.client import Object

FORMATS = ("table", "wide", "json", "jsonl", "name")

#: how a state's word is shown on a terminal: arguments of click.style
_STYLES: Mapping[str, Mapping[str, Any]] = {
    "RUNNING": {"fg": "green"},
    "STARTING": {"fg": "cyan"},
    "STOPPING": {"fg": "yellow"},
    "BACKOFF": {"fg": "yellow"},
    "FATAL": {"fg": "red", "bold": True},
    "up": {"fg": "green"},
    "draining": {"fg": "yellow"},
    "silent": {"fg": "red", "bold": True},
    "failed": {"fg": "red", "bold": True},
}

#: what stands where there is nothing
_NOTHING = "-"


class Column(Value):
    title: str
    text: "Callable[[Object], Any]"
    wide: bool = False  #: only in the wide table


def neutral(text: str, keep: str = "") -> str:
    """Without control characters and what else could move, hide or recolour text: those are shown by their number."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escape(one) for one in text)


def _escape(one: str) -> str:
    return f"\\x{ord(one):02x}" if ord(one) < 0x100 else f"\\u{ord(one):04x}"


def show(form: str, document: "Object", columns: Sequence[Column], name: "Callable[[Object], str]") -> None:
    """A list as the API gives it ({items, ...}), or one object."""
    items = document.get("items", [document])
    match form:
        case "json":
            click.echo(as_json(document, indent=2))
        case "jsonl":
            for item in items:
                click.echo(as_json(item))
        case "name":
            for item in items:
                click.echo(neutral(name(item)))
        case _:
            chosen = [column for column in columns if form == "wide" or not column.wide]
            _table(
                [column.title for column in chosen], [[_cell(column.text(item)) for column in chosen] for item in items]
            )


def age(moment: str | None) -> str | None:
    """Since then, as 5s, 3m12s, 2h05m or 4d03h."""
    if moment is None:
        return None
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))
    for unit, size, lower, step in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // step:02}{lower}"
    return f"{seconds}s"


def missing(branches: Sequence[str]) -> None:
    """Tells whose part of a list is not there."""
    if branches:
        click.echo(f"not complete, these branches did not answer: {neutral(', '.join(branches))}", err=True)


def incomplete(program: str, error: OSError) -> None:
    """Tells that the output could not be written, such as for a full disk."""
    with suppress(OSError):  # what is still in the buffer has nowhere to go, and must not fail once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    click.echo(f"{program}: {error.strerror or error} (what is shown is not complete)", err=True)


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON in which nothing but line ends is not printable, so that a terminal takes no harm; equal as JSON."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)


def _cell(value: Any) -> str:
    return _NOTHING if value in (None, "") else neutral(str(value))


def _table(titles: list[str], rows: list[list[str]]) -> None:
    """Names and numbers are never cut: a terminal that is too narrow wraps the line. click drops styles elsewhere."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    click.secho(_line(titles, widths), bold=True)
    for row in rows:
        click.echo(_line(row, widths))


def _line(cells: list[str], widths: list[int]) -> str:
    *others, last = zip(cells, widths, strict=True)
    padded = [_styled(cell) + " " * (width - len(cell)) for cell, width in others]
    return "  ".join([*padded, _styled(last[0])]).rstrip()


def _styled(cell: str) -> str:
    return click.style(cell, **_STYLES[cell]) if cell in _STYLES else cell
