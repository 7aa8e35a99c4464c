"""What watching a process leads to: values that a driver's monitor returns and the supervisor acts on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ready:
    """It does its work now."""


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """It must be killed and started again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Send it this command."""

    command: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Renew:
    """It must be restarted by its stop plan: it lives, but does not do what it should."""

    reason: str


Finding = Ready | Unhealthy | Tell | Renew
