"""Logs: those of processes, and the daemon's own end of its log, read by offsets, followed and cleared.

Offsets count the bytes of a log from the first that was ever written, so rotation moves none; supervisord's begin anew
with each file.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any

from branchd.api.door import names
from branchd.api.door.faults import Fault, RpcError, told
from branchd.api.door.processes import each
from branchd.api.door.states import has_file
from branchd.api.door.table import INT, NAME, Door, Methods, Param
from branchd.branch.service import Service
from branchd.core.access import Scope
from branchd.core.errors import BranchdError, Conflict
from branchd.core.values import Stream
from branchd.wire.resources import Instance

method = Methods()

#: bytes of one answer; who wants more goes on at the offset behind them. Nobody else has a turn while it is written
MOST = 256 << 10

#: bytes before the end at which following begins, as supervisord's
HEAD = 1024

#: bytes that are sent at a time to who follows
CHUNK = 64 << 10

#: seconds between two looks for new bytes while somebody follows
PAUSE = 0.2

OFFSET = Param(INT, "offset", "The first byte; a negative one counts from the end, and goes with a length of 0.")
LENGTH = Param(INT, "length", "The most bytes; 0: up to the end.")
READ = NAME, OFFSET, LENGTH

#: of a log: LogFiles.read() for one file
Read = Callable[[int, int], Awaitable[tuple[bytes, int, int]]]


def of_process(service: Service, instance: Instance, stream: Stream) -> Read | None:
    """None where there is no such file."""
    return partial(service.logs.read, names.key(instance), stream) if has_file(instance.effective, stream) else None


async def follow(read: Read) -> AsyncGenerator[bytes, None]:
    """The end of a log, then what is appended, as it comes, until the caller stops asking, or it was taken away."""
    try:
        data, start, _ = await read(-HEAD, HEAD)
        while True:
            if data:
                yield data
            else:
                await asyncio.sleep(PAUSE)
            wanted = start + len(data)
            data, start, _ = await read(wanted, CHUNK)
            if start > wanted:
                yield b"[branchd: %d bytes were rotated away or cleared]\n" % (start - wanted)
    except Conflict as error:
        yield f"[branchd: {error.detail}; {error.hint}]\n".encode()


async def read_log(read: Read, offset: int, length: int) -> str:
    """RpcError BAD_ARGUMENTS."""
    if length < 0 or (offset < 0 and length):
        raise RpcError(Fault.BAD_ARGUMENTS)
    if offset < 0:
        offset = max(offset, -MOST)
        length = -offset
    data, _, _ = await _reading(read(offset, min(length or MOST, MOST)))
    return data.decode(errors="replace")


async def tail_log(read: Read, offset: int, length: int) -> list[Any]:
    """The bytes that supervisord's tailFile would give: once the log has passed offset + length, the last of it."""
    length = max(min(length, MOST), 0)
    _, _, end = await _reading(read(0, 0))
    overflow = end > offset + length
    if offset >= end:
        length = 0
    start = max(end - length, 0) if overflow or offset + length > end else offset
    data, _, _ = await _reading(read(start, length))
    return [data.decode(errors="replace"), end, overflow]


async def _reading(reading: Awaitable[tuple[bytes, int, int]]) -> tuple[bytes, int, int]:
    try:
        return await reading
    except BranchdError as error:
        raise told(error) from None


# Of processes


@method("supervisor.readProcessStdoutLog", "supervisor.readProcessLog", scope=Scope.READ, returns="string", params=READ)
async def read_process_stdout_log(door: Door, name: str, offset: int, length: int) -> str:
    """Read from a process's standard output."""
    return await _read(door, name, Stream.STDOUT, offset, length)


@method("supervisor.readProcessStderrLog", scope=Scope.READ, returns="string", params=READ)
async def read_process_stderr_log(door: Door, name: str, offset: int, length: int) -> str:
    """Read from a process's standard error; NO_FILE where it goes to its standard output."""
    return await _read(door, name, Stream.STDERR, offset, length)


async def _read(door: Door, name: str, stream: Stream, offset: int, length: int) -> str:
    read = of_process(door.service, names.instance(door.service, name), stream)
    if read is None:
        raise RpcError(Fault.NO_FILE, name)
    return await read_log(read, offset, length)


@method("supervisor.tailProcessStdoutLog", "supervisor.tailProcessLog", scope=Scope.READ, returns="array", params=READ)
async def tail_process_stdout_log(door: Door, name: str, offset: int, length: int) -> list[Any]:
    """The end of a process's standard output, where it ends, and whether there was more than was asked for."""
    return await _tail(door, name, Stream.STDOUT, offset, length)


@method("supervisor.tailProcessStderrLog", scope=Scope.READ, returns="array", params=READ)
async def tail_process_stderr_log(door: Door, name: str, offset: int, length: int) -> list[Any]:
    """The end of a process's standard error, where it ends, and whether there was more than was asked for."""
    return await _tail(door, name, Stream.STDERR, offset, length)


async def _tail(door: Door, name: str, stream: Stream, offset: int, length: int) -> list[Any]:
    read = of_process(door.service, names.instance(door.service, name), stream)
    return ["", 0, False] if read is None else await tail_log(read, offset, length)


@method("supervisor.clearProcessLogs", "supervisor.clearProcessLog", scope=Scope.ADMIN, returns="boolean",
        params=(NAME,))  # fmt: skip
async def clear_process_logs(door: Door, name: str) -> bool:
    """Empty a process's logs, and delete their archives."""
    return await _clear(door, names.instance(door.service, name))


@method("supervisor.clearAllProcessLogs", scope=Scope.ADMIN, returns="array")
async def clear_all_process_logs(door: Door) -> list[dict[str, Any]]:
    """Empty the logs of all processes, and delete their archives."""
    return await each(door, door.service.instances.list(), _clear)


async def _clear(door: Door, instance: Instance) -> bool:
    try:
        await door.service.logs.clear(names.key(instance))
    except BranchdError as error:
        raise told(error) from None
    return True


# The daemon's own: tracebacks may stand there, with values that the API hides, so it is for admins


@method("supervisor.readLog", "supervisor.readMainLog", scope=Scope.ADMIN, returns="string", params=(OFFSET, LENGTH))
async def read_main_log(door: Door, offset: int, length: int) -> str:
    """Read from the end of the daemon's own log that it keeps in memory."""
    return await read_log(door.own_log.read, offset, length)


@method("supervisor.clearLog", scope=Scope.ADMIN, returns="boolean")
async def clear_log(door: Door) -> bool:
    """Forget the end of the daemon's own log; what went to its standard error or the journal stays there."""
    door.own_log.clear()
    return True
