"""Sealed messages: who sent it, to whom, and that nobody else could have written or read it."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from branchd.core.peers import Address


class Path(IntEnum):
    """Within one path the messages of a sender arrive in order; each has a counter of its own."""

    BROADCAST = 0
    SEND = 1
    CLAIM = 2


class Rejected(Exception):
    """It is not opened; `reason` is a word to count by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Opened:
    sender: Address
    body: bytes


class Seal(Protocol):
    """Of one branch in one neighbourhood."""

    def seal(self, path: Path, target: str, body: bytes) -> bytes: ...

    def open(self, target: str, message: bytes) -> Opened:
        """Rejected. `target`: what this message must have been sealed for."""
