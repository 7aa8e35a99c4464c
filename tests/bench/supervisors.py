"""The supervisors that are compared: how to prepare, start and ask each of them, all at their defaults.

A measure sees only the Supervisor class; what a supervisor is called and speaks stays here.
"""

import hashlib
import http.client
import importlib.metadata
import json
import os
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
import xmlrpc.client
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.bench import observe

#: seconds for an answer, and for an orderly end
PATIENCE = 60


#: what a supervisor is started with: no more than an init system gives it
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}

#: what service number so and so runs
Argv = Callable[[int], list[str]]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket, kept open between requests."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def ask(self, method: str, path: str, body: bytes | None, content_type: str) -> bytes:
        """The body of the answer; RuntimeError unless it is a success."""
        headers = {"Connection": "keep-alive"} | ({"Content-Type": content_type} if body is not None else {})
        self.request(method, path, body, headers)
        answer = self.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
        return text


class Supervisor(ABC):
    """One supervisor. Its services are named s0000, s0001, ... and each runs observe.child_argv(number)."""

    name: ClassVar[str]

    #: seconds that its orderly end may take
    ends_within: ClassVar[float] = PATIENCE

    def __init__(self, scratch: Path) -> None:
        self.home = scratch / self.name
        self.socket = self.home / "api.sock"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._connection: UnixConnection | None = None

    @property
    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def prepare(self, count: int, argv: Argv = observe.child_argv) -> None:
        """Writes what a cold start with so many services needs, all of them wanted up, into an empty `home`."""

    @abstractmethod
    def start(self) -> None:
        """Starts the daemon and returns at once."""

    @abstractmethod
    def ping(self) -> None:
        """A cheap question; some error while the API does not answer."""

    @abstractmethod
    def status_of_all(self) -> int:
        """Asks for the status of all services; how many of them it says are running."""

    @abstractmethod
    def status_of_one(self, name: str) -> bool:
        """Asks for the status of one service; whether it says that it is running."""

    def crash(self) -> None:
        """kill -9 of the daemon; returns when it is gone, and start() may come again."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        self._daemon = None
        self.hang_up()

    def hang_up(self) -> None:
        """Closes the connection to the API, where there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def end(self) -> None:
        """An orderly end, and then whatever is left."""
        self.hang_up()
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(self.ends_within)
            except subprocess.TimeoutExpired:
                self.crash()
            self._daemon = None
        observe.clean_up()

    def wait_for_api(self) -> None:
        """Returns when the API has answered; RuntimeError with the daemon's last words when it does not."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self.ping()
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                if time.monotonic() > until or (self._daemon is not None and self._daemon.poll() is not None):
                    words = (self.home / "output").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{self.name} does not answer: {error}\n{words}") from error
                self.hang_up()
                time.sleep(0.001)

    def _empty_home(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)

    def _launch(self, *argv: str | Path, env: Mapping[str, str] = ENVIRONMENT) -> None:
        with (self.home / "output").open("ab") as output:
            self._daemon = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.home, env=env,
                start_new_session=True,
            )  # fmt: skip

    def _ask(self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        if self._connection is None:
            self._connection = UnixConnection(self.socket)
        return self._connection.ask(method, path, body, content_type)


class Branchd(Supervisor):
    name = "branchd"

    #: as it is installed: a virtual environment without the tools of its development
    program = Path(sys.prefix) / "bench/bin/branchd"

    @property
    def version(self) -> str:
        return subprocess.run([self.program, "--version"], check=True, capture_output=True, text=True).stdout.split()[
            -1
        ]

    def prepare(self, count: int, argv: Argv = observe.child_argv) -> None:
        """The services are created over the API, once for a set of them; every start gets a copy of that state."""
        made = hashlib.sha256(repr([argv(index) for index in range(count)]).encode()).hexdigest()
        template = self.home.with_name(f"branchd-{made}")
        if not template.exists():
            self._empty_home()
            (self.home / "branchd.toml").write_text("[branch]\nslots = 100000\n")
            self.start()
            self.wait_for_api()
            self._send("PUT", "/v1/apps/bench", {"kind": "command", "command": observe.child_argv(0)})
            for index in range(count):
                instance = {"name": f"s{index:04d}", "command": argv(index)}
                self._send("POST", "/v1/apps/bench/instances", instance)
            self.end()
            shutil.copytree(self.home, template, ignore=shutil.ignore_patterns("*.sock"))
        self._empty_home()
        shutil.copytree(template, self.home, dirs_exist_ok=True)

    def start(self) -> None:
        folders = ["--state", f"{self.home}/state", "--run", f"{self.home}/run"]
        self._launch(
            self.program, "run", *folders, "--listen", f"unix:{self.socket}", "--config", f"{self.home}/branchd.toml"
        )

    def ping(self) -> None:
        self._ask("GET", "/readyz")

    def status_of_all(self) -> int:
        items = json.loads(self._ask("GET", "/v1/status?limit=1000"))["items"]
        return sum(item["status"]["state"] == "RUNNING" for item in items)

    def status_of_one(self, name: str) -> bool:
        status = json.loads(self._ask("GET", f"/v1/apps/bench/instances/{name}"))["status"]
        return bool(status["state"] == "RUNNING")

    def _send(self, method: str, path: str, body: object) -> None:
        self._ask(method, path, json.dumps(body).encode())


class Supervisord(Supervisor):
    name = "supervisord"

    @property
    def version(self) -> str:
        return importlib.metadata.version("supervisor")

    def prepare(self, count: int, argv: Argv = observe.child_argv) -> None:
        self._empty_home()
        lines = [
            "[supervisord]\nnodaemon=true\nlogfile=%(here)s/log\npidfile=%(here)s/pid\nchildlogdir=%(here)s",
            f"[unix_http_server]\nfile={self.socket}",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        ]
        lines += [f"[program:s{index:04d}]\ncommand={escaped(argv(index))}" for index in range(count)]
        (self.home / "supervisord.conf").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        self._launch(f"{sys.prefix}/bin/supervisord", "-c", f"{self.home}/supervisord.conf")

    def ping(self) -> None:
        self._call("getState")

    def status_of_all(self) -> int:
        return sum(info["statename"] == "RUNNING" for info in self._call("getAllProcessInfo"))

    def status_of_one(self, name: str) -> bool:
        return bool(self._call("getProcessInfo", name)["statename"] == "RUNNING")

    def _call(self, method: str, *arguments: str) -> Any:
        body = xmlrpc.client.dumps(arguments, f"supervisor.{method}").encode()
        return xmlrpc.client.loads(self._ask("POST", "/RPC2", body, "text/xml").decode())[0][0]


class Circus(Supervisor):
    """One watcher a service, asked over ZeroMQ on loopback."""

    name = "circus"

    #: it takes a minute to stop 500, which is none of the measures
    ends_within = 3.0

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._port = 0
        self._socket: Any = None

    @property
    def version(self) -> str:
        return importlib.metadata.version("circus")

    def prepare(self, count: int, argv: Argv = observe.child_argv) -> None:
        self._empty_home()
        self._port = free_port()
        lines = [f"[circus]\nendpoint=tcp://127.0.0.1:{self._port}\npubsub_endpoint=tcp://127.0.0.1:{free_port()}"]
        for index in range(count):
            command, *arguments = argv(index)
            lines.append(f"[watcher:s{index:04d}]\ncmd={command}\nargs={shlex.join(arguments)}")
        (self.home / "circus.ini").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        self._launch(f"{sys.prefix}/bin/circusd", "circus.ini")

    def ping(self) -> None:
        self._call("globaloptions")

    def status_of_all(self) -> int:
        return sum(status == "active" for status in self._call("status")["statuses"].values())

    def status_of_one(self, name: str) -> bool:
        return bool(self._call("status", name=name)["status"] == "active")

    def hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _call(self, command: str, **properties: object) -> Any:
        import zmq

        if self._socket is None:
            self._socket = zmq.Context.instance().socket(zmq.DEALER)
            self._socket.rcvtimeo = 1000 * PATIENCE
            self._socket.setsockopt(zmq.RECONNECT_IVL, 2)
            self._socket.connect(f"tcp://127.0.0.1:{self._port}")
        number = uuid.uuid4().hex
        self._socket.send(json.dumps({"id": number, "command": command, "properties": properties}).encode())
        while (answer := json.loads(self._socket.recv())).get("id") != number:
            pass
        return answer


class Pm2(Supervisor):
    """Its daemon, then `pm2 start` of a file; asked over its socket in its own framing. It cannot ask for one alone."""

    name = "pm2"
    package = Path(sys.prefix) / "pm2/node_modules/pm2"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._env = ENVIRONMENT | {"PM2_HOME": str(self.home), "PM2_DISABLE_VERSION_CHECK": "true"}
        self._stream: Any = None

    @property
    def version(self) -> str:
        return str(json.loads((self.package / "package.json").read_text())["version"])

    def prepare(self, count: int, argv: Argv = observe.child_argv) -> None:
        self._empty_home()
        apps = []
        for index in range(count):
            command, *arguments = argv(index)
            apps.append({"name": f"s{index:04d}", "script": command, "args": arguments, "interpreter": "none"})
        (self.home / "apps.json").write_text(json.dumps({"apps": apps}))
        self._count = count

    def start(self) -> None:
        self._launch("node", self.package / "lib/Daemon.js", env=self._env)
        if self._count:
            self.wait_for_api()  # else its command would start another daemon
            with (self.home / "output").open("ab") as output:
                subprocess.Popen(
                    ["node", self.package / "bin/pm2", "start", "apps.json"], stdin=subprocess.DEVNULL, stdout=output,
                    stderr=output, cwd=self.home, env=self._env,
                )  # fmt: skip

    def ping(self) -> None:
        self._call("ping")

    def status_of_all(self) -> int:
        return sum(app["pm2_env"]["status"] == "online" for app in self._call("getMonitorData")[0])

    def status_of_one(self, name: str) -> bool:
        return any(app["name"] == name for app in self._call("getMonitorData")[0])

    def hang_up(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _call(self, method: str) -> Any:
        """A call of its axon protocol: a byte for version and count, then each part after its length."""
        if self._stream is None:
            with socket.socket(socket.AF_UNIX) as opened:
                opened.settimeout(PATIENCE)
                opened.connect(str(self.home / "rpc.sock"))
                self._stream = opened.makefile("rwb")
        call = json.dumps({"type": "call", "method": method, "args": [{}]}).encode()
        parts = [b"j:" + call, b"s:1:1"]
        self._stream.write(b"\x12" + b"".join(struct.pack(">I", len(part)) + part for part in parts))
        self._stream.flush()
        count = self._stream.read(1)[0] & 15
        parts = [self._stream.read(struct.unpack(">I", self._stream.read(4))[0]) for _ in range(count)]
        return json.loads(parts[0][2:])["args"]


def escaped(argv: Sequence[str]) -> str:
    """As supervisord wants it."""
    return shlex.join(argv).replace("%", "%%")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Loop(Supervisor):
    """No supervisor at all but the least that one has to do: start, poll the pidfds, start again. The floor."""

    name = "pidfd loop"
    version = sys.version.split()[0]

    def prepare(self, count: int, argv: Argv = observe.child_argv) -> None:
        self._empty_home()
        self._count = count

    def start(self) -> None:
        fork(lambda: _restart_for_ever(self._count))

    def ping(self) -> None:
        """It has no API."""

    def status_of_all(self) -> int:
        raise NotImplementedError

    def status_of_one(self, name: str) -> bool:
        raise NotImplementedError


def _restart_for_ever(count: int) -> None:
    poller = select.poll()
    indexes: dict[int, tuple[int, int]] = {}

    def spawn(index: int) -> None:
        pid = os.posix_spawn(observe.SLEEP, observe.child_argv(index), os.environ)
        descriptor = os.pidfd_open(pid)
        indexes[descriptor] = index, pid
        poller.register(descriptor, select.POLLIN)

    for index in range(count):
        spawn(index)
    while True:
        for descriptor, _ in poller.poll():
            index, pid = indexes.pop(descriptor)
            poller.unregister(descriptor)
            os.close(descriptor)
            os.waitpid(pid, 0)
            spawn(index)


SUPERVISORS: tuple[type[Supervisor], ...] = (Branchd, Supervisord, Circus, Pm2)


def fork(work: Callable[[], None]) -> None:
    """Does the work in a process of its own, which stays until it is killed."""
    if not os.fork():
        try:
            work()
            signal.pause()
        finally:
            os._exit(1)
