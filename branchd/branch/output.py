"""Whether what an instance writes can be read from here, and where else it is."""

from branchd.core.errors import Conflict
from branchd.core.spec import Logs, LogTarget, Stderr
from branchd.core.values import Key, Stream


def check_readable(key: Key, logs: Logs, stream: Stream) -> None:
    """Conflict that says where it is."""
    if logs.to is LogTarget.JOURNAL:
        raise Conflict(f"the output of {key} goes to the journal of its machine", f"there: journalctl -t {key}")
    if logs.to is LogTarget.INHERIT:
        raise Conflict(
            f"the output of {key} goes where the daemon's own does",
            "there: docker logs, kubectl logs, or journalctl -u branchd, by how the daemon runs",
        )
    if stream is Stream.STDERR and logs.stderr is Stderr.JOIN:
        raise Conflict(
            "its stderr is joined with its stdout",
            'read stream=stdout, or set "logs": {"stderr": "file"} and restart it',
        )
