"""What an operator can ask of an instance: the spec and its defaults.

A spec is kept as the JSON object that was given; merged over its app's (core/merge.py) and decoded (wire/spec.py) it is
a Spec: every field with its default filled in. What makes its values wrong stands in spec_faults.py.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from msgspec import field
from msgspec.structs import fields

from branchd.core.value import Value

_SIZE = re.compile(r"(\d{1,15})\s*(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?")
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
          "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # fmt: skip

#: bytes as a number, or as text with a unit such as "512MiB"
Size = int | str

#: seconds, or that it never comes to that
Absence = float | Literal["never"]

#: seconds; a host that restarts brings its instances back in less
ABSENCE = 60.0

#: of one app
MOST_REPLICAS = 1000


class Kind(StrEnum):
    CELERY = "celery"
    COMMAND = "command"


class Wanted(StrEnum):
    UP = "up"
    DOWN = "down"


class Pool(StrEnum):
    """Celery's pools."""

    PREFORK = "prefork"
    THREADS = "threads"
    SOLO = "solo"
    GEVENT = "gevent"
    EVENTLET = "eventlet"


class RestartPolicy(StrEnum):
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class Stderr(StrEnum):
    """Where the standard error goes: joined with the standard output, in the order of writing, or its own file."""

    JOIN = "join"
    FILE = "file"


class Secret(Value):
    """A value of the environment that is never shown again."""

    secret: str

    def __repr__(self) -> str:
        return "Secret()"


class Autoscale(Value):
    """Bounds of a prefork pool, in processes."""

    min: int
    max: int


class Restart(Value):
    policy: RestartPolicy = RestartPolicy.ALWAYS
    floor: float = 0.0  #: seconds; the least delay, and the delay of the first restart
    ceiling: float = 60.0  #: seconds; the greatest delay
    max_restarts: int = 10  #: within the window; one more is FATAL
    window: float = 300.0  #: seconds
    expected_exit_codes: tuple[int, ...] = (0,)  #: on-failure: these end it for good


class StopStep(Value):
    signal: str  #: a name such as "TERM", sent to the main process only
    patience: float  #: seconds until the next step, or after the last one until the tree is killed


class LogTarget(StrEnum):
    """Where the output goes."""

    FILES = "files"
    JOURNAL = "journal"  #: systemd's, each line with the instance's name
    INHERIT = "inherit"  #: the daemon's own stdout and stderr: what a container's log collector reads


class LogFormat(StrEnum):
    """What of a line is kept in the files."""

    PLAIN = "plain"  #: the bytes as the program wrote them; nobody reads them on the way
    TIMESTAMPED = "timestamped"  #: RFC 3339 time, a blank, the line
    JSON = "json"  #: an object a line: at, stream, line


class Logs(Value):
    stderr: Stderr = Stderr.JOIN
    rotate_at: Size = "10MiB"
    keep: int = 5  #: archives of each file
    to: LogTarget = LogTarget.FILES
    format: LogFormat = LogFormat.PLAIN
    compress: bool = True  #: archives


class Probe(Value):
    """One question to a running program: exactly one of http, tcp and exec."""

    http: str | None = None  #: URL; a GET that is answered with 200 to 399 is a success
    tcp: str | None = None  #: HOST:PORT, or :PORT on loopback; a connection is a success
    exec: tuple[str, ...] = ()  #: argv, run as the instance would be; exit code 0 is a success
    period: float = 10.0  #: seconds between the end of one and the next
    timeout: float = 5.0  #: seconds
    failures: int = 3  #: in a row, until it counts


class Ready(Value):
    """When a process counts as ready, beside what its kind says."""

    after: float = 0.0  #: seconds that it must have lived (supervisord's startsecs); ended before, it never started
    within: float | None = None  #: seconds; one that is not ready by then is restarted. None: it may take for ever
    probe: Probe | None = None  #: must succeed; while it fails later, the instance runs and is not ready


class Hook(Value):
    """What is told of an event: exactly one of the two."""

    command: tuple[str, ...] = ()  #: argv, run as the instance would be, the event as JSON on its standard input
    url: str | None = None  #: is sent the event as JSON in a POST


class Hooks(Value):
    on_exit: Hook | None = None  #: a process ended that was wanted up
    on_fatal: Hook | None = None  #: the instance was given up


