"""Specs as JSON: the object that was given, over its app's, to a Spec, and back."""

from typing import Any

from branchd.core.errors import Fault, Invalid
from branchd.core.merge import hide, merge, reveal
from branchd.core.spec import Spec
from branchd.core.spec_faults import faults, missing, strayed
from branchd.wire.decode import decode, encode

Raw = dict[str, Any]


def accept(given: Any, stored: Raw) -> Raw:
    """What is to be stored of a spec that was written: without nulls, with hidden secrets put back. Invalid."""
    if not isinstance(given, dict):
        raise Invalid([Fault("", f"a spec is an object, not {type(given).__name__}")])
    raw = reveal(merge({}, given), stored)
    decode(Spec, raw, faults)
    return raw


def patched(stored: Raw, patch: Any) -> Raw:
    """The stored spec after an RFC 7396 patch. Invalid."""
    if not isinstance(patch, dict):
        raise Invalid([Fault("", f"a patch is an object, not {type(patch).__name__}")])
    return accept(merge(stored, patch), stored)


def effective(app: Raw, instance: Raw, defaults: Raw | None = None) -> Spec:
    """An instance's spec over its app's over the branch's defaults, complete. Invalid."""
    raw = merge(merge(defaults or {}, app), instance)
    return decode(Spec, raw, lambda spec: faults(spec) + missing(spec) + strayed(instance))


def shown(spec: Spec) -> Raw:
    """An effective spec as JSON, its secrets hidden, without what is not set."""
    return {name: value for name, value in hide(encode(spec)).items() if value is not None}
