"""What the answers to probes mean: when a process is ready, late, no longer ready, or to be killed; and when to ask.

Arithmetic over what is passed in. Asking, waiting and acting on it is branch/probing.py's.
"""

from branchd.core.spec import Probe, Ready
from branchd.core.value import Value

#: seconds; the second question to a process that starts, doubled for each further one up to STARTING_PERIOD
FIRST_PAUSE = 0.1

#: seconds; the most between two questions to a process that starts, whatever the period: its start is to be noticed
STARTING_PERIOD = 1.0


class Row(Value):
    """The answers to one probe so far."""

    asked: int = 0
    failed: int = 0  #: in a row, up to now
    succeeded: bool = False  #: ever
    why: str = ""  #: the last answer's failure, in words; empty where it was a success

    def then(self, failure: str | None) -> "Row":
        """With one more answer: why it failed, or None."""
        if failure is None:
            return Row(self.asked + 1, 0, True)
        return Row(self.asked + 1, self.failed + 1, self.succeeded, failure)

    def fails(self, probe: Probe) -> bool:
        """So often that it counts."""
        return self.failed >= probe.failures

    def words(self, probe: Probe) -> str:
        """What is wrong, for people."""
        times = f" ({self.failed} times in a row)" if self.failed > 1 else ""
        return f"{asked(probe)}: {self.why}{times}"


def asked(probe: Probe) -> str:
    """The question in words, without a password or a query, which may hold one."""
    if probe.http is not None:
        scheme, _, rest = probe.http.partition("//")
        authority, slash, path = rest.partition("/")
        return f"GET {scheme}//{authority.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
    if probe.tcp is not None:
        return f"connect to {probe.tcp}"
    return f"run {probe.exec[0]}" if probe.exec else "nothing"


def pause(probe: Probe, row: Row, chance: float, *, ready: bool) -> float:
    """Seconds until the next question. `chance`: uniform in [0, 1).

    A process that starts is asked at once, and often. One that is ready is asked once a period, for the first time
    somewhere in it, so that many that became ready together are not asked together.
    """
    if not ready:
        return 0.0 if row.asked == 0 else min(probe.period, STARTING_PERIOD, FIRST_PAUSE * 2 ** min(row.asked - 1, 10))
    return probe.period * chance if row.asked == 0 else probe.period


class Seen(Value):
    """Of a process that has not been ready yet."""

    age: float  #: seconds since it was started
    said: bool  #: what its kind knows says that it is ready
    doubt: str  #: why it does not, where it can tell
    row: Row  #: of the ready probe
    waits: bool = False  #: the next question to it waits for its turn
    waited: float = 0.0  #: seconds that questions have waited for their turns


class Now(Value):
    """It is ready."""


class Late(Value):
    """It had its time: it is to be restarted."""

    reason: str


class Wait(Value):
    seconds: float | None  #: until time alone makes a difference; None: it never does


def readiness(ready: Ready, seen: Seen) -> Now | Late | Wait:
    """The time in which a question waited for its turn is not counted: that says nothing about who was to be asked."""
    probed = ready.probe is None or seen.row.succeeded
    if seen.said and probed and seen.age >= ready.after:
        return Now()
    moments = [ready.after]
    if ready.within is not None and not seen.waits:
        if seen.age - seen.waited >= ready.within:
            return Late(f"not ready within {ready.within:g} s: {missing(ready, seen)}")
        moments.append(ready.within + seen.waited)
    return Wait(min((moment - seen.age for moment in moments if moment > seen.age), default=None))


def missing(ready: Ready, seen: Seen) -> str:
    """What it lacks to be ready, in words."""
    if not seen.said:
        return seen.doubt or "it has not said that it is"
    if ready.probe is not None and not seen.row.succeeded:
        return seen.row.words(ready.probe) if seen.row.asked else f"{asked(ready.probe)}: not answered yet"
    return f"it has lived for less than {ready.after:g} s"
