"""What one image of this process leaves to the next when it is replaced in place, and the replacing itself.

A process that calls execve keeps its pid, its children, their exit codes, and the descriptors that it wants to keep.
What a service manager hands over at a start (LISTEN_FDS, sd_listen_fds(3)) comes here too. Whether to replace it, and
what is to be finished first, is decided elsewhere.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, MutableMapping
from typing import NoReturn

from branchd.adapters.held_signals import HELD, hold_signals
from branchd.core.errors import Fatal
from branchd.core.value import Value

#: for the next image: {"pid", "lock", "sockets"}; only a process with that pid takes it up
INHERITED = "BRANCHD_INHERITED"

#: the first descriptor of LISTEN_FDS, as sd_listen_fds(3) has it
FIRST = 3

#: of a command line: what is said once, and not to the next image
ONCE = frozenset({"--new-id", "--same-machine"})

#: seconds that the trial of a start may take
TRIAL = 60.0

#: characters of what a trial said
LONGEST = 2000


class Listening(Value):
    socket: socket.socket
    ours: bool  #: False: the service manager made it
    inode: int = 0  #: of a unix socket's path; 0: not known


class Handover(Value):
    sockets: tuple[Listening, ...] = ()
    lock: int | None = None  #: descriptor of the state folder's lock, held
    again: bool = False  #: this image takes the place of another one


def receive(environment: MutableMapping[str, str]) -> Handover:
    """To be called once, early: takes its variables out of `environment`, so that no child gets them.

    No child gets the descriptors either. Those of somebody else, by the pid that stands beside them, are left alone.
    Fatal where the service manager gives something else than a socket.
    """
    told = environment.pop(INHERITED, "")
    listen = {name: environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if told:
        inherited = json.loads(told)
        if inherited["pid"] == os.getpid():
            sockets = tuple(Listening(_taken(number), ours, inode) for number, ours, inode in inherited["sockets"])
            lock = inherited["lock"]
            if lock is not None:
                os.set_inheritable(lock, False)
            return Handover(sockets, lock, again=True)
    if listen["LISTEN_PID"] == str(os.getpid()) and listen["LISTEN_FDS"].isdecimal():
        numbers = range(FIRST, FIRST + int(listen["LISTEN_FDS"]))
        taken = [_taken(number) for number in numbers]
        for other in [one for one in taken if not _listens(one)]:
            taken.remove(other)
            other.close()
        return Handover(tuple(Listening(one, False) for one in taken))
    return Handover()


def _taken(number: int) -> socket.socket:
    """Fatal."""
    try:
        os.set_inheritable(number, False)
        return socket.socket(fileno=number)
    except OSError as error:
        raise Fatal(
            f"descriptor {number}, which the service manager gives, is no socket: {error.strerror}",
            "of the lines of the socket unit that listen leave ListenStream= alone",
        ) from error


def _listens(given: socket.socket) -> bool:
    return bool(given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def command() -> list[str]:
    """This process's command line for its next image: the same interpreter, whatever it is now, and the same words."""
    return [sys.executable, *(word for word in sys.orig_argv[1:] if word not in ONCE)]


async def rehearse(*arguments: str) -> None:
    """Runs the command line with these arguments added, in a child; Fatal with its words where that fails."""
    child = await asyncio.create_subprocess_exec(
        *command(), *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TRIAL):
            _, words = await child.communicate()
    except TimeoutError:
        raise Fatal(f"it did not come so far within {TRIAL:g} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise Fatal(_last(words.decode(errors="replace")) or f"it ended with {child.returncode}")


def told_to_end(seconds: float) -> bool:
    """Waits so long for a signal that ends a daemon, while no loop runs; one that reloads ends the waiting."""
    hold_signals()
    signals = HELD - {signal.SIGUSR1, signal.SIGUSR2}
    came = signal.sigtimedwait(signals, seconds)
    return came is not None and came.si_signo != signal.SIGHUP


def become(handover: Handover, environment: Mapping[str, str]) -> NoReturn:
    """Replaces this process's image. OSError where that cannot be: then nothing has changed."""
    numbers = [one.socket.fileno() for one in handover.sockets] + ([] if handover.lock is None else [handover.lock])
    told = {
        "pid": os.getpid(),
        "lock": handover.lock,
        "sockets": [(one.socket.fileno(), one.ours, one.inode) for one in handover.sockets],
    }
    try:
        for number in numbers:
            os.set_inheritable(number, True)
        os.execve(sys.executable, command(), {**environment, INHERITED: json.dumps(told)})  # noqa: S606
    finally:
        for number in numbers:
            os.set_inheritable(number, False)


def _last(text: str) -> str:
    """The last words: of a traceback the last line, else what `branchd` said, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    told = [line.removeprefix("branchd: ") for line in lines if not line.startswith("branchd: warning:")]
    return "; ".join(told)[:LONGEST]
