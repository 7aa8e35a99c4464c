"""What is told of an instance when its state changes: the event, and the last words of the process that ended."""

import asyncio
from collections.abc import Sequence
from typing import Any

from branchd.branch.journal import Told
from branchd.branch.output import check_readable
from branchd.branch.records import RunRecord
from branchd.branch.world import World
from branchd.core.errors import Conflict, Unavailable
from branchd.core.lifecycle import Machine, State
from branchd.core.spec import Logs, Stderr
from branchd.core.values import Key, Stream

#: lines of the standard error that are kept with an instance's end, and bytes of all of them
LAST_WORDS = 50
LAST_BYTES = 16 << 10

#: seconds that reading them may take: the next start waits for the commit that has them
READING = 1.0

#: states that a process's end leads to, and that tell of it
_ENDS = (State.BACKOFF, State.EXITED, State.FATAL)


async def last_words(world: World, key: Key, logs: Logs, state: State) -> tuple[str, ...]:
    """Empty in a state that a process goes on in, or that somebody asked for."""
    if state not in _ENDS:
        return ()
    stream = Stream.STDOUT if logs.stderr is Stderr.JOIN else Stream.STDERR
    try:
        check_readable(key, logs, stream)
        async with asyncio.timeout(READING):
            text = await world.logs.tail(key, stream, LAST_WORDS)
    except TimeoutError:
        return (f"[branchd: they could not be read within {READING:g} s; its log may have them]",)
    except (Conflict, Unavailable) as error:
        return (f"[branchd: {': '.join(filter(None, (error.detail, error.hint)))}]",)
    return tuple(text[-LAST_BYTES:].decode(errors="replace").splitlines())


def transition(before: Machine, run: RunRecord, tasks_in_flight: Sequence[str], words: Sequence[str]) -> Told:
    """The event of a change from one state to another, or to another process; `words`: the last ones."""
    machine = run.machine
    pid = None if run.identity is None else run.identity.pid
    data: dict[str, Any] = {"from": before.state.value, "to": machine.state.value, "reason": machine.reason, "pid": pid}
    if before.alive and not machine.alive:
        data["exit"] = str(run.last_exit)
        data["tasks_in_flight"] = list(tasks_in_flight)
    if machine.state in _ENDS:
        data["last_words"] = list(words)
    return ("instance.state", run.key.app, run.key.name, data)
