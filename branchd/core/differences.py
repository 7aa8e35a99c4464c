"""What changes between two definitions: which of them, and field by field. No secret is ever shown.

Where the definitions come from, and who applies the changes, is branch/files.py's (definitions in files) and
cli/applying.py's (`branchctl apply`). Pure.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from branchd.core.merge import hide
from branchd.core.value import Value

Raw = Mapping[str, Any]


class Thing(StrEnum):
    APP = "app"
    QUEUE = "queue"
    INSTANCE = "instance"


class Action(StrEnum):
    CREATE = "create"
    CHANGE = "change"
    TAKE = "take over"  #: it was made otherwise, and is a file's from now on
    DELETE = "delete"
    RELEASE = "release"  #: it stays, and is no file's any more
    RESTART = "restart"  #: its process runs with something else than its definition says


class FieldChange(Value):
    field: str  #: such as "env.STAGE"
    before: Any  #: JSON value; None: it was not there
    after: Any  #: None: it goes


class Item(Value):
    """What is to be done with one app, queue or instance."""

    thing: Thing
    app: str
    name: str  #: of the queue or the instance; empty for the app itself
    action: Action
    fields: tuple[FieldChange, ...] = ()
    restart: bool = False  #: its process is restarted, so that all of it takes effect
    detail: str = ""  #: in words, beside the fields

    @property
    def label(self) -> str:
        match self.thing:
            case Thing.APP:
                return f"app {self.app}"
            case Thing.QUEUE:
                return f"queue {self.name} of {self.app}"
            case Thing.INSTANCE:
                return f"{self.app}:{self.name}"


def field_changes(before: Raw, after: Raw) -> tuple[FieldChange, ...]:
    """Of two specs, or of two declarations: sorted by field; a secret that differs is `<hidden>` before and after."""
    shown, to_be = hide(before), hide(after)
    return tuple(
        FieldChange(path, _at(shown, parts), _at(to_be, parts))
        for path, parts in sorted((".".join(parts), parts) for parts in _paths(before, after))
    )


def _paths(before: Raw, after: Raw, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in {*before, *after}:
        old, new = before.get(name), after.get(name)
        if old == new and type(old) is type(new):
            continue
        if _nested(old) and _nested(new) and isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _paths(old, new, (*above, name))
        else:
            yield (*above, name)


def _nested(value: Any) -> bool:
    """A secret is one value."""
    return isinstance(value, Mapping) and "secret" not in value


def _at(raw: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        raw = raw.get(name) if isinstance(raw, Mapping) else None
    return raw
