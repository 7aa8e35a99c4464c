"""Definitions as TOML for conf.d: `[apps.NAME]` and `[apps.NAME.instances.NAME]`.

Secrets stand in it as they are: it is what a daemon reads.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


def lines(apps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, app in apps.items():
        yield f"[apps.{_key(name)}]"
        yield from _fields({field: value for field, value in app.items() if field not in {"instances", "queues"}})
        yield ""
        for instance, spec in app["instances"].items():
            yield f"[apps.{_key(name)}.instances.{_key(instance)}]"
            yield from _fields(spec)
            yield ""


def _fields(spec: Mapping[str, Any]) -> Iterator[str]:
    for field, value in spec.items():
        yield f"{_key(field)} = {_value(value)}"


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _value(text)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's too, but for DEL, which TOML wants escaped as well
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            inner = ", ".join(f"{_key(name)} = {_value(one)}" for name, one in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case _:
            return str(value)
