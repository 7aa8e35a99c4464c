"""JSON values to the Values of core and of this room, every fault at once; and back to JSON values.

msgspec does the work, strictly: "1" is not 1, and true is not 1. It stops at the first thing that is wrong. So what it
refuses is walked through here, for faults with pointers and hints; and a value's meaning is checked even where some of
its fields have the wrong type: the wrong ones are left out and the rest is judged.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import replace

from branchd.core.errors import Fault, Invalid
from branchd.core.merge import tells_secret
from branchd.wire import json

T = TypeVar("T")

#: faults reported of one request; what sends more than these is not a person
MOST_FAULTS = 100

#: characters of what is wrong in one place
LONGEST_DETAIL = 400

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def decode(kind: type[T], value: Any, judge: Callable[[T], list[Fault]] = lambda _: []) -> T:
    """The Value, or Invalid with every fault: of types, of unknown fields, and what `judge` finds in the rest."""
    try:
        decoded = _convert(value, kind)
    except msgspec.ValidationError as error:
        found = list(islice(_faults(kind, value, ()), MOST_FAULTS)) or [((), (str(error), ""))]
        faults = [Fault(_pointer(path), *words) for path, words in found]
        if isinstance(value, Mapping):
            wrong = {path[0] for path, _ in found if path}
            try:
                rest = _convert({name: item for name, item in value.items() if name not in wrong}, kind)
            except msgspec.ValidationError:
                pass  # required fields are missing: there is no rest to judge
            else:
                faults += _cut(judge(rest))
        raise Invalid(faults[:MOST_FAULTS]) from None
    if faults := judge(decoded):
        raise Invalid(_cut(faults)[:MOST_FAULTS])
    return decoded


def encode(value: Any) -> Any:
    """The Value as plain JSON values."""
    return msgspec.to_builtins(value, str_keys=True, enc_hook=json.plain)


def _convert(value: Any, kind: type[T]) -> T:
    return msgspec.convert(value, kind, dec_hook=_read)


def _read(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{value!r} is not a {kind.__name__}")


def _faults(kind: Any, value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[str, str]]]:
    """The places in a value that are not of their kind, each with what is wrong there and a hint."""
    choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    match value:
        case dict():
            for choice in choices:
                if isinstance(choice, type) and issubclass(choice, msgspec.Struct):
                    yield from _faults_of_fields(choice, value, path)
                    return
                if isinstance(get_origin(choice), type) and issubclass(get_origin(choice), Mapping):
                    for name, item in value.items():
                        yield from _faults(get_args(choice)[1], item, (*path, name))
                    return
        case list() | tuple():
            for choice in choices:
                if get_origin(choice) in (tuple, list):
                    for index, item in enumerate(value):
                        yield from _faults(get_args(choice)[0], item, (*path, str(index)))
                    return
    try:
        _convert(value, kind)
    except msgspec.ValidationError:
        yield path, _misfit(choices, value, "it" if tells_secret(_pointer(path)) else _short(value))


def _faults_of_fields(
    kind: type[msgspec.Struct], value: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, str]]]:
    hints = get_type_hints(kind)
    fields = msgspec.structs.fields(kind)
    names = [field.name for field in fields]
    for name, item in value.items():
        if name in names:
            yield from _faults(hints[name], item, (*path, name))
        else:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]}?" if close else "see /v1/openapi.json for the fields"
            yield (*path, name), ("unknown field", hint)
    for field in fields:
        if field.required and field.name not in value:
            yield (*path, field.name), ("this field is required", "")


def _misfit(choices: tuple[Any, ...], value: Any, shown: str) -> tuple[str, str]:
    """What is wrong with a value that is of none of these kinds, and a hint. `shown`: the value, or that it is none."""
    choices = tuple(choice for choice in choices if choice is not NoneType)
    words = _either(list(dict.fromkeys(map(_words, choices))))
    if isinstance(value, str) and all(map(_items, choices)):
        return f"{shown} is not known", f"one of {words}"
    return f"{shown} is not {words}", ""


def _items(choice: Any) -> list[str]:
    """The texts that a kind consists of, if it does."""
    if get_origin(choice) is Literal:
        return [item for item in get_args(choice) if isinstance(item, str)]
    return [str(item.value) for item in choice] if isinstance(choice, type) and issubclass(choice, Enum) else []


def _words(choice: Any) -> str:
    if items := _items(choice):
        return _either(list(map(_short, items)))
    if choice in _WORDS:
        return _WORDS[choice]
    return "a list" if get_origin(choice) in (tuple, list) else "an object"


def _either(items: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def _pointer(path: tuple[str, ...]) -> str:
    """As RFC 6901 writes it."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def _short(value: Any) -> str:
    """As JSON, whose words its sender knows."""
    try:
        text = json.dumps(value).decode()
    except ValueError:  # half of a surrogate pair, as in an environment that is not UTF-8
        text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _cut(faults: list[Fault]) -> list[Fault]:
    """Whoever sent a long text needs not read all of it again."""
    return [
        fault if len(fault.detail) <= LONGEST_DETAIL else replace(fault, detail=fault.detail[:LONGEST_DETAIL] + "...")
        for fault in faults
    ]
