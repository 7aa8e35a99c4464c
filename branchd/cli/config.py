"""The daemon's configuration: its keys, their defaults, what makes a value wrong.

A flag beats a variable beats a file (sources.py). What comes out holds together, or every fault is told at once.
Folders are not created here and no port is opened; whether a file that is named exists is looked up.
"""

import os
import re
import socket
import string
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from msgspec import field

from branchd.api.settings import HttpSettings, TcpListener, UnixListener, parse_listener
from branchd.cli import places
from branchd.cli.sources import Settings, pairs, real, text, texts, truth, whole
from branchd.core import brokers
from branchd.core.access import Scope
from branchd.core.errors import Fatal, Fault, Invalid
from branchd.core.faults import name_fault
from branchd.core.spec import size_in_bytes
from branchd.core.value import Value
from branchd.wire.decode import decode

#: the kernel's limit for the path of a unix socket is 108 bytes with the NUL
LONGEST_SOCKET_PATH = 107

#: bytes of a file that holds a URL; more is none
LONGEST_URL = 8192

_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?")

T = TypeVar("T")


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Branch(Value):
    name: str = "localhost"  #: by default the name of the machine
    state: Path = Path("/var/lib/branchd")  #: not for root: XDG_STATE_HOME/branchd
    run: Path = Path("/run/branchd")  #: sockets; not for root: XDG_RUNTIME_DIR/branchd, else STATE/run
    logs: Path = Path("/var/log/branchd")  #: not for root, or with another state: STATE/logs
    labels: Mapping[str, str] = field(default_factory=dict)
    slots: int | None = None  #: units of work that it hosts; None: so many for each CPU (core/capacity.py)
    guard_memory: float = 0.05  #: share of the memory that must be available for a new placed instance; 0: any
    guard_load: float = 8.0  #: load per core of the last minute, above which no placed instance is taken
    guard_disk: float = 0.02  #: share of the state's disk that must be free for a new placed instance; 0: any
    node_name: str = "{app}:{name}@{branch}"  #: of a Celery worker
    log_level: LogLevel = LogLevel.INFO


class Http(Value):
    listen: tuple[str, ...] = (places.ADDRESS,)  #: as written; by default unix:RUN/api.sock too
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    allowed_hosts: tuple[str, ...] = ()  #: beside the loopback names and the hosts of `listen`
    insecure: bool = False  #: allows other addresses than loopback without TLS
    body_limit: int = 1 << 20  #: bytes of a request's body
    supervisor_door: bool = False  #: serves supervisord's XML-RPC at /RPC2


class Auth(Value):
    socket_group: str = "branchd"  #: its members may operate over the unix socket
    allow_users: tuple[str, ...] | None = None  #: users that instances may run as; None: any
    default_user: str | None = None  #: of instances that name none; None: the daemon's own
    peer_scope: Scope = Scope.OPERATE  #: what other branches may do here


class Mesh(Value):
    #: URL, or several of one cluster joined by ";"; it has a password
    broker: str | None = None
    neighbourhood: str = "branchd"
    key_file: Path | None = None
    broker_file: Path | None = None  #: the broker's URL stands in it

    def __repr__(self) -> str:
        return f"Mesh({self.neighbourhood!r})"


class Config(Value):
    branch: Branch
    http: Http
    auth: Auth
    mesh: Mesh
    origins: Mapping[tuple[str, str], str]  #: (section, key): where its value came from, for people
    file: Path | None = None  #: the main file; definitions may stand in it, and in those beside it

    @property
    def server(self) -> HttpSettings:
        """What the HTTP server is to be told."""
        http = self.http
        return HttpSettings(
            listen=http.listen,
            tls_certificate=str(http.tls_certificate) if http.tls_certificate else None,
            tls_key=str(http.tls_key) if http.tls_key else None,
            allowed_hosts=http.allowed_hosts,
            insecure=http.insecure,
            body_limit=http.body_limit,
            supervisor_door=http.supervisor_door,
            socket_group=self.auth.socket_group,
        )


class Misconfigured(Invalid):
    """Every fault of the configuration; and the run folder that it names all the same, where it does."""

    def __init__(self, faults: list[Fault], run: object) -> None:
        count = len(faults)
        super().__init__(faults, f"the configuration has {count} fault{'s' if count > 1 else ''}")
        self.run = Path(run) if isinstance(run, str) and Path(run).is_absolute() else None


#: every key, with how the text of its variable is read
KEYS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "branch": {
        "name": text, "state": text, "run": text, "logs": text, "labels": pairs, "slots": whole,
        "guard_memory": real, "guard_load": real, "guard_disk": real, "node_name": text, "log_level": text,
    },
    "http": {
        "listen": texts, "tls_certificate": text, "tls_key": text, "allowed_hosts": texts, "insecure": truth,
        "body_limit": text, "supervisor_door": truth,
    },
    "auth": {"socket_group": text, "allow_users": texts, "default_user": text, "peer_scope": text},
    "mesh": {"broker": text, "neighbourhood": text, "key_file": text, "broker_file": text},
}  # fmt: skip

