"""What watching a process leads to: values that a driver's monitor returns and the supervisor acts on."""

from collections.abc import Mapping
from typing import Any

from branchd.core.value import Value


class Ready(Value):
    """It does its work now."""


class Unhealthy(Value):
    """It must be killed and started again."""

    reason: str


class Tell(Value):
    """Send it this command."""

    command: Mapping[str, Any]


class Renew(Value):
    """It must be restarted by its stop plan: it lives, but does not do what it should."""

    reason: str


Finding = Ready | Unhealthy | Tell | Renew
