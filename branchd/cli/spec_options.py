"""A spec from a command line: --json, -f, flags for its common fields, and a program after `--`.

Flags beat the JSON field by field. There is none for `broker`: the password in it would stand in the process list.
"""

import difflib
import json
from collections.abc import Callable
from typing import Any, TextIO

import click
from msgspec.structs import fields as fields_of

from branchd.cli.options import Command, bounds, pair
from branchd.client import Object
from branchd.core.spec import Spec

#: the key in a context's `meta` under which the words after `--` are
_PROGRAM = "branchd.program"

#: flags whose value is the field's
_PLAIN = ("kind", "application", "python", "directory", "user", "group", "pool", "concurrency", "autoscale", "wanted")


class ProgramCommand(click.Command):
    """Takes what stands after `--` as a program and its arguments, none of them an option of ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            where = args.index("--")
            ctx.meta[_PROGRAM] = args[where + 1 :]
            args = args[:where]
            if not ctx.meta[_PROGRAM]:
                raise click.UsageError("a program is expected after --", ctx)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- PROGRAM [ARGUMENT]...]"]


def spec_options(command: Command) -> Command:
    """Gives the command the keywords that spec() takes."""
    options: list[Callable[[Command], Command]] = [
        click.option("--json", "text", help="The spec as a JSON object."),
        click.option(
            "-f", "--file", type=click.File("r", encoding="utf-8"), help="A file with it; - is the standard input."
        ),
        click.option(
            "--kind", type=click.Choice(["celery", "command"]), help="What it is; celery unless a program is given."
        ),
        click.option("--application", help="What `celery -A` takes."),
        click.option("--python", help="The interpreter of the application's environment."),
        click.option("--directory", help="The working directory."),
        click.option("--user", help="The user to run as."),
        click.option("--group", help="The group to run as."),
        click.option("--pool", help="Celery's pool: prefork, threads, solo, gevent or eventlet."),
        click.option("--concurrency", type=int, help="Processes or threads of the pool."),
        click.option("--autoscale", type=bounds, metavar="MIN,MAX", help="The pool's bounds."),
        click.option("--queue", "queues", multiple=True, help="A queue to consume from; may be repeated."),
        click.option("--argument", "arguments", multiple=True, help="One more for the worker; may be repeated."),
        click.option(
            "--env",
            multiple=True,
            type=pair,
            metavar="NAME=VALUE",
            help="A variable of its environment; may be repeated.",
        ),
        click.option(
            "--label", "labels", multiple=True, type=pair, metavar="NAME=VALUE", help="A label; may be repeated."
        ),
        click.option("--wanted", type=click.Choice(["up", "down"]), help="Whether it is to run."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _field(text: str) -> str:
    known = [field.name for field in fields_of(Spec)]
    if text not in known:
        close = difflib.get_close_matches(text, known, 1)
        hint = f"did you mean {close[0]}?" if close else "one of " + ", ".join(known)
        raise click.BadParameter(f"{text!r} is not a field of a spec; {hint}")
    return text


def unsetting(command: Command) -> Command:
    return click.option(
        "--unset", multiple=True, type=_field, metavar="FIELD", help="Take a field out; may be repeated."
    )(command)


def spec(
    text: str | None,
    file: TextIO | None,
    env: tuple[tuple[str, str], ...],
    labels: tuple[tuple[str, str], ...],
    **fields: Any,
) -> Object:
    """UsageError where the JSON is none."""
    if text is not None and file is not None:
        raise click.UsageError("--json and -f exclude each other")
    try:
        found = _object(text if text is not None else file.read() if file is not None else "{}")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"-f cannot be read: {error}") from None
    found |= {name: fields[name] for name in _PLAIN if fields[name] is not None}
    found |= {name: list(fields[name]) for name in ("queues", "arguments") if fields[name]}
    for name, given in (("env", env), ("labels", labels)):
        if given:
            found[name] = {**(found.get(name) or {}), **dict(given)}
    if program := click.get_current_context().meta.get(_PROGRAM):
        found |= {"kind": "command", "command": program}
    return found


def _object(text: str) -> Object:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f"a spec is a JSON object, not {text.strip()[:40]}")
    return value
