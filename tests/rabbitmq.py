"""A private RabbitMQ in a folder of its own: any user, free ports of the loopback interface, ended by its own pids."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.free_port import free_port
from tests.waiting import until_sync

#: Debian's wrapper in sbin insists on root and its own data; this is what it wraps
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
#: seconds; on an idle machine it takes 6
START_LIMIT = 90
#: seconds until a TERM becomes a KILL; on an idle machine it takes 1
STOP_LIMIT = 30

CONFIGURATION = """\
listeners.tcp.1 = {address}:{port}
loopback_users = none
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
"""

#: a program: whether an AMQP server answers at the address and port that are its arguments
ASKING = r"""
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as connection:
    connection.sendall(b"AMQP\x00\x00\x09\x01")
    sys.exit(not connection.recv(1))
"""


class RabbitMQ:
    """One broker, started and stopped as often as a test likes, always on the same data and port."""

    def __init__(self, folder: Path, address: str = "127.0.0.1", within: Sequence[str] = ()) -> None:
        """`address`: where it listens. `within`: what its commands begin with, to run on another host."""
        if not SERVER.exists() or shutil.which("epmd") is None:
            pytest.fail(f"RabbitMQ is not installed: these tests need {SERVER} and epmd (Debian: rabbitmq-server)")
        self._folder = folder
        self._address = address
        self._within = within
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self.port, distribution, epmd_port = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@{address}:{self.port}//"
        for part in ("data", "log", "generated"):
            (folder / part).mkdir(parents=True)
        cookie = folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        (folder / "plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(CONFIGURATION.format(address=address, port=self.port))
        self._environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # Without busy waiting, and reachable from this machine alone.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
            " -kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    @property
    def runs(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        assert self._server is None, "it runs"
        # Erlang would leave an epmd behind that nobody ends: so one of our own, in the foreground.
        self._epmd = subprocess.Popen(
            [*self._within, "epmd", "-port", self._environment["ERL_EPMD_PORT"], "-address", "127.0.0.1"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with (self._folder / "output").open("ab") as output:
            self._server = subprocess.Popen(
                [*self._within, str(SERVER)],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until_sync(self._answers, START_LIMIT, f"RabbitMQ starts, see {self._folder / 'output'}")

    def stop(self) -> None:
        """Ends it in order; nothing when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """It does nothing any more, and its machine keeps its connections; resume() before stop()."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGCONT)

    def control(self, *arguments: str) -> None:
        """As rabbitmqctl."""
        command = [*self._within, str(SERVER.with_name("rabbitmqctl")), *arguments]
        done = subprocess.run(command, env=self._environment, cwd=self._folder, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _answers(self) -> bool:
        assert self._server is not None
        if self._server.poll() is not None:
            raise AssertionError(f"RabbitMQ ended at its start: {(self._folder / 'output').read_text()[-2000:]}")
        asking = [*self._within, sys.executable, "-ISc", ASKING, self._address, str(self.port)]
        if subprocess.run(asking, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return True
        time.sleep(0.1)
        return False

    def _end(self, number: int) -> None:
        server, self._server = self._server, None
        epmd, self._epmd = self._epmd, None
        if server is not None:
            os.killpg(server.pid, number)
            try:
                server.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
        if epmd is not None:
            epmd.kill()
            epmd.wait()
