"""JSON values to dataclasses, every fault at once; and dataclasses to JSON values.

pydantic does the work, over the plain dataclasses of core and of this room. Here stands what is ours: how its errors
become faults with pointers and hints, and that a value's meaning is checked even where some of its fields have the
wrong type: the wrong ones are left out and the rest is judged.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import ErrorDetails, ValidationError, to_jsonable_python

from branchd.core.errors import Fault, Invalid
from branchd.wire import json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

#: No coercion: "1" is not 1, and true is not 1.
_STRICT = {"strict": True, "extra": "forbid"}

#: faults reported of one request; what sends more than these is not a person
MOST_FAULTS = 100


@cache
def adapter(kind: Any) -> "TypeAdapter[Any]":
    """Built on first use and kept: building one costs milliseconds."""
    from pydantic import TypeAdapter  # noqa: PLC0415  # start-up time: branchctl seldom needs it

    _forbid_extra(kind)
    return TypeAdapter(kind)


def _forbid_extra(kind: Any, seen: frozenset[Any] = frozenset()) -> None:
    """Makes pydantic refuse unknown fields in this dataclass and in those that its fields name."""
    if kind in seen:
        return
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        kind.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]  # pydantic's way to configure a plain dataclass
        for item in dataclasses.fields(kind):
            _forbid_extra(item.type, seen | {kind})
    for argument in getattr(kind, "__args__", ()):
        _forbid_extra(argument, seen)


def decode(kind: type[T], value: Any, judge: Callable[[T], list[Fault]] = lambda _: []) -> T:
    """The dataclass, or Invalid with every fault: of types, of unknown fields, and what `judge` finds in the rest."""
    reader: TypeAdapter[T] = adapter(kind)  # type: ignore[arg-type]  # mypy holds a type variable's class unhashable
    try:
        decoded = reader.validate_json(json.dumps(value))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
        faults = _unique([_fault(kind, value, detail) for detail in details])
        if isinstance(value, Mapping):
            wrong = {detail["loc"][0] for detail in details if detail["loc"]}
            try:
                rest = reader.validate_json(json.dumps({k: v for k, v in value.items() if k not in wrong}))
            except ValidationError:
                pass  # required fields are missing: there is no rest to judge
            else:
                faults += judge(rest)
        raise Invalid(faults[:MOST_FAULTS]) from None
    if faults := judge(decoded):
        raise Invalid(faults[:MOST_FAULTS])
    return decoded


def encode(value: Any) -> Any:
    """The dataclass as plain JSON values."""
    return to_jsonable_python(value)


def _unique(faults: list[Fault]) -> list[Fault]:
    """One fault a place: a union reports the same place once for each of its branches."""
    return list({fault.pointer: fault for fault in reversed(faults)}.values())[::-1]


def _fault(kind: type, value: Any, detail: ErrorDetails) -> Fault:
    path = _path(detail, value)
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)
    match detail["type"]:
        case "unexpected_keyword_argument":
            return Fault(pointer, "unknown field", _suggestion(kind, path))
        case "missing" | "missing_argument":
            return Fault(pointer, "this field is required")
        case "enum" | "literal_error":
            expected = str(detail.get("ctx", {}).get("expected", ""))
            return Fault(pointer, f"{_short(detail['input'])} is not known", f"one of {expected}" if expected else "")
        case "dataclass_type" | "dict_type":
            return Fault(pointer, f"{_short(detail['input'])} is not an object")
        case _:
            return Fault(pointer, f"{_short(detail['input'])}: {_lower(detail['msg'])}")


def _path(detail: ErrorDetails, value: Any) -> list[str]:
    """Only what the sender wrote, and the name of what he left out: pydantic also names the branches of a union."""
    path = []
    for part in detail["loc"]:
        inside = part in value if isinstance(value, Mapping) else isinstance(value, list) and isinstance(part, int)
        if inside:
            value = value[part]
            path.append(str(part))
    return [*path, str(detail["loc"][-1])] if detail["type"] in ("missing", "missing_argument") else path


def _suggestion(kind: type, path: list[str]) -> str:
    top = dataclasses.is_dataclass(kind) and len(path) == 1
    names = [item.name for item in dataclasses.fields(kind)] if top else []
    close = difflib.get_close_matches(path[-1], names, 1)
    return f"did you mean {close[0]}?" if close else "see /v1/openapi.json for the fields"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
