"""Where output goes that is not in files: systemd's journal, or wherever the daemon's own goes.

Both are handed to the program itself: nothing passes through the daemon, and nothing happens to it when that ends.
"""

import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from branchd.core.errors import SpawnFailed

#: systemd-journald.service(8)
JOURNAL = Path("/run/systemd/journal/stdout")

#: sd-daemon(3): informational, warning
_INFO, _WARNING = 6, 4

#: bytes that wait when the journal is slow, before the program does; as sd_journal_stream_fd(3)
_BUFFER = 8 << 20


@contextmanager
def journal(identifier: str, joined: bool) -> Iterator[tuple[int, int]]:
    """Descriptors of lines that the journal has under that SYSLOG_IDENTIFIER; SpawnFailed where there is no journal."""
    with ExitStack() as stack:
        try:
            stdout = stack.enter_context(_journal(identifier, _INFO))
            stderr = stdout if joined else stack.enter_context(_journal(identifier, _WARNING))
        except OSError as error:
            raise SpawnFailed(
                f"there is no journal to write to: {JOURNAL}: {error.strerror or error}",
                'start systemd-journald, or set "logs": {"to": "files"} or {"to": "inherit"}',
                ours=isinstance(error, ConnectionRefusedError | BlockingIOError),
            ) from error
        yield stdout.fileno(), stderr.fileno()


@contextmanager
def inherited(joined: bool) -> Iterator[tuple[int, int]]:
    """The daemon's own; SpawnFailed where it was started without."""
    with ExitStack() as stack:
        found = []
        for file, number in ((sys.__stdout__, 1), (sys.__stderr__, 2)):
            if file is None:  # closed at its start: under this number may be anything by now
                raise SpawnFailed(
                    "the daemon was started without standard output or error, so there is nothing to inherit",
                    'start it with both, or set "logs": {"to": "files"}',
                )
            found.append(_again(number))
            stack.callback(os.close, found[-1])
        yield found[0], found[0] if joined else found[1]


def _again(number: int) -> int:
    """Opened anew where it is a pipe or a terminal: a program that makes its own not blocking must not do so to the
    daemon's. The position in a file is to be shared, and a socket cannot be opened."""
    mode = os.fstat(number).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with suppress(OSError):  # another user's, or nobody reads it any more
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            opened = os.open(f"/proc/self/fd/{number}", flags)
            os.set_blocking(opened, True)
            return opened
    return os.dup(number)


@contextmanager
def _journal(identifier: str, priority: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(1)  # a journal that is stuck must not hold the daemon up for long
        stream.connect(str(JOURNAL))
        stream.shutdown(socket.SHUT_RD)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        # identifier, unit, priority, prefixes such as "<3>" count, to syslog, to the kernel's log, to the console
        stream.sendall(f"{identifier}\n\n{priority}\n1\n0\n0\n0\n".encode())
        stream.settimeout(None)
        yield stream
