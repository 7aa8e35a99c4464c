"""What is too much for one message, in portions."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from branchd.wire import json

T = TypeVar("T")

#: bytes of a sealed message; what a spec, a page of a list or a piece of a log needs, and no more
LONGEST_MESSAGE = 4 << 20

#: bytes of the values in one message, unless a single one is longer: far below the longest message, coded in 10 ms
PORTION = 256 << 10


def text(value: Any) -> bytes:
    """As it stands in a message."""
    return json.dumps(value)


def portions(values: Iterable[T], most: int = PORTION) -> Iterator[tuple[T, ...]]:
    """In the same order, each as long as fits into one message."""
    portion: list[T] = []
    room = most
    for value in values:
        length = len(text(value))
        if portion and length > room:
            yield tuple(portion)
            portion, room = [], most
        portion.append(value)
        room -= length
    if portion:
        yield tuple(portion)
