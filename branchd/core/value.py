"""What every value of branchd is: a Struct of msgspec that does not change, and is compared by its fields.

Why not a dataclass: docs/decisions/0027. What is read from JSON (wire/decode.py) may have no field that its Value does
not know.
"""

from typing import dataclass_transform

from msgspec import Struct, field


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value(Struct, frozen=True, forbid_unknown_fields=True):
    """The base of all of them; `order=True` after it in a class head makes them sort by their fields in order."""

    #: msgspec's tells every field, also of what has a secret and so a __repr__ of its own
    __rich_repr__ = None  # type: ignore[assignment]  # none: whoever wants one takes repr()
