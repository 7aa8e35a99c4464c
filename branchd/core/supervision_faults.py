"""What makes wrong how a program is supervised: restarts, the stop plan, probes, hooks, limits, logs."""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from branchd.core.errors import Fault
from branchd.core.faults import SIGNALS, label_faults, name_fault
from branchd.core.merge import HIDDEN
from branchd.core.spec import Hook, Limits, LogFormat, Logs, LogTarget, Probe, Size, Spec, size_in_bytes

#: of a probe, and shown to everybody who may read: no user and password stand in it
_URL = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(/[!-~]*)?")
#: of a hook, and hidden
_SECRET_URL = re.compile(r"https?://[A-Za-z0-9._:\[\]@-]+(/[!-~]*)?")
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")

#: below it no interpreter starts
LEAST_MEMORY = "1MiB"


def supervision_faults(spec: Spec) -> Iterator[Fault]:
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
    yield from _log_faults(spec.logs)
    yield from _readiness_faults(spec)
    yield from _order_faults(spec)
    for name in ("on_exit", "on_fatal"):
        if (hook := getattr(spec.hooks, name)) is not None:
            yield from _hook_faults(hook, f"/hooks/{name}")
    yield from _limit_faults(spec.limits)
    yield from _size_faults(spec.max_memory, "/max_memory", LEAST_MEMORY)
    yield from label_faults(spec.labels, "/labels")


def outward(spec: Spec) -> Iterator[tuple[str, str]]:
    """What would have the daemon itself connect to other machines: pointers, and what it is."""
    for name in ("on_exit", "on_fatal"):
        hook: Hook | None = getattr(spec.hooks, name)
        if hook is not None and hook.url is not None:
            yield f"/hooks/{name}/url", "a URL that is told of events"
    for pointer, probe in (("/ready/probe", spec.ready.probe), ("/alive", spec.alive)):
        if probe is not None and probe.http is not None and not _loopback(_host(probe.http)):
            yield f"{pointer}/http", "a probe of another machine"
        if probe is not None and probe.tcp is not None and not _loopback(probe.tcp.rpartition(":")[0]):
            yield f"{pointer}/tcp", "a probe of another machine"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "nowhere"
    except ValueError:
        return "nowhere"


def _loopback(host: str) -> bool:
    """Sure to be: the empty host is, and a name may lead anywhere."""
    if host in ("", "localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _log_faults(logs: Logs) -> Iterator[Fault]:
    yield from _size_faults(logs.rotate_at, "/logs/rotate_at", "64KiB", "1TiB")
    yield from _range(logs.keep, "/logs/keep", 1, 10_000)
    if logs.to is not LogTarget.FILES and logs.format is not LogFormat.PLAIN:
        yield Fault("/logs/format", f"the {logs.to} has a format of its own", 'leave it out, or "to": "files"')


def _readiness_faults(spec: Spec) -> Iterator[Fault]:
    yield from _range(spec.ready.after, "/ready/after", 0, 86400, "seconds")
    if spec.ready.within is not None and not spec.ready.after < spec.ready.within <= 7 * 86400:
        hint = "more seconds than `after`, at most 604800"
        yield Fault("/ready/within", f"{spec.ready.within:g} is out of range", hint)
    for pointer, probe in (("/ready/probe", spec.ready.probe), ("/alive", spec.alive)):
        if probe is not None:
            yield from _probe_faults(probe, pointer)


def _probe_faults(probe: Probe, pointer: str) -> Iterator[Fault]:
    if sum([probe.http is not None, probe.tcp is not None, bool(probe.exec)]) != 1:
        yield Fault(pointer, "is not one question", "one of http, tcp and exec")
    if probe.http is not None and not _URL.fullmatch(probe.http):
        hint = 'such as "http://127.0.0.1:8000/health", without user and password'
        yield Fault(f"{pointer}/http", f"{_without_userinfo(probe.http)[:80]!r} is not a URL of a probe", hint)
    if probe.tcp is not None and (not (found := _ADDRESS.fullmatch(probe.tcp)) or not 0 < int(found["port"]) < 1 << 16):
        yield Fault(f"{pointer}/tcp", f"{probe.tcp[:80]!r} is not an address", "HOST:PORT, or :PORT on loopback")
    yield from _word_faults(probe.exec, f"{pointer}/exec")
    yield from _range(probe.period, f"{pointer}/period", 0.1, 86400, "seconds")
    yield from _range(probe.timeout, f"{pointer}/timeout", 0.05, 3600, "seconds")
    yield from _range(probe.failures, f"{pointer}/failures", 1, 1000)


def _hook_faults(hook: Hook, pointer: str) -> Iterator[Fault]:
    if (hook.url is not None) is bool(hook.command):
        yield Fault(pointer, "does not say what is to be told", "one of command and url")
    if hook.url == HIDDEN:
        yield Fault(f"{pointer}/url", f"{HIDDEN} stands for a secret that is not stored here", "give the URL")
    elif hook.url is not None and not _SECRET_URL.fullmatch(hook.url):
        yield Fault(f"{pointer}/url", "is not a URL", 'such as "https://alerts.example/branchd"')
    yield from _word_faults(hook.command, f"{pointer}/command")


def _without_userinfo(url: str) -> str:
    return re.sub(r"//.*@", "//", url)


def _word_faults(words: tuple[str, ...], pointer: str) -> Iterator[Fault]:
    if words and not words[0].strip():
        yield Fault(f"{pointer}/0", "the program's name is empty")
    for index, word in enumerate(words):
        if "\0" in word:
            yield Fault(f"{pointer}/{index}", "a NUL byte cannot be passed to a program")


def _order_faults(spec: Spec) -> Iterator[Fault]:
    yield from _range(spec.priority, "/priority", 0, 1_000_000)
    for index, text in enumerate(spec.depends_on):
        app, colon, name = text.rpartition(":")
        if (colon and name_fault(app, "")) or (name != "*" and name_fault(name, "")) or (name == "*" and not colon):
            yield Fault(f"/depends_on/{index}", f"{text[:130]!r} names no instance", "NAME, APP:NAME or APP:*")


def _limit_faults(limits: Limits) -> Iterator[Fault]:
    yield from _size_faults(limits.memory, "/limits/memory", LEAST_MEMORY)
    yield from _size_faults(limits.address_space, "/limits/address_space", LEAST_MEMORY)
    yield from _size_faults(limits.core, "/limits/core", "0")
    for name, least, most in (
        ("cpu", 0.01, 10_000), ("tasks", 1, 4_194_304), ("open_files", 16, 1 << 30), ("nice", -20, 19),
        ("oom_score_adj", -1000, 1000),
    ):  # fmt: skip
        if (value := getattr(limits, name)) is not None:
            yield from _range(value, f"/limits/{name}", least, most)


def _range(value: float, pointer: str, least: float, most: float, unit: str = "") -> Iterator[Fault]:
    if not least <= value <= most:
        yield Fault(pointer, f"{value:g} is out of range", f"{least:.10g} to {most:.10g} {unit}".rstrip())


def _size_faults(size: Size | None, pointer: str, least: str, most: str = "1024TiB") -> Iterator[Fault]:
    try:
        if size is not None and not size_in_bytes(least) <= size_in_bytes(size) <= size_in_bytes(most):
            yield Fault(pointer, f"{size} is out of range", f"{least} to {most}")
    except ValueError as error:
        yield Fault(pointer, str(error), 'bytes, or text with a unit such as "10MiB"')
