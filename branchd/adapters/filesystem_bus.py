"""The bus in a folder: several branches on one machine without a server, over kombu's filesystem transport.

That transport is for one program at a time; measured with several (kombu 5.7): of 50 times that six processes
bound to a new exchange at once, bindings were lost in 11 and the table was unreadable in 11; of 5,000 messages 5 were
read before they were written and lost, and 43 overtook another; on their way they lie in /tmp; an unbind is
forgotten; each message costs a listing of all. So its channel is taken with its exchanges, routing, encoding and the
form of its files, and what puts a file there or takes one away is replaced (_Channel): files appear complete, by a
rename, under names that sort as they were sent, in a folder for each inbox, and tables change under one lock.

There is no exclusive inbox, no return and no claim: `definite` is False, and a second branch of one id is not seen
here. What a branch that was killed had bound stays until a branch of that id comes again, and messages to it until
somebody sweeps.
"""

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any, TypeVar

import kombu
import structlog
from kombu.transport import filesystem, virtual

from branchd.adapters.loop_calls import LoopCalls, fail, settle, taken
from branchd.branch.ports import BusState
from branchd.core.errors import Unavailable
from branchd.core.peers import inbox
from branchd.wire.portions import LONGEST_MESSAGE

log = structlog.get_logger(__name__)

#: seconds between two looks into the inbox: at most so much later comes a message. Idle, it takes 0.6% of a CPU; half
#: of it takes twice as much
POLL = 0.03

#: seconds until what could not be read is worth nothing any more
LIFETIME = 30.0

#: seconds between two looks for messages that nobody has read
SWEEP = 10.0

#: seconds until the folder is tried again after an error
RETRY = 1.0

#: messages in one turn, so that sending is not held up by receiving
TURN = 200

#: bytes of messages that wait for the loop before no more are read: they wait in the folder
MOST_BYTES_WAITING = 64 << 20

#: bytes of a message's file: its body as base64, and what kombu writes about it
LONGEST_FILE = LONGEST_MESSAGE // 3 * 4 + (4 << 10)

#: seconds for what is asked of the folder: a disk or a file server may hang
ANSWER_LIMIT = 5.0

#: seconds that closing waits for the thread
FAREWELL = 3.0

#: of the folder and everything in it: who can write here is a branch
MODE = 0o700

T = TypeVar("T")


