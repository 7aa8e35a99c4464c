"""What makes a spec, a name or a queue wrong: every fault at once, each with its place and what to do.

Types were checked where the spec was decoded (wire/spec.py); here stands what the values mean, alone and together.
No I/O: whether a program or a folder exists is seen at the spawn, for another branch may have it.
"""

import re
from collections.abc import Iterator, Mapping

from branchd.core.errors import Fault
from branchd.core.merge import HIDDEN
from branchd.core.spec import MOST_REPLICAS, Kind, Pool, Secret, Spec, size_in_bytes

#: names of branches, apps, instances, labels: safe in a path, a URL, a shell and a selector
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?")


def name_fault(name: str, pointer: str, what: str = "name") -> Fault | None:
    if NAME.fullmatch(name):
        return None
    return Fault(
        pointer, f"{name[:80]!r} is not a valid {what}",
        "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    )  # fmt: skip


def queue_fault(name: str, pointer: str) -> Fault | None:
    if (
        0 < len(name.encode(errors="replace")) <= 255
        and name.isprintable()
        and "," not in name
        and name.strip() == name
    ):
        return None
    return Fault(
        pointer, f"{name[:80]!r} is not a valid queue name", "1 to 255 bytes of printable text without a comma"
    )


#: signals that a stop plan, or a person, may send
SIGNALS = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL", "CONT", "STOP", "WINCH", "TTIN", "TTOU", "ABRT")

_SIGNALS = "one of " + ", ".join(SIGNALS)

#: Flags of `celery worker` that the driver sets itself from the spec's fields, and the field to use instead.
OWNED_FLAGS = {
    "-A": "application", "--app": "application", "-b": "broker", "--broker": "broker", "--workdir": "directory",
    "-n": "", "--hostname": "", "--pidfile": "", "-f": "", "--logfile": "", "-D": "", "--detach": "", "-S": "",
    "--statedb": "", "--uid": "user", "--gid": "group", "--umask": "umask", "-P": "pool", "--pool": "pool",
    "-c": "concurrency", "--concurrency": "concurrency", "--autoscale": "autoscale", "-Q": "queues",
    "--queues": "queues", "-X": "queues", "--exclude-queues": "queues", "--executable": "python",
    "-C": "", "--config": "", "--loader": "", "--result-backend": "",
}  # fmt: skip


def autoscale_fault(pool: Pool, pointer: str) -> Fault:
    return Fault(pointer, f"the {pool} pool cannot be autoscaled", "use the prefork pool, or concurrency")


def faults(spec: Spec) -> list[Fault]:
    """Everything that is wrong with the values of a spec, whether or not it is complete."""
    return [*_program_faults(spec), *_celery_faults(spec), *_supervision_faults(spec), *_placement_faults(spec)]


def missing(spec: Spec) -> list[Fault]:
    """What an effective spec lacks to be started. An app alone may be incomplete; its instances fill it up."""
    if spec.kind is Kind.COMMAND and not spec.command:
        return [
            Fault("/command", "a command instance needs a command", 'give a list such as ["gunicorn", "shop.wsgi"]')
        ]
    if spec.kind is Kind.CELERY and not spec.application:
        return [
            Fault("/application", "a celery instance needs an application",
                  'give what `celery -A` takes, such as "proj", or "kind": "command" for any other program')
        ]  # fmt: skip
    return []


def strayed(own: Mapping[str, object]) -> list[Fault]:
    """What stands in an instance's own spec, and belongs to its app."""
    return [
        Fault(f"/{name}", "an instance has no replicas", "set it in the spec of the app")
        for name in ("replicas", "absence")
        if name in own
    ]


def _escaped(name: str) -> str:
    """As one step of a JSON pointer (RFC 6901, section 3)."""
    return name.replace("~", "~0").replace("/", "~1")


def _program_faults(spec: Spec) -> Iterator[Fault]:
    for name in ("command", "arguments"):
        for index, word in enumerate(getattr(spec, name)):
            if "\0" in word:
                yield Fault(f"/{name}/{index}", "a NUL byte cannot be passed to a program")
    if spec.command and not spec.command[0].strip():
        yield Fault("/command/0", "the program's name is empty")
    for name in ("directory", "python", "application", "broker"):
        value = getattr(spec, name)
        if value is not None and (not value.strip() or not value.isprintable()):
            yield Fault(f"/{name}", "must be printable text that is not empty")
        elif value is not None and name == "directory" and not value.startswith("/"):
            yield Fault("/directory", f"{value!r} is not absolute", "give the whole path, beginning with /")
    for name, value in spec.env.items():
        pointer = f"/env/{_escaped(name)}"
        text = value.secret if isinstance(value, Secret) else value
        if not _ENVIRONMENT_NAME.fullmatch(name):
            yield Fault(pointer, f"{name[:80]!r} is not a name of the environment", "letters, digits and '_'")
        elif name.startswith("BRANCHD_"):
            yield Fault(pointer, "names that begin with BRANCHD_ are branchd's own")
        if "\0" in text:
            yield Fault(pointer, "a NUL byte cannot be passed to a program")
        if text == HIDDEN:
            yield Fault(pointer, f"{HIDDEN} stands for a secret that is not stored here", "give its value")
    if spec.broker == HIDDEN:
        yield Fault("/broker", f"{HIDDEN} stands for a secret that is not stored here", "give the URL")
    elif spec.broker is not None and "://" not in spec.broker:
        yield Fault("/broker", "is not a URL", 'such as "amqp://user:password@host//"')
    for name in ("user", "group"):
        value = getattr(spec, name)
        if value is not None and not _ACCOUNT.fullmatch(value):
            yield Fault(f"/{name}", f"{value[:80]!r} is not a valid {name} name")
    if spec.umask is not None and not re.fullmatch(r"0?[0-7]{3}", spec.umask):
        yield Fault("/umask", f"{spec.umask[:80]!r} is not an octal mask", 'three octal digits as text, such as "027"')


def _celery_faults(spec: Spec) -> Iterator[Fault]:
    if spec.concurrency is not None and not 1 <= spec.concurrency <= 10_000:
        yield Fault("/concurrency", f"{spec.concurrency} is out of range", "1 to 10000")
    if spec.autoscale is not None:
        if spec.pool is not Pool.PREFORK:
            yield Fault(
                "/autoscale", f"the {spec.pool} pool cannot be autoscaled", "use the prefork pool, or concurrency"
            )
        if not 1 <= spec.autoscale.min <= spec.autoscale.max <= 10_000:
            yield Fault("/autoscale", f"min {spec.autoscale.min}, max {spec.autoscale.max} is not a range",
                        "1 <= min <= max <= 10000")  # fmt: skip
    for index, queue in enumerate(spec.queues or ()):
        if fault := queue_fault(queue, f"/queues/{index}"):
            yield fault
    if spec.queues is not None and len(set(spec.queues)) < len(spec.queues):
        yield Fault("/queues", "names a queue twice")
    if spec.queues is not None and not spec.queues:
        yield Fault(
            "/queues", "a worker consumes from at least one queue", "leave the field out for the application's own"
        )
    if spec.kind is Kind.CELERY:
        for index, argument in enumerate(spec.arguments):
            flag = argument.split("=", 1)[0] if argument.startswith("--") else argument[:2]
            if flag in OWNED_FLAGS:
                instead = f"use the field {OWNED_FLAGS[flag]}" if OWNED_FLAGS[flag] else "leave it out"
                yield Fault(f"/arguments/{index}", f"{flag} is set by branchd", instead)
    if not 0 < spec.task_stall_limit <= 30 * 86400:
        yield Fault("/task_stall_limit", f"{spec.task_stall_limit:g} is out of range", "above 0, at most 30 days")


def _supervision_faults(spec: Spec) -> Iterator[Fault]:
    restart = spec.restart
    if not 0 <= restart.floor <= restart.ceiling <= 86400:
        yield Fault("/restart", f"floor {restart.floor:g}, ceiling {restart.ceiling:g} is not a range",
                    "0 <= floor <= ceiling <= 86400 seconds")  # fmt: skip
    if not 0 <= restart.max_restarts <= 1_000_000:
        yield Fault("/restart/max_restarts", f"{restart.max_restarts} is out of range", "0 to 1000000")
    if not 0 < restart.window <= 30 * 86400:
        yield Fault("/restart/window", f"{restart.window:g} is out of range", "above 0, at most 30 days")
    for index, code in enumerate(restart.expected_exit_codes):
        if not 0 <= code <= 255:
            yield Fault(f"/restart/expected_exit_codes/{index}", f"{code} is not an exit code", "0 to 255")
    if spec.stop is not None and not 1 <= len(spec.stop) <= 10:
        yield Fault("/stop", f"{len(spec.stop)} steps", "1 to 10 steps")
    for index, step in enumerate(spec.stop or ()):
        if step.signal.removeprefix("SIG") not in SIGNALS:
            yield Fault(
                f"/stop/{index}/signal", f"{step.signal[:20]!r} is not a signal", "one of " + ", ".join(SIGNALS)
            )
        if not 0 <= step.patience <= 7 * 86400:
            yield Fault(f"/stop/{index}/patience", f"{step.patience:g} is out of range", "0 to 604800 seconds")
    try:
        if not 64 << 10 <= size_in_bytes(spec.logs.rotate_at) <= 1 << 40:
            yield Fault("/logs/rotate_at", f"{spec.logs.rotate_at} is out of range", "64KiB to 1TiB")
    except ValueError as error:
        yield Fault("/logs/rotate_at", str(error), 'bytes, or text with a unit such as "10MiB"')
    if not 1 <= spec.logs.keep <= 10_000:
        yield Fault("/logs/keep", f"{spec.logs.keep} is out of range", "1 to 10000")
    yield from _label_faults(spec.labels, "/labels")


def _placement_faults(spec: Spec) -> Iterator[Fault]:
    if not 0 <= spec.weight <= 10_000:
        yield Fault("/weight", f"{spec.weight} is out of range", "0 to 10000")
    yield from _label_faults(spec.constraints, "/constraints")
    if spec.spread is not None and (fault := name_fault(spec.spread, "/spread", "label")):
        yield fault
    if spec.replicas is not None and not 0 <= spec.replicas <= MOST_REPLICAS:
        yield Fault("/replicas", f"{spec.replicas} is out of range", f"0 to {MOST_REPLICAS}")
    if spec.absence != "never" and not 0 <= spec.absence <= 30 * 86400:
        yield Fault("/absence", f"{spec.absence:g} is out of range", '0 to 2592000 seconds, or "never"')


def _label_faults(labels: Mapping[str, str], pointer: str) -> Iterator[Fault]:
    for name, value in labels.items():
        if fault := name_fault(name, f"{pointer}/{_escaped(name)}", "label"):
            yield fault
        if len(value) > 255 or not value.isprintable():
            yield Fault(f"{pointer}/{_escaped(name)}", "is not a valid value", "at most 255 printable characters")
