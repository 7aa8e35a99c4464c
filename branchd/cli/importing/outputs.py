"""Where the output of a supervisord process goes, as the `logs` of a spec."""

from typing import Any

from branchd.cli.importing.notes import Note, Verdict
from branchd.cli.importing.supervisord import BACKUPS, MAX_BYTES, Output, Process

CARRIED, CHANGED, DROPPED = Verdict.CARRIED, Verdict.CHANGED, Verdict.DROPPED

#: the daemon's own output under its names
STREAMS = frozenset(
    {"/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2", "/proc/self/fd/1", "/proc/self/fd/2", "/dev/console"}
)

_LEAST_ROTATION, _MOST_ROTATION, _MOST_KEPT = 64 << 10, 1 << 40, 10_000


def logs(process: Process) -> tuple[dict[str, Any], list[Note]]:
    """The `logs`, and a note for each key of the outputs that the section has."""
    outputs = {"stdout": process.stdout, "stderr": process.stderr}
    one_file = process.stdout.logfile == process.stderr.logfile and process.stdout.logfile.startswith("/")
    joined = process.redirect_stderr or (one_file and process.stdout.logfile not in STREAMS)
    kept = {"stdout": process.stdout} if process.redirect_stderr else outputs
    targets = {channel: _target(output) for channel, output in kept.items()}
    to = next(target for target in ("inherit", "journal", "files") if target in targets.values())
    notes: list[Note] = []
    if len(set(targets.values())) > 1:
        text = f"stdout goes to {targets['stdout']} and stderr to {targets['stderr']}: both go to {to}"
        keys = tuple(key for key in sorted(process.given) if key in {"stdout_logfile", "stderr_logfile"})
        notes.append(Note(CHANGED, keys, text))
    spec: dict[str, Any] = {} if joined else {"stderr": "file"}
    if to == "files":
        spec |= _rotation(kept, process.given, notes)
    else:
        spec["to"] = to
    for channel, output in outputs.items():
        if channel in kept:
            notes += _told(channel, output, process.given, to)
        else:
            keys = tuple(f"stderr_{key}" for key in ("logfile", "logfile_maxbytes", "logfile_backups", "syslog")
                         if f"stderr_{key}" in process.given)  # fmt: skip
            notes += [Note(DROPPED, keys, "stderr is joined with stdout, redirect_stderr")] if keys else []
        for key, lost in (("capture_maxbytes", output.capture > 0), ("events_enabled", output.events)):
            if f"{channel}_{key}" in process.given:
                notes.append(_event(f"{channel}_{key}", lost))
    return spec, notes


def _target(output: Output) -> str:
    if output.logfile in STREAMS:
        return "inherit"
    return "journal" if output.logfile == "syslog" or output.syslog else "files"


def _event(key: str, lost: bool) -> Note:
    if not lost:
        return Note(DROPPED, (key,), "there are no events of output")
    return Note(Verdict.UNSUPPORTED, (key,), "there are no events of output",
                "read it with `branchctl logs --follow`, or let the program call what it has to tell")  # fmt: skip


def _rotation(kept: dict[str, Output], given: frozenset[str], notes: list[Note]) -> dict[str, Any]:
    """One rotation for both outputs: the larger."""
    sizes = {output.max_bytes for output in kept.values()}
    backups = {output.backups for output in kept.values()}
    size_keys = tuple(key for channel in kept if (key := f"{channel}_logfile_maxbytes") in given)
    keep_keys = tuple(key for channel in kept if (key := f"{channel}_logfile_backups") in given)
    rotate_at, keep = max(sizes), max(backups)
    if 0 in sizes:
        rotate_at, keep = max(rotate_at, MAX_BYTES), max(keep, BACKUPS)
        text = f"0: never rotated there; here at {_size(rotate_at)}, and {keep} archives are kept"
        notes.append(Note(CHANGED, size_keys, text, "`logs`: rotate_at and keep"))
    elif not _LEAST_ROTATION <= rotate_at <= _MOST_ROTATION:
        rotate_at = min(max(rotate_at, _LEAST_ROTATION), _MOST_ROTATION)
        notes.append(Note(CHANGED, size_keys, f"is {_size(rotate_at)} here"))
    elif len(sizes) > 1:
        notes.append(Note(CHANGED, size_keys, f"one for both outputs: {_size(rotate_at)}"))
    if not 1 <= keep <= _MOST_KEPT:
        keep = min(max(keep, 1), _MOST_KEPT)
        notes.append(Note(CHANGED, keep_keys, f"{keep} archive is kept at least" if keep == 1 else f"is {keep} here"))
    elif len(backups) > 1:
        notes.append(Note(CHANGED, keep_keys, f"one for both outputs: {keep}"))
    return {"rotate_at": _size(rotate_at), "keep": keep}


def _size(size: int) -> str:
    """In the largest unit that it is a multiple of."""
    for unit, exponent in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size % (1 << exponent) == 0:
            return f"{size >> exponent}{unit}"
    return f"{size}B"


def _told(channel: str, output: Output, given: frozenset[str], to: str) -> list[Note]:
    notes = []
    key = f"{channel}_logfile"
    if key in given:
        match output.logfile:
            case "AUTO":
                note = Note(CARRIED, (key,))
            case "NONE" if to == "files":
                note = Note(CHANGED, (key,), "NONE: it is kept all the same")
            case "NONE":
                note = Note(CARRIED, (key,))
            case "syslog":
                note = Note(CHANGED, (key,), "syslog: systemd's journal, by `logs.to`")
            case _ if output.logfile in STREAMS:
                note = Note(CARRIED, (key,), "logs.to = inherit: branchd's own output")
            case _:
                note = Note(CHANGED, (key,), f"it goes to {'a file of branchd' if to == 'files' else to}",
                            "read it with `branchctl logs`; tell what ships or rotates that file")  # fmt: skip
        notes.append(note)
    if f"{channel}_syslog" in given:
        note = Note(CHANGED, (f"{channel}_syslog",), "systemd's journal instead of a file, by `logs.to`")
        notes.append(note if output.syslog else Note(DROPPED, (f"{channel}_syslog",), "nothing goes to syslog"))
    rotation = tuple(name for part in ("maxbytes", "backups") if (name := f"{channel}_logfile_{part}") in given)
    if rotation and to != "files":
        notes.append(Note(DROPPED, rotation, "there is no file to rotate"))
    return notes