#: looked up in $CREDENTIALS_DIRECTORY first: systemd's LoadCredential=
SECRETS = frozenset({"tls_certificate", "tls_key", "key_file", "broker_file"})
PATHS = frozenset({"state", "run", "logs"}) | SECRETS
SIZES = (("http", "body_limit"),)


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[tuple[str, str], Any]) -> Config:
    """`file` None: the default one where it exists. Misconfigured; its faults' pointers say file, variable or flag."""
    credentials = environment.get("CREDENTIALS_DIRECTORY")
    settings = Settings(KEYS, PATHS, SECRETS, Path(credentials) if credentials else None)
    found = (file or places.config(environment, os.geteuid() == 0)).absolute()
    main = found if file is not None or found.exists() else None
    if main is not None:
        settings.file(main)
    settings.variables(environment)
    settings.flags(flags)
    _defaults(settings, environment)
    _sizes(settings)
    _untold(settings)
    _broker_of_file(settings)
    config = Config(
        _section(settings, "branch", Branch, _branch_faults),
        _section(settings, "http", Http, _http_faults),
        _section(settings, "auth", Auth, _auth_faults),
        _section(settings, "mesh", Mesh, _mesh_faults),
        settings.origins,
        main,
    )
    if settings.faults:
        raise Misconfigured(settings.faults, settings.values["branch"].get("run"))
    return config


def _defaults(settings: Settings, environment: Mapping[str, str]) -> None:
    """Those that follow from the machine, or from each other; a wrong type in their way is told of later."""
    root = os.geteuid() == 0
    settings.default("branch", "name", socket.gethostname())
    state = settings.default("branch", "state", str(places.state(environment, root)))
    if isinstance(state, str):
        settings.default("branch", "logs", str(places.logs(root, Path(state))))
        run = settings.default("branch", "run", str(places.run(environment, root, Path(state))))
        if isinstance(run, str):
            settings.default("http", "listen", [places.ADDRESS, f"unix:{Path(run) / places.SOCKET}"])


def _sizes(settings: Settings) -> None:
    for section, key in SIZES:
        value = settings.values.get(section, {}).get(key)
        if isinstance(value, str):
            try:
                settings.values[section][key] = size_in_bytes(value)
            except ValueError as error:
                hint = 'bytes, or text with a unit such as "512MiB"'
                settings.faults.append(Fault(settings.origins[section, key], str(error), hint))
                del settings.values[section][key]


def _untold(settings: Settings) -> None:
    """A broker of a wrong type, here and not where values are decoded: that would show it, with its password."""
    mesh = settings.values.get("mesh", {})
    if not isinstance(mesh.get("broker", ""), str):
        place = settings.origins["mesh", "broker"]
        settings.faults.append(Fault(place, "is not text", 'several URLs are joined by ";"'))
        del mesh["broker"]


def _broker_of_file(settings: Settings) -> None:
    mesh = settings.values.get("mesh", {})
    path = mesh.get("broker_file")
    if not isinstance(path, str):
        return
    place = settings.origins["mesh", "broker_file"]
    if "broker" in mesh:
        settings.faults.append(Fault(place, "stands beside broker", "leave one of the two out"))
        return
    try:
        with open(path, "rb") as file:
            mesh["broker"] = file.read(LONGEST_URL).decode().strip()
    except OSError as error:
        settings.faults.append(Fault(place, f"{path} cannot be read: {error.strerror}"))
    except UnicodeDecodeError:
        settings.faults.append(Fault(place, f"{path} is not text", "the broker's URL stands in it"))
    else:
        settings.origins["mesh", "broker"] = place


def _section(settings: Settings, name: str, kind: type[T], judge: Callable[[T], Iterator[Fault]]) -> T:
    """The section as it was said, or as it would be without what is wrong, the faults being kept in the settings."""
    values = settings.values.get(name, {})
    try:
        return decode(kind, values, lambda section: list(judge(section)))
    except Invalid as invalid:
        for fault in invalid.faults:
            _, key, *rest = fault.pointer.split("/", 2)
            place = settings.origins.get((name, key), f"[{name}].{key}") + "".join(f"[{step}]" for step in rest)
            settings.faults.append(Fault(place, fault.detail, fault.hint))
        return kind()


