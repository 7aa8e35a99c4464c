"""JSON text to values, strictly: RFC 8259 and I-JSON (RFC 7493), so that no two readers see two things.

Duplicate names, NaN and Infinity, lone surrogates and nesting without end are refused with words.
"""

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import msgspec

#: levels of nesting; nothing here needs ten
DEPTH = 64

#: of a whole number; nothing here needs twenty
DIGITS = 100


def loads(text: bytes) -> Any:
    """ValueError says what is wrong, in words fit for the person who sent it."""
    try:
        value = _DECODER.decode(text.decode("utf-8"))
        # Without escapes there are no surrogates in UTF-8, and every level of nesting takes a bracket.
        if b"\\u" in text or text.count(b"[") + text.count(b"{") >= DEPTH:
            _check(value, DEPTH)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeEncodeError as error:
        raise ValueError("a text has half of a surrogate pair") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def loads_quickly(text: bytes) -> Any:
    """As loads(), in a quarter of its time, of what another branchd wrote; of a name that stands twice, the last."""
    try:
        return msgspec.json.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def dumps(value: Any) -> bytes:
    """Of plain values, and of Values as decode.encode() would make them plain. ValueError for half a surrogate."""
    return _ENCODER.encode(value)


def plain(value: Any) -> Any:
    """What msgspec does not write of itself, as what it does."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)[:80]!r} stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text)} digits; at most {DIGITS}")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


def _check(value: Any, depth: int) -> None:
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        value.encode("utf-8", "strict")
    elif isinstance(value, dict):
        for name, member in value.items():
            name.encode("utf-8", "strict")
            _check(member, depth - 1)
    elif isinstance(value, list):
        for member in value:
            _check(member, depth - 1)


_ENCODER = msgspec.json.Encoder(enc_hook=plain)

#: made once: json.loads() makes one for each text
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer, parse_float=_float
)