class FilesystemBus:
    """Implements branchd.branch.ports.Bus."""

    definite = False

    def __init__(self, folder: Path, neighbourhood: str, branch: str) -> None:
        self._folder = folder
        self._everyone = f"branchd.{neighbourhood}.all"
        self._direct = f"branchd.{neighbourhood}.direct"
        self._inbox = f"branchd.{neighbourhood}.inbox.{branch}"
        self._own_key = inbox(branch)
        self._state = BusState(False, f"filesystem://{folder}", "not opened yet")
        self._work: deque[tuple[asyncio.Future[Any], Callable[[], object]]] = deque()
        self._bell = threading.Event()
        self._leaving = False
        self._ended: asyncio.Future[None] | None = None

    @property
    def state(self) -> BusState:
        return self._state

    async def open(self, on_message: Callable[[str, bytes | None], None], on_state: Callable[[BusState], None]) -> None:
        self._on_message = on_message
        self._on_state = on_state
        self._loop = LoopCalls()
        self._ended = asyncio.get_running_loop().create_future()
        name = f"branchd {self._own_key} filesystem"
        threading.Thread(target=self._run, args=[self._ended], name=name, daemon=True).start()

    async def close(self) -> None:
        if self._ended is not None:
            self._leaving = True
            self._bell.set()
            await asyncio.wait([self._ended], timeout=FAREWELL)
            self._state = BusState(False, self._state.where, "closed")

    def broadcast(self, body: bytes) -> None:
        with suppress(Unavailable):
            self._begin(lambda: self._publish(self._everyone, "", body))

    async def send(self, key: str, body: bytes) -> bool:
        await self._call(lambda: self._publish(self._direct, key, body))
        return True

    async def bind(self, keys: Collection[str]) -> None:
        wanted = set(keys)
        await self._call(lambda: self._channel.change(self._direct, self._inbox, add=wanted))

    async def unbind(self, keys: Collection[str]) -> None:
        unwanted = set(keys)
        with suppress(Unavailable):  # it goes with the next opening, then
            await self._call(lambda: self._channel.change(self._direct, self._inbox, remove=unwanted))

    async def claim(self, name: str) -> "FilesystemClaim":
        if not self._state.connected:
            raise Unavailable(self._state.why)
        return FilesystemClaim(self)

    async def _call(self, work: Callable[[], object]) -> None:
        """Does it in the thread. Unavailable; what is given up waiting for may be done nevertheless."""
        try:
            await asyncio.wait_for(self._begin(work), ANSWER_LIMIT)
        except TimeoutError:
            raise Unavailable(f"the folder {self._folder} does not answer in time") from None

    def _begin(self, work: Callable[[], object]) -> asyncio.Future[Any]:
        if not self._state.connected or self._leaving:
            raise Unavailable(f"the bus is not open: {self._state.why}")
        future = asyncio.get_running_loop().create_future()
        self._work.append((future, work))
        self._bell.set()
        return future

    def _change(self, why: str) -> None:
        state = BusState(not why, self._state.where, why, "" if why else self._state.where)
        if why:
            for future, _ in taken(self._work):
                fail(future, Unavailable(why))
        if state != self._state and not self._leaving:
            self._state = state
            self._on_state(state)

    def _take(self, key: str, body: bytes | None) -> None:
        if not self._leaving:
            self._on_message(key, body)

    # In the thread

    def _run(self, ended: asyncio.Future[None]) -> None:
        while not self._leaving:
            try:
                self._set_up()
                self._loop.give(self._change, "")
                self._serve()
                self._leave()
            except Exception as error:  # noqa: BLE001 - kombu raises whatever the files lead it to
                said = getattr(error, "strerror", None) or str(error) or type(error).__name__
                with suppress(RuntimeError):
                    self._loop.give(self._change, f"the folder {self._folder} is of no use: {said}: repair or empty it")
                self._bell.wait(RETRY)
                self._bell.clear()
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.give(settle, ended, None)

    def _set_up(self) -> None:
        for folder in (self._folder, self._folder / "control", self._folder / "queues"):
            folder.mkdir(MODE, parents=True, exist_ok=True)
        options = {"control_folder": self._folder / "control", "data_folder_out": self._folder / "queues"}
        connection = kombu.Connection(transport=_Transport, transport_options=options)
        self._channel = connection.transport.create_channel(connection.transport)
        self._channel.exchange_declare(self._everyone, "fanout")
        self._channel.exchange_declare(self._direct, "direct")
        self._forget()  # what an earlier life left behind
        (self._folder / "queues" / self._inbox).mkdir(MODE)
        self._channel.change(self._everyone, self._inbox, add={""})
        self._channel.change(self._direct, self._inbox, add={self._own_key})

    def _forget(self) -> None:
        for exchange in (self._everyone, self._direct):
            self._channel.change(exchange, self._inbox, remove=None)
        gone = self._folder / "queues" / f".gone-{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):
            (self._folder / "queues" / self._inbox).rename(gone)  # first: others write there until now
            shutil.rmtree(gone, ignore_errors=True)

    def _serve(self) -> None:
        swept = time.monotonic()
        while not self._leaving:
            if not self._receive():
                self._bell.wait(POLL)
            self._bell.clear()
            self._do_work()
            if time.monotonic() - swept > SWEEP:
                swept = time.monotonic()
                self._channel.sweep()

    def _leave(self) -> None:
        self._do_work()  # what was sent before is there before this leaves
        self._forget()
        self._channel.close()

    def _receive(self) -> int:
        for count in range(TURN):
            if self._loop.size > MOST_BYTES_WAITING:
                return count
            try:
                message = self._channel.basic_get(self._inbox, no_ack=True)
                if message is None:
                    return count
                about = message.delivery_info
                key = "" if about["exchange"] == self._everyone else str(about["routing_key"])
                body = bytes(message.body)
            except _TooLong:
                self._loop.give(self._take, "", None)
                continue
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - whoever can write here may write anything
                log.warning("no message: thrown away", folder=str(self._folder), error=repr(error)[:200])
                continue
            self._loop.give(self._take, key, body, size=len(body))
        return TURN

    def _do_work(self) -> None:
        for future, work in taken(self._work):
            try:
                self._loop.give(settle, future, work())
            except Exception as error:  # noqa: BLE001 - as above; whether the folder is of use, the next turn shows
                self._loop.give(fail, future, Unavailable(f"{self._folder}: {error}"))

    def _publish(self, exchange: str, key: str, body: bytes) -> None:
        message = self._channel.prepare_message(body, content_type="application/octet-stream")
        self._channel.basic_publish(message, exchange, key)


