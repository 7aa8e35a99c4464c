"""Options that several commands of branchctl have, and the texts that they take."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from branchd.cli.output import FORMATS
from branchd.cli.selectors import Pattern, Selection

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)?", re.ASCII)
_UNITS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

STATES = ("STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING", "EXITED", "FATAL")

Command = Callable[..., Any]


def duration(text: str) -> float:
    """Seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration such as 90, 30s or 2m")
    return float(match[1]) * _UNITS[match[2]]


def pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value


def pairs(text: str) -> list[tuple[str, str]]:
    return [pair(part) for part in text.split(",")]


def bounds(text: str) -> dict[str, int]:
    match = re.fullmatch(r"(\d{1,9}),(\d{1,9})", text, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{text!r} is not MIN,MAX such as 1,4")
    return {"min": int(match[1]), "max": int(match[2])}


def output(command: Command) -> Command:
    return click.option(
        "-o", "--output", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How to show it."
    )(command)


def waiting(default: bool = True, timeout: str = "60s") -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        command = click.option(
            "--timeout",
            type=duration,
            metavar="TIME",
            default=timeout,
            show_default=True,
            help="How long to wait at most.",
        )(command)
        return click.option(
            "--wait/--no-wait", default=default, show_default=True, help="Whether to return only when it is done."
        )(command)

    return decorate


def selecting(required: bool) -> Callable[[Command], Command]:
    """Gives the command `selection`. Required: it must be said which are meant, for all of them --all."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def selected(
            selectors: tuple[str, ...],
            labels: tuple[list[tuple[str, str]], ...],
            states: tuple[str, ...],
            everything: bool,
            **rest: Any,
        ) -> Any:
            some = bool(selectors or labels or states)
            if everything and selectors:
                raise click.UsageError("--all and a SELECTOR exclude each other")
            if required and not some and not everything:
                raise click.UsageError("say which instances: a SELECTOR such as shop:mail-1, -l, --state or --all")
            wanted = tuple(label for given in labels for label in given)
            return command(selection=Selection(patterns(selectors), wanted, frozenset(states)), **rest)

        wrapped: Command = selected
        for option in (
            click.option("--all", "everything", is_flag=True, help="All instances."),
            click.option("--state", "states", multiple=True, type=click.Choice(STATES, case_sensitive=False),
                         help="Those in this state; may be repeated."),
            click.option("-l", "--label", "labels", multiple=True, type=pairs, metavar="NAME=VALUE",
                         help="Those with this label; may be repeated."),
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
