"""Whether what an instance writes can be read from here, and where else it is."""

from branchd.core.errors import Conflict
from branchd.core.spec import Logs, LogTarget, Stderr
from branchd.core.values import Key, Stream


def has_file(to: LogTarget, stderr: Stderr, stream: Stream) -> bool:
    """Whether what goes to this stream is kept in a file of its own; `to`, `stderr` as in Logs."""
    return to == LogTarget.FILES and not (stream is Stream.STDERR and stderr == Stderr.JOIN)


def taken_away(key: Key, stream: Stream, where: str) -> Conflict:
    """Of a log that LogFiles.lost() names, with what it says of it."""
    detail = f"{stream}.log of {key} was removed, moved or replaced while it ran: it writes to {where}"
    return Conflict(detail, f"branchctl restart {key}: it opens a new one")


def check_readable(key: Key, logs: Logs, stream: Stream) -> None:
    """Conflict that says where it is."""
    if has_file(logs.to, logs.stderr, stream):
        return
    if logs.to is LogTarget.JOURNAL:
        raise Conflict(f"the output of {key} goes to the journal of its machine", f"there: journalctl -t {key}")
    if logs.to is LogTarget.INHERIT:
        raise Conflict(
            f"the output of {key} goes where the daemon's own does",
            "there: docker logs, kubectl logs, or journalctl -u branchd, by how the daemon runs",
        )
    raise Conflict(
        "its stderr is joined with its stdout",
        'read stream=stdout, or set "logs": {"stderr": "file"} and restart it',
    )
