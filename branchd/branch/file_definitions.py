"""Definitions as files give them: apps with their queues and instances, and everything that is wrong with them.

Reading files is the cli room's (a `Read` is handed in); what they change here is file_changes.py's.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from branchd.branch.definitions import account_faults, declared
from branchd.branch.world import Policies
from branchd.core.errors import Fault, Invalid
from branchd.core.faults import name_fault
from branchd.core.file_apps import FileApp, FileDefinitions
from branchd.core.merge import tells_secret
from branchd.core.ordering import circle, circle_words, dependencies
from branchd.core.values import Key
from branchd.wire.spec import accept, effective

#: Reads all files, as they are now; never raises.
Read = Callable[[], Awaitable[FileDefinitions]]


def faults(found: FileDefinitions, policies: Policies, own_account: str) -> tuple[Fault, ...]:
    """All faults of all files at once, as the API would find them; pointers name the file and the table.

    `own_account`: the name of the daemon's own account. No value is told where it may be a secret.
    """
    told = (*found.faults, *(fault for app in found.apps.values() for fault in _app(app, policies, own_account)))
    return told or tuple(_circles(found))


def _app(app: FileApp, policies: Policies, own_account: str) -> Iterator[Fault]:
    if fault := name_fault(app.name, app.place(), "app name"):
        yield fault
    spec_is_sound = True
    try:
        accept(dict(app.spec), {})
    except Invalid as invalid:
        spec_is_sound = False
        yield from _placed(invalid, app.place())
    for name, body in app.queues.items():
        try:
            declared(name, body)
        except Invalid as invalid:
            yield from _placed(invalid, app.place("queues", name))
    defaults = {} if policies.default_user is None else {"user": policies.default_user}
    for name, raw in app.instances.items():
        place = app.place("instances", name)
        if fault := name_fault(name, place, "instance name"):
            yield fault
        if "branch" in raw:
            yield Fault(f"{place}.branch", "what a file defines is of this branch", "leave it out")
        own = {key: value for key, value in raw.items() if key != "branch"}
        try:
            accept(own, {})
            if spec_is_sound:
                spec = effective(dict(app.spec), own, defaults)
                if found := account_faults(spec, policies.allow_users, own_account):
                    raise Invalid(found)
        except Invalid as invalid:
            yield from _placed(invalid, place)


def _circles(found: FileDefinitions) -> Iterator[Fault]:
    """The first of what would wait for itself, among definitions that are right otherwise."""
    needed = {
        Key(app.name, name): dependencies(app.name, effective(dict(app.spec), dict(raw)).depends_on)
        for app in found.apps.values()
        for name, raw in app.instances.items()
    }
    for key in needed:
        way = circle(key, lambda one: needed.get(one, ()), lambda app: [one for one in needed if one.app == app])
        if way:
            place = found.apps[key.app].place("instances", key.name)
            yield Fault(f"{place}.depends_on", circle_words(way), "leave one of these out")
            return


def _placed(invalid: Invalid, place: str) -> Iterator[Fault]:
    for fault in invalid.faults:
        detail = "is not valid" if tells_secret(fault.pointer) else fault.detail
        yield Fault(place + dotted(fault.pointer), detail, fault.hint)


def dotted(pointer: str) -> str:
    """A JSON pointer as TOML's people write it: /env/STAGE as .env.STAGE."""
    return "".join("." + part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])


def body(queue: Mapping[str, Any]) -> dict[str, Any]:
    """What a declaration says, without what is as by default: for comparing."""
    defaults: dict[str, Any] = {"exchange": None, "exchange_type": "direct", "routing_key": None, "options": {}}
    return {name: value for name, value in queue.items() if name in defaults and value != defaults[name]}