class Limits(Value):
    """What the kernel enforces. memory, cpu and tasks need a cgroup v2 with their controllers."""

    memory: Size | None = None  #: of the whole tree; beyond it the kernel kills in it
    cpu: float | None = None  #: of the whole tree, in CPUs
    tasks: int | None = None  #: processes and threads of the whole tree
    open_files: int | None = None  #: of each process
    address_space: Size | None = None  #: of each process
    core: Size | None = None  #: of a core dump
    nice: int | None = None  #: -20 to 19
    oom_score_adj: int | None = None  #: -1000 to 1000; None: 0, whatever the daemon's is


class Spec(Value):
    kind: Kind = Kind.CELERY
    command: tuple[str, ...] = ()  #: command: argv; never a shell
    application: str | None = None  #: celery: what `celery -A` takes
    python: str | None = None  #: celery: interpreter of the user's environment; default: the one that runs branchd
    directory: str | None = None  #: working directory; default: /
    env: Mapping[str, str | Secret] = field(default_factory=dict)
    env_file: str | None = None  #: lines NAME=VALUE, read by the daemon at each start; `env` beats it
    user: str | None = None  #: default: [auth] default_user, else the daemon's own
    group: str | None = None  #: default: the user's
    umask: str | None = None  #: octal text such as "027"
    arguments: tuple[str, ...] = ()  #: celery: more arguments for the worker
    broker: str | None = None  #: celery: URL; default: what the application's own configuration says
    pool: Pool = Pool.PREFORK
    concurrency: int | None = None  #: default: Celery's, the number of CPUs
    autoscale: Autoscale | None = None
    queues: tuple[str, ...] | None = None  #: default: the application's own
    restart: Restart = Restart()
    stop: tuple[StopStep, ...] | None = None  #: default: the kind's
    depends_on: tuple[str, ...] = ()  #: instances of this branch that must be ready first: NAME, APP:NAME or APP:*
    priority: int = 999  #: the branch starts lower ones first, and stops them last
    ready: Ready = Ready()
    alive: Probe | None = None  #: where it fails, the process is killed and started again
    hooks: Hooks = Hooks()
    limits: Limits = Limits()
    max_memory: Size | None = None  #: resident memory of the tree, beyond which it is restarted by its stop plan
    task_stall_limit: float = 3600.0  #: seconds that a task may hold the interpreter (threads, solo) before a restart
    logs: Logs = Logs()
    labels: Mapping[str, str] = field(default_factory=dict)
    weight: int = 1  #: slots that it takes of the branch
    constraints: Mapping[str, str] = field(default_factory=dict)  #: labels that a branch must have to be chosen
    spread: str | None = None  #: a label of branches, over whose values the app's instances are spread
    replicas: int | None = None  #: of an app alone: instances that the neighbourhood keeps; None: it keeps none
    absence: Absence = ABSENCE  #: of an app alone: for how long a replica is missing until it is made again elsewhere
    wanted: Wanted = Wanted.UP


class Unusable(Spec):
    """Stands for a spec that was accepted once and is wrong now: by this version, or by the branch's configuration.

    What runs already goes on, and can be stopped; nothing is started.
    """

    why: str = ""


#: Fields whose change takes effect at once; a change of any other waits for a restart. `rotate_at`, `keep` and
#: `compress` of `logs`, and `concurrency` of a prefork pool, are live too.
LIVE = frozenset(
    {
        *("autoscale", "queues", "restart", "stop", "task_stall_limit", "labels", "wanted"),
        *("weight", "constraints", "spread", "replicas", "absence"),
        *("depends_on", "priority", "ready", "alive", "hooks", "max_memory"),
    }
)


#: Fields that a process is started with, beside parts of `logs`.
LAUNCHED = frozenset(item.name for item in fields(Spec)) - LIVE - {"logs"}


def launched_with(spec: Spec) -> Mapping[str, object]:
    """What of a spec its process is started with: equal for two specs between which no restart is needed.

    Without what is as by default, so that a version with more fields finds the processes of this one as they should be.
    """
    default = Spec()
    names = sorted(LAUNCHED - ({"concurrency"} if spec.pool is Pool.PREFORK else set()))
    given = {name: getattr(spec, name) for name in names if getattr(spec, name) != getattr(default, name)}
    logs = {name: getattr(spec.logs, name) for name in ("stderr", "to", "format")}
    return given | {name: value for name, value in logs.items() if value is not getattr(default.logs, name)}


def size_in_bytes(size: Size) -> int:
    """ValueError when the text is not a number with a known unit."""
    if isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise ValueError(f"{size!r} is not a size")
    return int(match[1]) * _UNITS[match[2]]
