"""What processes are doing, in supervisord's words, numbers and phrases."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from branchd.api.door import names
from branchd.api.door.table import NAME, Door, Methods
from branchd.branch import output
from branchd.core.access import Scope
from branchd.core.lifecycle import State
from branchd.core.spec import LogTarget, Stderr
from branchd.core.values import Key, Stream
from branchd.wire.resources import Instance

method = Methods()

#: supervisord's numbers of the states
CODES = {
    State.STOPPED: 0, State.STARTING: 10, State.RUNNING: 20, State.BACKOFF: 30, State.STOPPING: 40,
    State.EXITED: 100, State.FATAL: 200,
}  # fmt: skip


@method("supervisor.getProcessInfo", scope=Scope.READ, returns="struct", params=(NAME,))
async def get_process_info(door: Door, name: str) -> dict[str, Any]:
    """What a process is doing."""
    return _info(door, names.instance(door.service, name), time.time())


@method("supervisor.getAllProcessInfo", scope=Scope.READ, returns="array")
async def get_all_process_info(door: Door) -> list[dict[str, Any]]:
    """What every process is doing, by their names."""
    now = time.time()
    return [_info(door, instance, now) for instance in door.service.instances.list()]


def _info(door: Door, instance: Instance, now: float) -> dict[str, Any]:
    status = instance.status
    started = _seconds(status.started_at) or door.service.instances.started_at(instance.app, instance.name) or 0.0
    last = status.last_exit
    stopped = 0.0 if last is None else _seconds(last.at)
    exit_status = 0
    if last is not None and status.pid is None:
        exit_status = -1 if last.code is None else last.code  # -1: by a signal, or nobody could tell
    stdout, stderr = (path(door, names.key(instance), instance.effective, stream) for stream in Stream)
    info = {
        "name": instance.name,
        "group": instance.app,
        "start": int(started),
        "stop": int(stopped),
        "now": int(now),
        "state": CODES[status.state],
        "statename": status.state.value,
        "spawnerr": status.reason if status.state in (State.BACKOFF, State.FATAL) else "",
        "exitstatus": exit_status,
        "logfile": stdout,
        "stdout_logfile": stdout,
        "stderr_logfile": stderr,
        "pid": status.pid or 0,
    }
    return info | {"description": _description(instance, started, stopped, now)}


def has_file(spec: Mapping[str, Any], stream: Stream) -> bool:
    """Of an effective spec: whether what goes to this stream is kept in a file of its own."""
    logs = spec.get("logs", {})
    return output.has_file(logs.get("to", LogTarget.FILES), logs.get("stderr", Stderr.JOIN), stream)


def path(door: Door, key: Key, spec: Mapping[str, Any], stream: Stream) -> str:
    """Empty where there is none."""
    return door.service.logs.path(key, stream) if has_file(spec, stream) else ""


def _seconds(timestamp: str | None) -> float:
    return 0.0 if timestamp is None else datetime.fromisoformat(timestamp).timestamp()


def _description(instance: Instance, started: float, stopped: float, now: float) -> str:
    status = instance.status
    match status.state:
        case State.RUNNING:
            return f"pid {status.pid}, uptime {_clock(max(0, int(now) - int(started)))}"
        case State.BACKOFF | State.FATAL:
            return status.reason or f'unknown error (try "tail {instance.app}:{instance.name}")'
        case State.STOPPED | State.EXITED if stopped:
            return time.strftime("%b %d %I:%M %p", time.localtime(stopped))
        case State.STOPPED | State.EXITED:
            return status.reason or "Not started"
        case _:
            return status.reason


def _clock(seconds: int) -> str:
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{days} day{'s' if days > 1 else ''}, {clock}" if days else clock
