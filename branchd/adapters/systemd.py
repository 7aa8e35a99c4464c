"""What the daemon tells the service manager that started it: sd_notify(3), over one datagram socket.

No units and no `systemctl` here; and no timers: who calls watchdog() in time is the caller's business.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

#: seconds that a message may wait for the service manager; it is dropped then, for a daemon must not hang on its parent
PATIENCE = 1.0

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Silent where nobody asked to be told. Made once, early: it takes the manager's variables out of `environment`.

    They would otherwise reach every child, which could then speak in the daemon's name.
    """

    #: seconds between two calls of watchdog(): half of what the manager allows; None where it does not watch
    watchdog_interval: float | None

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        given = {name: environment[name] for name in VARIABLES if name in environment}
        #: what it took, for an image of this process that takes this one's place
        self.environment: Mapping[str, str] = given
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        watched = environment.pop("WATCHDOG_PID", "") in {"", str(os.getpid())}
        self.watchdog_interval = int(microseconds) / 2_000_000 if microseconds.isdecimal() and watched else None
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self) -> None:
        """The API answers and what ran before is adopted."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Another image takes this one's place, and will be ready."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """The stop plans have begun; whatever time they take is not a hang."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; control characters become spaces."""
        self._send("STATUS=" + "".join(character if character.isprintable() else " " for character in text))

    def watchdog(self) -> None:
        """The daemon is alive."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A manager that is gone or does not read is no reason to stop: its own time-outs say what follows.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(PATIENCE)
            manager.sendto(message.encode(), self._address)