def _branch_faults(branch: Branch) -> Iterator[Fault]:
    if fault := name_fault(branch.name, "/name", "name of a branch"):
        yield fault
    for key in ("state", "run", "logs"):
        path: Path = getattr(branch, key)
        if not path.is_absolute():
            yield Fault(f"/{key}", f"{str(path)[:120]!r} is not a path")
        elif path.exists() and not path.is_dir():
            yield Fault(f"/{key}", f"{path} is not a folder")
    for name, value in branch.labels.items():
        if fault := name_fault(name, f"/labels/{name}", "label"):
            yield fault
        if len(value) > 255 or not value.isprintable():
            yield Fault(f"/labels/{name}", "is not a valid value", "at most 255 printable characters")
    if branch.slots is not None and not 0 <= branch.slots <= 1_000_000:
        yield Fault("/slots", f"{branch.slots} is out of range", "0 to 1000000")
    for key in ("guard_memory", "guard_disk"):
        if not 0 <= getattr(branch, key) < 1:
            yield Fault(f"/{key}", f"{getattr(branch, key):g} is out of range", "a share: 0 to 0.99")
    if not 0 < branch.guard_load <= 10_000:
        yield Fault("/guard_load", f"{branch.guard_load:g} is out of range", "above 0, at most 10000")
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(branch.node_name) if name is not None}
    except ValueError as error:
        yield Fault("/node_name", f"{branch.node_name[:120]!r}: {error}")
    else:
        if not {"app", "name"} <= names <= {"app", "name", "branch"} or branch.node_name.count("@") != 1:
            yield Fault("/node_name", f"{branch.node_name[:120]!r} does not name each worker apart",
                        'one "@", with {app} and {name}, and {branch} if you like')  # fmt: skip


def _http_faults(http: Http) -> Iterator[Fault]:
    if not http.listen:
        yield Fault(
            "/listen", "there is no address to listen on", f"such as {places.ADDRESS} or unix:/run/branchd/api.sock"
        )
    for index, given in enumerate(http.listen):
        try:
            address = parse_listener(given)
        except Fatal as error:
            yield Fault(f"/listen/{index}", error.detail, error.hint)
            continue
        if isinstance(address, UnixListener) and len(os.fsencode(address.path)) > LONGEST_SOCKET_PATH:
            yield Fault(f"/listen/{index}", f"the path of a socket has at most {LONGEST_SOCKET_PATH} bytes")
        if isinstance(address, TcpListener) and not (address.loopback or http.tls_certificate or http.insecure):
            yield Fault(f"/listen/{index}", f"{address} is not loopback, and there is no TLS",
                        "set tls_certificate and tls_key, or insecure = true where it is safe without")  # fmt: skip
    if (http.tls_certificate is None) != (http.tls_key is None):
        given, other = ("tls_certificate", "tls_key")[:: 1 if http.tls_certificate else -1]
        yield Fault(f"/{given}", f"needs {other} beside it")
    yield from _file_fault("tls_certificate", http.tls_certificate)
    yield from _file_fault("tls_key", http.tls_key)
    for index, host in enumerate(http.allowed_hosts):
        if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", host):
            yield Fault(f"/allowed_hosts/{index}", f"{host[:80]!r} is not the name of a host")
    if not 1024 <= http.body_limit <= 1 << 30:
        yield Fault("/body_limit", f"{http.body_limit} is out of range", "1KiB to 1GiB")


def _auth_faults(auth: Auth) -> Iterator[Fault]:
    for key, name in (("socket_group", auth.socket_group), ("default_user", auth.default_user)):
        if name is not None and not _ACCOUNT.fullmatch(name):
            yield Fault(f"/{key}", f"{name[:80]!r} is not a valid name")
    for index, name in enumerate(auth.allow_users or ()):
        if not _ACCOUNT.fullmatch(name):
            yield Fault(f"/allow_users/{index}", f"{name[:80]!r} is not a valid name")
    if auth.default_user and auth.allow_users is not None and auth.default_user not in auth.allow_users:
        yield Fault("/default_user", f"{auth.default_user} is not among allow_users", "name it there too")


def _mesh_faults(mesh: Mesh) -> Iterator[Fault]:
    if mesh.broker is not None:
        if wrong := brokers.fault(mesh.broker):
            yield Fault("/broker", *wrong)
        if mesh.key_file is None:
            yield Fault("/broker", "needs key_file beside it: what goes over the broker is sealed with the "
                        "neighbourhood's key", "make one with `branchd key new FILE`, give every branch a copy, and "
                        'name it there: key_file = "FILE"')  # fmt: skip
    if fault := name_fault(mesh.neighbourhood, "/neighbourhood", "name of a neighbourhood"):
        yield fault
    if mesh.key_file is not None:
        from branchd.adapters import keys  # noqa: PLC0415  # for start-up time: it brings cryptography

        try:
            keys.read(mesh.key_file)
        except Fatal as error:
            yield Fault("/key_file", error.detail, error.hint)


def _file_fault(key: str, path: Path | None) -> Iterator[Fault]:
    if path is not None:
        try:
            path.open("rb").close()
        except OSError as error:
            yield Fault(f"/{key}", f"{path} cannot be read: {error.strerror}")