class FilesystemClaim:
    """Implements branchd.branch.ports.Claim, and claims nothing: conflicts are settled afterwards."""

    def __init__(self, bus: FilesystemBus) -> None:
        self._bus = bus

    async def send(self, key: str, body: bytes) -> bool:
        return await self._bus.send(key, body)

    async def release(self) -> None:
        """Nothing to give up."""


class _TooLong(Exception):
    """A message that was not read, and is gone."""


class _Channel(filesystem.Channel):  # type: ignore[misc]
    """kombu's, with files that appear and change as a whole. For one thread."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._queues = Path(self.data_folder_out)
        self._token = secrets.token_hex(4)
        self._last = 0
        self._listed: deque[str] = deque()

    def change(self, exchange: str, queue: str, add: Collection[str] = (), remove: Collection[str] | None = ()) -> None:
        """Binds the queue to the keys of `add`, and takes those of `remove` from it, None for all that it has."""
        with self._locked(exchange):
            table = self.get_table(exchange)
            rest = [
                [key, pattern, of]
                for key, pattern, of in table
                if of != queue or not (remove is None or key in remove or key in add)
            ]
            rest += [[key, "", queue] for key in add]
            if rest != [list(each) for each in table]:
                file = self._exchange_file(exchange)
                new = file.with_suffix(".new")
                new.write_text(json.dumps(rest))
                new.rename(file)

    def sweep(self) -> None:
        """Removes what nobody has read in time, half written or not, and what is of an earlier boot of the machine."""
        for folder in self._queues.iterdir():
            with suppress(FileNotFoundError):  # its branch has just left
                for path in folder.iterdir():
                    if not self._fresh(path.name):
                        path.unlink(missing_ok=True)

    def _fresh(self, name: str) -> bool:
        sent = name.lstrip(".")[:20]
        return sent.isdecimal() and 0 <= time.monotonic_ns() - int(sent) < LIFETIME * 1e9

    @contextmanager
    def _locked(self, exchange: str) -> Iterator[None]:
        with self._exchange_file(exchange).with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # What kombu calls

    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:
        self._last = max(self._last + 1, time.monotonic_ns())
        name = f"{self._last:020d}-{self._token}.msg"
        new = self._queues / queue / f".{name}"
        with suppress(FileNotFoundError):  # the inbox is gone, with its branch
            new.write_text(json.dumps(payload))
            new.rename(self._queues / queue / name)

    def _get(self, queue: str) -> dict[str, Any]:
        if not self._listed:
            self._listed.extend(self._list(self._queues / queue))
        for name in taken(self._listed):
            path = self._queues / queue / name
            try:
                too_long = path.stat().st_size > LONGEST_FILE
                text = b"" if too_long else path.read_bytes()
                path.unlink()
            except FileNotFoundError:  # swept
                continue
            if too_long:
                raise _TooLong
            if self._fresh(name):
                payload: dict[str, Any] = json.loads(text)
                return payload
        raise Empty

    def _list(self, folder: Path) -> list[str]:
        """In the order of sending, with all that a sender put there before the last of them."""
        names = [name for name in os.listdir(folder) if name[0] != "."]
        if not names:
            return []
        # A file may come while the folder is read and be missed, and the next of its sender be seen: so read again.
        last = max(names)
        return sorted(name for name in os.listdir(folder) if name[0] != "." and name <= last)


class _Transport(filesystem.Transport):  # type: ignore[misc]
    Channel = _Channel

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.state = virtual.BrokerState()  # kombu's is one for all buses of the process
