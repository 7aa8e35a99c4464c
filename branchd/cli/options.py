"""Options that several commands of branchctl have, and the texts that they take."""

import re
from collections.abc import Callable
from typing import Any

import click

from branchd.cli.output import FORMATS
from branchd.cli.selectors import Pattern, Selection

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)?", re.ASCII)
_UNITS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

STATES = ("STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING", "EXITED", "FATAL")

Command = Callable[..., Any]


class Duration(click.ParamType):
    """Seconds as a number, from such as 90, 1.5s, 2m, 1h or 30d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90, 30s or 2m", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


class Pair(click.ParamType):
    """NAME=VALUE."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, separator, content = value.partition("=")
        if not separator or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, content


class Labels(click.ParamType):
    """NAME=VALUE[,NAME=VALUE]..."""

    name = "labels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(Pair().convert(part, param, ctx) for part in value.split(","))


class Range(click.ParamType):
    """MIN,MAX."""

    name = "min,max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,9}),(\d{1,9})", value, re.ASCII) if isinstance(value, str) else None
        if match is None:
            self.fail(f"{value!r} is not MIN,MAX such as 1,4", param, ctx)
        return int(match[1]), int(match[2])


def output(command: Command) -> Command:
    return click.option(
        "-o", "--output", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How to show it."
    )(command)


def waiting(default: bool = True) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        command = click.option(
            "--timeout", type=Duration(), default="60s", show_default=True, help="How long to wait at most."
        )(command)
        return click.option(
            "--wait/--no-wait", default=default, show_default=True, help="Whether to return only when it is done."
        )(command)

    return decorate


def selecting(required: bool) -> Callable[[Command], Command]:
    """Gives the command `selection`. Required: it must be said which are meant, for all of them --all."""

    def decorate(command: Command) -> Command:
        def selected(
            selectors: tuple[str, ...], labels: tuple[Any, ...], states: tuple[str, ...], everything: bool, **rest: Any
        ) -> Any:
            given = bool(selectors or labels or states)
            if everything and selectors:
                raise click.UsageError("--all and a SELECTOR exclude each other")
            if required and not given and not everything:
                raise click.UsageError("say which instances: a SELECTOR such as shop:mail-1, -l, --state or --all")
            wanted = tuple(pair for group in labels for pair in group)
            return command(selection=Selection(patterns(selectors), wanted, frozenset(states)), **rest)

        selected.__doc__, selected.__name__ = command.__doc__, command.__name__
        selected.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        wrapped: Command = selected
        for option in (
            click.option("--all", "everything", is_flag=True, help="All instances."),
            click.option("--state", "states", multiple=True, type=click.Choice(STATES, case_sensitive=False),
                         help="Those in this state; may be repeated."),
            click.option("-l", "--label", "labels", multiple=True, type=Labels(), help="Those with this NAME=VALUE."),
            click.argument("selectors", nargs=-1, metavar="[SELECTOR]..."),
        ):  # fmt: skip
            wrapped = option(wrapped)
        return wrapped

    return decorate


def patterns(texts: tuple[str, ...]) -> tuple[Pattern, ...]:
    try:
        return tuple(Pattern.parse(text) for text in texts)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
