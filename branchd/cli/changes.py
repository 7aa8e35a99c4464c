"""How a difference of definitions is shown to people: what is created, changed and deleted, field by field."""

from collections.abc import Iterable
from typing import Any

from branchd.cli.output import as_json, neutral
from branchd.client import Object

_SIGNS = {"create": "+", "delete": "-", "restart": "!", "release": "-"}

_WORDS = {
    "take over": "becomes the file's",
    "release": "is no file's any more, and stays",
    "restart": "runs with something else than is defined",
}


def lines(items: Iterable[Object]) -> Iterable[str]:
    """`items` in the shape of core/differences.py's Item."""
    for item in items:
        words = [_WORDS.get(item["action"], ""), "restarts" if item["restart"] else "", item["detail"]]
        told = ", ".join(filter(None, words))
        yield neutral(f"{_SIGNS.get(item['action'], '~')} {name(item)}" + (f"  ({told})" if told else ""))
        for one in item["fields"]:
            yield neutral(f"    {one['field']}: {_change(item['action'], one)}")


def name(item: Object) -> str:
    match item["thing"]:
        case "app":
            return f"app {item['app']}"
        case "queue":
            return f"queue {item['name']} of {item['app']}"
        case _:
            return f"{item['app']}:{item['name']}"


def _change(action: str, field: Object) -> str:
    if action == "create":
        return _value(field["after"])
    before = "not set" if field["before"] is None else _value(field["before"])
    after = "not set" if field["after"] is None else _value(field["after"])
    return f"{before}, another one" if before == after else f"{before} -> {after}"


def _value(value: Any) -> str:
    return "<hidden>" if value == {"secret": "<hidden>"} else as_json(value)
