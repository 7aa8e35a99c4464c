"""How objects are shown: aligned lines for people, JSON for programs.

On a terminal there are colours and frames; elsewhere lines stay as they are from version to version. Whatever another
person wrote is made harmless first. What the columns of a command are stands beside the command.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from branchd.client.client import Object

FORMATS = ("table", "wide", "json", "jsonl", "name")

#: colour of a state's word
_COLOURS = {
    "RUNNING": "green",
    "STARTING": "cyan",
    "STOPPING": "yellow",
    "BACKOFF": "yellow",
    "FATAL": "red bold",
    "up": "green",
    "draining": "yellow",
    "silent": "red bold",
    "failed": "red bold",
}

#: columns of a terminal that a table's last column has at least
_LAST_COLUMN = 20

#: what stands where there is nothing
_NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    text: Callable[[Object], Any]
    wide: bool = False  #: only in the wide table


def neutral(text: str, keep: str = "") -> str:
    """Without control characters and what else could move, hide or recolour text: those are shown by their number."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escape(one) for one in text)


def _escape(one: str) -> str:
    return f"\\x{ord(one):02x}" if ord(one) < 0x100 else f"\\u{ord(one):04x}"


def show(form: str, document: Object, columns: Sequence[Column], name: Callable[[Object], str]) -> None:
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
    if not rows:
        return
    if sys.stdout.isatty():
        _terminal_table(titles, rows)
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in [titles, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _terminal_table(titles: list[str], rows: list[list[str]]) -> None:
    # start-up time: these take 40 ms to import, which a pipe need not pay
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles[:-1]:
        table.add_column(title, no_wrap=True)
    table.add_column(titles[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    # Names and numbers are never cut: a terminal that is too narrow wraps the line, and only the last column folds.
    least = sum(max(map(len, column)) + 3 for column in zip(titles[:-1], *(row[:-1] for row in rows), strict=True))
    Console(width=max(Console().width, least + _LAST_COLUMN)).print(table)
