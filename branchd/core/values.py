"""The small values that every room speaks of: who an instance is, what a process is, how one ended.

Specs stand in spec.py, the states of an instance in lifecycle.py. No behaviour beyond what the value itself tells.
"""

import signal  # the names of signals only: nothing is sent from here
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import field

from branchd.core.spec import Limits
from branchd.core.value import Value


class Key(Value, order=True):
    """Which instance: unique on its branch."""

    app: str
    name: str

    def __str__(self) -> str:
        return f"{self.app}:{self.name}"


class Identity(Value):
    """Which process, for as long as the machine exists: a pid alone is reused, the three together are not."""

    boot: str  #: the kernel's random id of this boot
    pid: int
    started: int  #: clock ticks from boot to the process's start, field 22 of /proc/PID/stat


class Exit(Value):
    """How a process ended: an exit code, or a signal, or neither where nobody could tell."""

    code: int | None = None
    signal: int | None = None
    why: str = ""  #: who sent the signal, where that is known

    @property
    def known(self) -> bool:
        return self.code is not None or self.signal is not None

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                name = signal.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            return f"killed by {name}" + (f": {self.why}" if self.why else "")
        return "exit status unknown" if self.code is None else f"exit code {self.code}"


class Launch(Value):
    """What to execute: made by a driver from a spec, carried out by an adapter."""

    argv: tuple[str, ...]  #: argv[0] is looked up in the PATH of `env` when it has no slash
    directory: str
    env: Mapping[str, str] = field(default_factory=dict)  #: the whole environment; nothing is inherited
    user: str | None = None  #: None: the daemon's own
    group: str | None = None  #: None: the user's primary group
    umask: int | None = None  #: None: the daemon's own
    limits: Limits = field(default_factory=Limits)
    within: Key | None = None  #: of what runs beside an instance: in whose control group, as long as that runs


class Stream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


class Truth(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class QueueDeclaration(Value):
    """How a queue is declared at the broker; Celery's default is an exchange and a key of the queue's own name."""

    name: str
    exchange: str | None = None
    exchange_type: str = "direct"
    routing_key: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  #: kombu.Queue's own: durable, queue_arguments, ...


def signal_number(name: str) -> int:
    """Of "TERM" or "SIGTERM"; KeyError when there is no such signal."""
    return signal.Signals["SIG" + name.removeprefix("SIG")].value
