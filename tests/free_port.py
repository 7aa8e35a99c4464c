"""A TCP port of the loopback interface that nobody listens on."""

import os
import secrets
import socket

#: below those that Linux gives to whoever connects: one of them may be taken before it is listened on, or while a
#: broker is stopped; and who tries such a port again and again comes to be connected with itself
PORTS = range(10_000, 32_768)

#: its process of pytest's: two of them never choose the same
_NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_COUNT = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def free_port() -> int:
    while True:
        port = secrets.choice(PORTS[_NUMBER::_COUNT])
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
