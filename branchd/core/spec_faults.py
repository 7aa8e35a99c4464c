"""What makes a spec wrong: every fault at once, each with its place and what to do.

Types were checked where the spec was decoded (wire/spec.py); here stands what the values mean, alone and together.
How it is supervised stands in supervision_faults.py. No I/O: whether a program or a folder exists is seen at the spawn,
for another branch may have it.
"""

import re
from collections.abc import Iterator, Mapping

from branchd.core.errors import Fault
from branchd.core.faults import escaped, label_faults, name_fault, queue_fault
from branchd.core.merge import HIDDEN
from branchd.core.spec import MOST_REPLICAS, Kind, Pool, Secret, Spec
from branchd.core.supervision_faults import supervision_faults

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: names that systemd allows
_CREDENTIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?")

#: Flags of `celery worker` that the driver sets itself from the spec's fields, and the field to use instead.
OWNED_FLAGS = {
    "-A": "application", "--app": "application", "-b": "broker", "--broker": "broker", "--workdir": "directory",
    "-n": "", "--hostname": "", "--pidfile": "", "-f": "", "--logfile": "", "-D": "", "--detach": "", "-S": "",
    "--statedb": "", "--uid": "user", "--gid": "group", "--umask": "umask", "-P": "pool", "--pool": "pool",
    "-c": "concurrency", "--concurrency": "concurrency", "--autoscale": "autoscale", "-Q": "queues",
    "--queues": "queues", "-X": "queues", "--exclude-queues": "queues", "--executable": "python",
    "-C": "", "--config": "", "--loader": "", "--result-backend": "",
}  # fmt: skip


def faults(spec: Spec) -> list[Fault]:
    """Everything that is wrong with the values of a spec, whether or not it is complete."""
    return [*_program_faults(spec), *_celery_faults(spec), *supervision_faults(spec), *_placement_faults(spec)]


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


def _program_faults(spec: Spec) -> Iterator[Fault]:
    for name in ("command", "arguments"):
        for index, word in enumerate(getattr(spec, name)):
            if "\0" in word:
                yield Fault(f"/{name}/{index}", "a NUL byte cannot be passed to a program")
    if spec.command and not spec.command[0].strip():
        yield Fault("/command/0", "the program's name is empty")
    for name in ("directory", "python", "application", "broker", "env_file"):
        value = getattr(spec, name)
        if value is not None and (not value.strip() or not value.isprintable()):
            yield Fault(f"/{name}", "must be printable text that is not empty")
        elif value is not None and name == "directory" and not value.startswith("/"):
            yield Fault(f"/{name}", f"{value!r} is not absolute", "give the whole path, beginning with /")
        elif value is not None and name == "env_file" and not (value[:1] == "/" or _CREDENTIAL.fullmatch(value)):
            hint = "the whole path, beginning with /, or the name of a credential of the daemon"
            yield Fault(f"/{name}", f"{value[:80]!r} is not absolute", hint)
    for name, value in spec.env.items():
        pointer = f"/env/{escaped(name)}"
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


def _placement_faults(spec: Spec) -> Iterator[Fault]:
    if not 0 <= spec.weight <= 10_000:
        yield Fault("/weight", f"{spec.weight} is out of range", "0 to 10000")
    yield from label_faults(spec.constraints, "/constraints")
    if spec.spread is not None and (fault := name_fault(spec.spread, "/spread", "label")):
        yield fault
    if spec.replicas is not None and not 0 <= spec.replicas <= MOST_REPLICAS:
        yield Fault("/replicas", f"{spec.replicas} is out of range", f"0 to {MOST_REPLICAS}")
    if spec.absence != "never" and not 0 <= spec.absence <= 30 * 86400:
        yield Fault("/absence", f"{spec.absence:g} is out of range", '0 to 2592000 seconds, or "never"')
