"""The one tree of errors. Each class's docstring is its meaning; only the edges (api, cli) map it to a code.

Nothing here knows of HTTP or of exit codes.
"""

from branchd.core.value import Value


class Fault(Value):
    """One thing wrong with what was given: where (RFC 6901 pointer), what, and what to do."""

    pointer: str
    detail: str
    hint: str = ""


class BranchdError(Exception):
    """Something that branchd can put into words for the person who asked."""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class Invalid(BranchdError):
    """What was given does not hold together; every fault at once."""

    def __init__(self, faults: list[Fault], detail: str = "") -> None:
        super().__init__(detail or f"{len(faults)} {'field is' if len(faults) == 1 else 'fields are'} invalid")
        self.faults = faults


class NotFound(BranchdError):
    """There is no such thing here."""


class Conflict(BranchdError):
    """It contradicts what is already there."""


class FileOwned(Conflict):
    """A file defines it, so it is changed there and nowhere else."""


class Stale(BranchdError):
    """It was changed by somebody else since it was read."""


class Denied(BranchdError):
    """The principal may not do this."""


class Unavailable(BranchdError):
    """It cannot be told or done now; trying again may help."""


class StorageFailed(Unavailable):
    """The store took nothing: disk full, read-only or broken. What runs goes on."""


class SpawnFailed(BranchdError):
    """The program could not be started.

    `ours` tells whose fault: True for the machine's or the daemon's (no memory, no descriptors, the store is full), so
    that the instance is not blamed for it; False for the instance's (no such program, directory or user).
    """

    def __init__(self, detail: str, hint: str = "", *, ours: bool = False) -> None:
        super().__init__(detail, hint)
        self.ours = ours


class NoChannel(BranchdError):
    """The worker's agent is not connected, or did not answer in time."""


class Refused(BranchdError):
    """The worker's agent answered that it cannot do it; detail is its words."""


class NoRoute(BranchdError):
    """Nobody holds that inbox or key: the broker says so for sure."""


class NoAnswer(Unavailable):
    """It was sent, and no answer came in time: whether it was done is not known."""


class OutcomeUnknown(Unavailable):
    """Whether it was done cannot be told; asking again under the same Idempotency-Key tells, or does it."""


class NoCapacity(Conflict):
    """No branch takes it; the detail gives each one's reason."""


class Fatal(BranchdError):
    """The daemon cannot start or go on: another one holds the state folder, a port is in use, a wrong configuration."""
