"""Merging of JSON values: RFC 7396, which is both how a PATCH changes a spec and how an instance overrides its app.

One algorithm for both, so that "null = inherit" means the same everywhere: what a patch sets to null is gone from the
instance's own spec, and then the app's value shows through.
"""

from collections.abc import Mapping
from typing import Any

Json = Any

#: What a secret is shown as. Written back, it stands for the secret that is already stored.
HIDDEN = "<hidden>"


def merge(target: Json, patch: Json) -> Json:
    """RFC 7396, section 2. Neither argument is changed; lists are replaced whole."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def hide(raw: Mapping[str, Json]) -> dict[str, Json]:
    """The spec with its secrets hidden: the URLs of broker and hooks, and {"secret": ...} values in env."""
    shown = dict(raw)
    if shown.get("broker"):
        shown["broker"] = HIDDEN
    if isinstance(shown.get("env"), Mapping):
        shown["env"] = {
            name: {"secret": HIDDEN} if isinstance(value, Mapping) else value for name, value in shown["env"].items()
        }
    if isinstance(shown.get("hooks"), Mapping):
        shown["hooks"] = {
            name: {**hook, "url": HIDDEN} if isinstance(hook, Mapping) and hook.get("url") else hook
            for name, hook in shown["hooks"].items()
        }
    return shown


def reveal(given: Mapping[str, Json], stored: Mapping[str, Json]) -> dict[str, Json]:
    """Puts the stored secrets where `given` has HIDDEN, so that what was read can be written back.

    Without a stored one HIDDEN stays, and core.spec.faults complains of it.
    """
    whole = dict(given)
    if whole.get("broker") == HIDDEN and "broker" in stored:
        whole["broker"] = stored["broker"]
    env, old = whole.get("env"), stored.get("env", {})
    if isinstance(env, Mapping):
        whole["env"] = {
            name: old[name] if value == {"secret": HIDDEN} and name in old else value for name, value in env.items()
        }
    hooks, old = whole.get("hooks"), stored.get("hooks", {})
    if isinstance(hooks, Mapping):
        whole["hooks"] = {
            name: {**hook, "url": url}
            if isinstance(hook, Mapping) and hook.get("url") == HIDDEN and (url := old.get(name, {}).get("url"))
            else hook
            for name, hook in hooks.items()
        }
    return whole


def tells_secret(pointer: str) -> bool:
    """Whether a fault at this place of a spec may hold a secret; also where one was written in a wrong shape."""
    match pointer.split("/")[1:]:
        case ["env" | "broker", *_] | ["hooks"] | ["hooks", _] | ["hooks", _, "url"]:
            return True
        case _:
            return False
