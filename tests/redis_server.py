"""A private Redis on a free port of the loopback interface, with nothing on disk."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.free_port import free_port
from tests.waiting import until_sync


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Its URL, while it runs."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("Redis is not installed: these tests need redis-server (Debian: redis-server)")
    port = free_port()
    arguments = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            until_sync(lambda: _answers(port), 60, "Redis starts")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
    except OSError:
        return False
