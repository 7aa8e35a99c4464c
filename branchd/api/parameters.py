"""Query parameters: declared once, read with every fault at once, and shown in the OpenAPI document.

A form tells how a text becomes a value, and the JSON schema of the text. What a parameter means stands at its route.
"""

import re
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar
from urllib.parse import unquote_plus

from multidict import MultiMapping

from branchd.core.errors import Fault, Invalid
from branchd.core.value import Value

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h)?", re.ASCII)
#: seconds since 1970; later no year has four digits
_LATEST = 253_402_300_799

_UNITS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class Unfit(ValueError):
    """The text is not of the form."""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class Form(Value, Generic[T]):
    parse: Callable[[str], T]  #: Unfit says what is wrong
    schema: Mapping[str, Any]


class Parameter(Value, Generic[T], eq=False):
    """`T` is what a handler gets: of a repeatable one the tuple of all."""

    name: str
    form: Form[Any]
    default: T
    about: str
    repeatable: bool = False


def whole(least: int, most: int) -> Form[int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= 19 and least <= int(text) <= most):
            raise Unfit(f"{text[:40]!r} is not a number in range", f"{least} to {most}")
        return int(text)

    return Form(parse, {"type": "integer", "minimum": least, "maximum": most})


def one_of(values: type[E]) -> Form[E]:
    names = [value.value for value in values]

    def parse(text: str) -> E:
        if text not in names:
            raise Unfit(f"{text[:40]!r} is not known", "one of " + ", ".join(names))
        return values(text)

    return Form(parse, {"type": "string", "enum": names})


def text(longest: int, pattern: str = "", hint: str = "") -> Form[str]:
    """Printable text, and where a pattern is given all of it matches."""

    def parse(given: str) -> str:
        if not given or len(given) > longest or not given.isprintable():
            raise Unfit(f"{given[:40]!r} is not valid", hint or f"1 to {longest} printable characters")
        if pattern and not re.fullmatch(pattern, given):
            raise Unfit(f"{given[:40]!r} is not valid", hint)
        return given

    schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": longest}
    return Form(parse, schema | ({"pattern": f"^{pattern}$"} if pattern else {}))


def duration(most: float) -> Form[float]:
    """Seconds, or with a unit, such as "30s"."""

    def parse(given: str) -> float:
        match = _DURATION.fullmatch(given)
        if match is None or (seconds := float(match[1]) * _UNITS[match[2]]) > most:
            raise Unfit(f"{given[:40]!r} is not a duration", f'seconds, or such as "30s" or "2m"; at most {most:g}s')
        return seconds

    return Form(parse, {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,3})?(ms|s|m|h)?$", "examples": ["30s"]})


def moment() -> Form[float]:
    """A time as RFC 3339 tells it, or how long ago, such as "15m"; seconds since 1970."""

    def parse(given: str) -> float:
        match = _DURATION.fullmatch(given)
        if match is not None:
            return max(time.time() - float(match[1]) * _UNITS[match[2]], 0)
        try:
            if not _MOMENT.fullmatch(given):
                raise ValueError
            return min(max(datetime.fromisoformat(given.upper()).timestamp(), 0), _LATEST)
        except (ValueError, OverflowError):
            hint = 'such as "2026-01-31T23:59:59Z" or, for 15 minutes ago, "15m"'
            raise Unfit(f"{given[:40]!r} is not a time", hint) from None

    return Form(parse, {"type": "string", "examples": ["15m", "2026-01-31T23:59:59Z"]})


def _flag(given: str) -> bool:
    if given not in {"0", "1", "true", "false"}:
        raise Unfit(f"{given[:40]!r} is not a yes or no", "1 or 0")
    return given in {"1", "true"}


#: `?follow` alone means yes; `?follow=` means nothing
FLAG: Form[bool] = Form(_flag, {"type": "string", "enum": ["0", "1", "true", "false"]})


def bare(query: str) -> frozenset[str]:
    """The names in a query that have no value, not even an empty one."""
    return frozenset(unquote_plus(part) for part in query.split("&") if "=" not in part)


def read(
    parameters: Mapping[str, Parameter[Any]], query: MultiMapping[str], alone: Collection[str] = ()
) -> dict[str, Any]:
    """Each parameter's value. Invalid with every fault: unknown names, bad values, what stands twice.

    `alone`: the names that have no value, of which the query cannot tell them from those with an empty one.
    """
    faults: list[Fault] = []
    values = {name: parameter.default for name, parameter in parameters.items()}
    for name in dict.fromkeys(query):
        given = query.getall(name)
        pointer = f"?{name[:80]}"
        if name not in parameters:
            faults.append(Fault(pointer, "unknown query parameter", "one of " + ", ".join(sorted(parameters))))
            continue
        parameter = parameters[name]
        if parameter.form is FLAG and name in alone:
            given = [one or "1" for one in given]
        if len(given) > 1 and not parameter.repeatable:
            faults.append(Fault(pointer, "stands twice"))
            continue
        try:
            parsed = tuple(parameter.form.parse(one) for one in given)
        except Unfit as error:
            faults.append(Fault(pointer, error.detail, error.hint))
        else:
            values[name] = parsed if parameter.repeatable else parsed[0]
    if faults:
        raise Invalid(faults, f"{len(faults)} query {'parameter is' if len(faults) == 1 else 'parameters are'} invalid")
    return values
