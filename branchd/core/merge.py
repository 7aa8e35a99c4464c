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
    """The spec with its secrets hidden: the broker's URL, and {"secret": ...} values in env."""
    shown = dict(raw)
    if shown.get("broker"):
        shown["broker"] = HIDDEN
    if isinstance(shown.get("env"), Mapping):
        shown["env"] = {
            name: {"secret": HIDDEN} if isinstance(value, Mapping) else value for name, value in shown["env"].items()
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
    return whole
