"""What a supervisord configuration says: its programs and groups as processes, every value expanded.

As supervisord 4 means it, defaults and oddities included; what that is here, translate.py says. Nothing is executed.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from msgspec import Struct, field

from branchd.cli.importing import values
from branchd.cli.importing.notes import Note, Verdict
from branchd.cli.importing.reading import Configuration
from branchd.core.value import Value

T = TypeVar("T")
D = TypeVar("D")

#: processes of one section; supervisord has no limit, and a mistyped number should not fill the memory
MOST_PROCESSES = 10_000

PRIORITY = 999
MAX_BYTES = 50 << 20
BACKUPS = 10

_NO_VALUES: Mapping[str, str] = {}
_NO_NAMES: tuple[str, ...] = ()


class Output(Value):
    """stdout or stderr of a process."""

    logfile: str = "AUTO"  #: a path, AUTO, NONE or syslog
    max_bytes: int = MAX_BYTES
    backups: int = BACKUPS
    capture: int = 0  #: bytes
    events: bool = False
    syslog: bool = False


class Process(Value):
    group: str
    name: str
    section: str
    given: frozenset[str]  #: the keys that its section has
    group_priority: int
    priority: int
    numprocs: int
    command: str
    directory: str | None
    umask: int | None
    autostart: bool
    autorestart: str  #: always, never or unexpected
    startsecs: int
    startretries: int
    exitcodes: tuple[int, ...]
    stopsignal: str  #: without SIG
    stopwaitsecs: int
    stopasgroup: bool
    killasgroup: bool
    user: str | None
    environment: Mapping[str, str]  #: with [supervisord]'s
    redirect_stderr: bool
    stdout: Output
    stderr: Output


class Reader(Struct):
    """Reads the values of one section, and keeps what is wrong with each."""

    section: Mapping[str, str]
    expansions: dict[str, object]
    faults: list[Note] = field(default_factory=list)

    def read(
        self, key: str, convert: Callable[[str], T], default: D, *, expanded: bool = True, times: int = 1
    ) -> T | D:
        if (text := self.section.get(key)) is None:
            return default
        try:
            for _ in range(times):
                text = values.expand(text, self.expansions)
            return convert(text)
        except ValueError as error:
            self.faults.append(Note(Verdict.INVALID, (key,), str(error)))
            return default

    def wrong(self, text: str, *keys: str) -> None:
        self.faults.append(Note(Verdict.INVALID, keys, text))


class Daemon(Value):
    """What [supervisord] says that its programs inherit."""

    environment: Mapping[str, str]
    user: str | None
    umask: int | None
    directory: str | None
    nodaemon: bool
    minfds: int


class Parsed(Value):
    processes: tuple[Process, ...]
    daemon: Daemon
    faults: Mapping[str, tuple[Note, ...]]  #: section -> what is wrong with it


def parse(configuration: Configuration, host: str, variables: Mapping[str, str]) -> Parsed:
    """`host` is what %(host_node_name)s means, `variables` what %(ENV_...)s asks."""
    sections = configuration.sections
    known: dict[str, object] = {"here": configuration.here, **{f"ENV_{key}": text for key, text in variables.items()}}
    faults: dict[str, list[Note]] = {}
    daemon = Reader(sections.get("supervisord", {}), known)
    # supervisord expands this one twice, and %% with it
    environment = daemon.read("environment", values.environment, _NO_VALUES, times=2)
    inherited = Daemon(
        environment=environment,
        user=daemon.read("user", str, None),
        umask=daemon.read("umask", values.octal, None),
        directory=daemon.read("directory", str, None),
        nodaemon=daemon.read("nodaemon", values.boolean, False),
        minfds=daemon.read("minfds", values.whole, 1024),
    )
    known |= {f"ENV_{key}": text for key, text in environment.items()}
    faults["supervisord"] = daemon.faults
    processes: list[Process] = []
    grouped: set[str] = set()
    for title, section in sections.items():
        if not title.startswith("group:"):
            continue
        reader = Reader(section, dict(known))
        group = _name(reader, title)
        priority = reader.read("priority", values.whole, PRIORITY)
        for program in reader.read("programs", values.names, _NO_NAMES):
            member = f"program:{program}"
            grouped |= {member, f"fcgi-program:{program}"}
            if member in sections:
                processes += _processes(sections, member, group, priority, environment, known, host, faults)
            elif f"fcgi-program:{program}" not in sections:
                reader.wrong(f"there is no [{member}]", "programs")
        faults.setdefault(title, []).extend(reader.faults)
    for title, section in sections.items():
        if title.startswith("program:") and title not in grouped:
            reader = Reader(section, dict(known))
            group = _name(reader, title)
            own = reader.read("priority", values.whole, PRIORITY) if not reader.faults else PRIORITY
            processes += _processes(sections, title, group, own, environment, known, host, faults)
    taken: set[tuple[str, str]] = set()
    for process in processes:
        if (process.group, process.name) in taken:
            text = f"{process.group}:{process.name} is there twice"
            faults.setdefault(process.section, []).append(Note(Verdict.INVALID, ("process_name",), text))
        taken.add((process.group, process.name))
    wrong = {title: tuple(dict.fromkeys(found)) for title, found in faults.items() if found}
    return Parsed(tuple(processes), inherited, wrong)


def _name(reader: Reader, title: str) -> str:
    text = title.split(":", 1)[1]
    try:
        return values.process_name(text)
    except ValueError as error:
        reader.wrong(str(error))
        return text


def _processes(
    sections: Mapping[str, Mapping[str, str]],
    title: str,
    group: str,
    group_priority: int,
    environment: Mapping[str, str],
    known: Mapping[str, object],
    host: str,
    faults: dict[str, list[Note]],
) -> list[Process]:
    """None where the section has faults, which are kept in `faults`."""
    section = sections[title]
    own = {"program_name": title.split(":", 1)[1].strip(), "host_node_name": host, "group_name": group}
    reader = Reader(section, {**known, **own})
    _name(reader, title)
    count = reader.read("numprocs", values.whole, 1)
    first = reader.read("numprocs_start", values.whole, 0)
    name = reader.read("process_name", values.process_name, "%(program_name)s", times=0)
    stop_group = reader.read("stopasgroup", values.boolean, False)
    kill_group = reader.read("killasgroup", values.boolean, stop_group)
    common = {
        "priority": reader.read("priority", values.whole, PRIORITY),
        "autostart": reader.read("autostart", values.boolean, True),
        "autorestart": reader.read("autorestart", values.restarting, "unexpected"),
        "startsecs": reader.read("startsecs", values.whole, 1),
        "startretries": reader.read("startretries", values.whole, 3),
        "exitcodes": reader.read("exitcodes", values.exit_codes, (0,)),
        "stopsignal": reader.read("stopsignal", values.signal_name, "TERM"),
        "stopwaitsecs": reader.read("stopwaitsecs", values.whole, 10),
        "user": reader.read("user", str, None),
        "umask": reader.read("umask", values.octal, None),
        "redirect_stderr": reader.read("redirect_stderr", values.boolean, False),
    }
    if count > 1 and "%(process_num)" not in name:
        reader.wrong("needs %(process_num)s where numprocs is above 1", "process_name")
    if count > MOST_PROCESSES:
        reader.wrong(f"{count} is more than {MOST_PROCESSES}", "numprocs")
    if stop_group and not kill_group:
        reader.wrong("supervisord refuses stopasgroup=true with killasgroup=false", "stopasgroup", "killasgroup")
    if "command" not in section:
        reader.wrong("there is no command")
    made: list[Process] = []
    for number in range(first, first + count) if not reader.faults else ():
        reader.expansions |= {"process_num": number, "numprocs": count, **known}
        additions = reader.read("environment", values.environment, _NO_VALUES)
        reader.expansions |= {f"ENV_{key}": text for key, text in additions.items()}
        made.append(
            Process(
                group=group, name=reader.read("process_name", str, str(own["program_name"])), section=title,
                given=frozenset(section), group_priority=group_priority, numprocs=count,
                command=reader.read("command", str, ""), directory=reader.read("directory", str, None),
                stopasgroup=stop_group, killasgroup=kill_group, environment={**environment, **additions},
                stdout=_output(reader, "stdout"), stderr=_output(reader, "stderr"), **common,  # type: ignore[arg-type]
            )
        )  # fmt: skip
        if reader.faults:
            break
    faults.setdefault(title, []).extend(reader.faults)
    return made if not reader.faults else []


def _output(reader: Reader, channel: str) -> Output:
    # like the environment of [supervisord], a logfile is expanded twice
    logfile = reader.read(f"{channel}_logfile", str, "AUTO", times=2)
    word = {"auto": "AUTO", "none": "NONE", "off": "NONE", "syslog": "syslog"}.get(logfile.lower(), logfile)
    return Output(
        logfile=word,
        max_bytes=reader.read(f"{channel}_logfile_maxbytes", values.size, MAX_BYTES),
        backups=reader.read(f"{channel}_logfile_backups", values.whole, BACKUPS),
        capture=reader.read(f"{channel}_capture_maxbytes", values.size, 0),
        events=reader.read(f"{channel}_events_enabled", values.boolean, False),
        syslog=reader.read(f"{channel}_syslog", values.boolean, False),
    )
