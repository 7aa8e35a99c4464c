"""Signals that wait while nobody is there to handle them: while the daemon starts, and from one image to the next.

Imports next to nothing, because a start holds them before it imports the rest.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: they would end a process that does not handle them yet
HELD = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})

#: seconds that a start may go without handling them, many times what it takes; what hangs longer they end as ever
PATIENCE = 10.0

#: seconds between two looks then, whether they are handled by now
AGAIN = 1.0


def hold_signals() -> None:
    """From here to let_signals(), of the next image too: what comes waits. No child may be started between."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def let_signals() -> None:
    """Once they are handled."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


@contextmanager
def held_at_start() -> Iterator[None]:
    """What comes waits for let_signals(); where that is never called, for the end of the context."""
    hold_signals()
    over = threading.Event()
    if os.getpid() != 1:  # which they do not end: what is let through to it before it handles them is lost
        threading.Thread(target=_let_end, args=(over,), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        let_signals()


def _let_end(over: threading.Event) -> None:
    """A signal takes a thread that lets it through, and ends the process by it, whatever the others wait for."""
    if not over.wait(PATIENCE) and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        let_signals()
        # And no longer than that: a reload holds them back where this thread would still let them through.
        while not over.wait(AGAIN) and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            pass
