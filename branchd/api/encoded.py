"""Values as JSON bytes; those of instances are kept while the instance is the same object.

The service gives the same object while nothing changed, so that a list of all instances is a join of bytes.
"""

from collections.abc import Callable
from typing import Any

from branchd.wire import json
from branchd.wire.resources import Instance

#: entries of instances that are gone, kept at most until they are thrown out together
SPARE = 200


def encoded(value: Any) -> bytes:
    return json.dumps(value)


class Encoded:
    def __init__(self, shape: Callable[[Instance], Any] = lambda instance: instance) -> None:
        """`shape`: what is shown of an instance."""
        self._shape = shape
        self._known: dict[tuple[str, str], tuple[Instance, bytes]] = {}

    def one(self, instance: Instance) -> bytes:
        key = instance.app, instance.name
        known = self._known.get(key)
        if known is None or known[0] is not instance:
            known = self._known[key] = instance, encoded(self._shape(instance))
        return known[1]

    def prune(self, present: list[Instance]) -> None:
        """Forgets the instances that are gone, when there are many; `present` are all that there are."""
        if len(self._known) > len(present) + SPARE:
            keys = {(instance.app, instance.name) for instance in present}
            self._known = {key: known for key, known in self._known.items() if key in keys}
