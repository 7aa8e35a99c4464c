"""What the daemon asks of the outside world and of the drivers: a few lines each, one fake each.

The adapters and the fakes under tests/ pass the same conformance suites (tests/adapters/conformance_*.py).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

from msgspec import field

from branchd.branch.records import Change, EventRecord, Snapshot
from branchd.core.access import Principal
from branchd.core.findings import Finding
from branchd.core.machine import ProcessFacts
from branchd.core.reconcile import Work
from branchd.core.spec import Hook, Limits, Logs, Probe, Spec, StopStep
from branchd.core.value import Value
from branchd.core.values import Exit, Identity, Key, Launch, QueueDeclaration, Stream
from branchd.wire.agent import Heartbeat
from branchd.wire.resources import ConditionView


class Process(Protocol):
    """A running program and its whole tree."""

    @property
    def identity(self) -> Identity: ...

    def signal(self, number: int) -> None:
        """Sends to the main process only; silently nothing when it is gone."""

    def kill_tree(self) -> None:
        """KILL to the main process and everything that it left behind, escapees of its session too."""

    def cpu_seconds(self) -> float | None:
        """CPU time that the main process has used, or None when it is gone."""

    def tree_usage(self) -> Mapping[str, float]:
        """What the kernel counts of the whole tree, as far as it does: memory (bytes), cpu_seconds, tasks."""


class Lost(Value):
    """A process that was to be started, and of which no more is known."""

    key: Key
    since: float  #: seconds since boot: it started then, or later
    uid: int | None  #: of its account; None where that is not known any more


class Processes(Protocol):
    """The machine's processes.

    `on_exit` is called once, in the loop, after the main process has ended and been reaped.
    """

    async def spawn(
        self,
        key: Key,
        nonce: str,
        launch: Launch,
        output: AbstractContextManager[tuple[int, int]],
        on_exit: Callable[[Exit], None],
        sure: asyncio.Future[None] | None = None,
    ) -> Process:
        """Starts it in a session of its own, marked with the nonce; SpawnFailed when that is impossible.

        Nothing of the program is executed before `sure` is done, though all is prepared, and nothing at all where that
        raises: then this raises the same.

        `output` is entered when its turn comes, gives the descriptors of stdout and stderr, and is left before this
        returns. One that is cancelled meanwhile may run or not: find() tells.
        """

    def adopt(
        self, key: Key, nonce: str, identity: Identity, limits: Limits, on_exit: Callable[[Exit], None]
    ) -> Process | None:
        """Takes over what an earlier daemon started; None when that very process is gone.

        `limits` are set where those of its start were lost between the two daemons.
        """

    def find(self, lost: Mapping[str, Lost]) -> Mapping[str, Identity | None]:
        """Looks for processes by their nonces.

        The earliest of each wins, of those that may be it: by its time, its account, its place. A nonce without a
        process is left out; None where it is ambiguous.
        """

    def sweep(self, key: Key, nonce: str) -> None:
        """Ends what is left of a tree whose main process has ended."""

    def facts(self) -> ProcessFacts:
        """What the machine offers, for the doctor."""

    def unenforceable(self, limits: Limits) -> Mapping[str, str]:
        """Those that are asked for and cannot be enforced here, by name, and why; what asks for them starts without."""


class Lines(Value):
    """Which lines of a log are asked for: those that meet all of it."""

    tail: int | None = None  #: the last so many of them; None: all
    since: float | None = None  #: seconds since 1970: written at or after; earlier ones too where no time is written
    grep: str = ""  #: they have this text
    ignore_case: bool = False  #: of `grep`
    offset: int | None = None  #: of the first byte that may be in them


class Piece(Value):
    """Some of a log. Offsets count its bytes from the first one that was ever written, whatever was deleted since."""

    data: bytes  #: none where only `end` or a gap is told
    start: int  #: offset of the first byte that was looked at
    end: int  #: offset behind the last one that was looked at: where to go on
    gap: int = 0  #: bytes before `start` that were asked for and are gone
    coarse: bool = False  #: `since` was asked for, and what is older may be among it: no times are written in this log
    cut: bool = False  #: this is the first one, and there would have been more: a bound of bytes or time was met


class LogFiles(Protocol):
    """Where the output of instances goes; nothing that happens to the daemon happens to it."""

    def open(self, key: Key, logs: Logs) -> AbstractContextManager[tuple[int, int]]:
        """Descriptors for stdout and stderr to write to (the same one twice when joined), until the block ends.

        SpawnFailed when they cannot be opened.
        """

    def watch(self, key: Key, logs: Logs, pid: int, on_lost: Callable[[], None]) -> None:
        """From now on its files are rotated, kept and compressed as `logs` says, and lines get their times.

        What of `logs` needs a restart counts from the next open() on. `pid`: of the program that writes, 0: it has
        ended. `on_lost` is called when lost() says something new.
        """

    def lost(self, key: Key) -> Mapping[Stream, str]:
        """Logs that were taken away under the program that writes them, and what it writes to instead.

        Of these nothing can be read: tail(), read() and select() raise Conflict, and who follows comes to the end.
        """

    def forget(self, key: Key) -> None:
        """Ends that, when what was written is in the files; the files stay. Also of one that is not watched."""

    async def remove(self, key: Key) -> None:
        """Deletes the instance's files."""

    async def clear(self, key: Key) -> None:
        """Empties them, and deletes the archives; whatever writes goes on. Offsets go on counting."""

    def path(self, key: Key, stream: Stream) -> str:
        """Of the file that it is written to, for people; whether it is there or not."""

    async def tail(self, key: Key, stream: Stream, lines: int) -> bytes:
        """The last lines, over archives too; empty when nothing was ever written."""

    async def read(self, key: Key, stream: Stream, offset: int, length: int) -> tuple[bytes, int, int]:
        """At most `length` bytes from an offset on, a negative one counts from the end; where they begin; the end.

        They begin later than asked where that was rotated away, or earlier than asked at the end of the log.
        """

    def select(self, key: Key, stream: Stream, lines: Lines, *, follow: bool = False) -> AsyncGenerator[Piece, None]:
        """The lines, then, where they are followed, such as are appended, as they come, until the caller stops asking.

        At least one piece comes, which tells where it begins.
        """


class Host(Protocol):
    """Figures of this machine."""

    @property
    def boot(self) -> str:
        """The kernel's id of this boot."""

    @property
    def cpus(self) -> int: ...

    def load(self) -> Mapping[str, float]:
        """load_per_core, memory_available and memory_total (bytes), disk_free (share of the state's disk, 0 to 1)."""

    def account(self, user: str | None) -> tuple[str, str]:
        """Home folder and name of an account, None for the daemon's own; SpawnFailed when there is no such account."""

    def hard_limits(self) -> Mapping[str, int]:
        """The daemon's own, by the names of core.spec.Limits, without those that have no end."""

    def uid(self, user: str | None) -> int:
        """Of an account, None for the daemon's own; SpawnFailed when there is no such account."""

    def environment(self, path: str) -> Mapping[str, str]:
        """What an environment file says now; a name without a slash is that of a credential. SpawnFailed."""

    def memory(self, identity: Identity) -> int:
        """Resident bytes of a process and its descendants, pages that they share counted for each; 0 when gone."""

    def usage(self, identity: Identity) -> Mapping[str, float] | None:
        """rss (bytes), cpu_seconds, processes, threads, open_files of a process and its children; None when gone."""


class Channel(Protocol):
    """The local line to the agents inside Celery workers, by the pid of their main process."""

    def listen(self, on_message: Callable[[int, Heartbeat], None], on_close: Callable[[int], None]) -> None:
        """Begins, once. on_close: an agent went away, or was sent away for what it sent; it usually returns."""

    def close(self) -> None:
        """Ends every line without a call of on_close; the workers go on and look for the next daemon."""

    def admit(self, pid: int) -> None:
        """Lets this main process speak; everything else that connects is turned away."""

    def dismiss(self, pid: int) -> None:
        """Takes that back and ends its line without a call of on_close; nothing when it was never admitted."""

    async def ask(self, pid: int, message: Mapping[str, Any], timeout: float) -> Any:
        """Sends a command of branchd.wire.agent and waits for its answer, a JSON value.

        NoChannel when there is none in time, Refused when it says no.
        """

    def connected(self, pid: int) -> bool: ...


class Start(Value):
    """One start of one instance: all that a driver needs to know to plan it."""

    key: Key
    spec: Spec
    queues: tuple[QueueDeclaration, ...] | None  #: the spec's, as declared; None: the application's own
    node_name: str  #: for drivers whose program wants a name of its own in its cluster
    home: str  #: home folder of the account that it runs as
    account: str  #: that account's name
    environment: Mapping[str, str] = field(default_factory=dict)  #: what its env_file says


class Monitor(Protocol):
    """What a driver makes of one process, from its start or adoption to its end. Decides only; times since boot."""

    #: call tick() every branchd.core.health.PERIOD seconds
    ticks: bool

    def began(self, now: float) -> Sequence[Finding]: ...

    def heard(self, report: Heartbeat, now: float) -> Sequence[Finding]: ...

    def hung_up(self, now: float) -> None:
        """Its line was closed, by whatever."""

    def tick(self, now: float, cpu_seconds: Callable[[], float | None]) -> Sequence[Finding]: ...

    def forget(self, now: float) -> None:
        """The daemon itself was paused: what was observed before says nothing about the process."""

    def wants(self, work: Work, stall_limit: float) -> Sequence[Finding]:
        """What is wanted of it changed."""

    def told(self, command: Mapping[str, Any], refusal: str | None) -> None:
        """It answered a command: done, or why not."""

    def conditions(self) -> Sequence[ConditionView]: ...


class Driver(Protocol):
    """What one kind of instance needs."""

    def launch(self, start: Start) -> Launch: ...

    def stop_plan(self, spec: Spec) -> tuple[StopStep, ...]: ...

    def work(self, spec: Spec, queues: tuple[QueueDeclaration, ...] | None) -> Work: ...

    def monitor(self, spec: Spec, work: Work) -> Monitor: ...


class Prober(Protocol):
    """Asks running programs how they are."""

    async def ask(self, probe: Probe, launch: Launch | None, begins: Callable[[], None]) -> str | None:
        """None where it succeeds, else why not, in words. `launch`: of a probe by a program, how that is run.

        `begins` is called when it is asked, with which its timeout begins: it may have to wait for its turn.
        Unavailable where it could not be asked for want of something of the machine's or the daemon's.
        """


class Teller(Protocol):
    """Tells others of what happened."""

    async def tell(self, hook: Hook, launch: Launch | None, event: bytes, timeout: float) -> str | None:
        """None where it was taken, else why not, in words. `launch`: of a command, how it is run. `event`: as JSON."""


class Store(Protocol):
    """What must survive kill -9, and most of it a power cut too."""

    def load(self) -> Snapshot:
        """Everything, once, before the loop serves; Fatal where the store is broken or from a newer version."""

    async def write(self, *changes: Change, durable: bool = True) -> None:
        """Commits all of them or none, and returns when kill -9 cannot take it away, nor, where `durable`, a power cut.

        Concurrent writes share a commit. StorageFailed.
        """

    def begin_write(self, *changes: Change) -> asyncio.Future[None]:
        """The same, not durable, and asked for when this returns: before all that is written later."""

    async def events(self, after: int, limit: int) -> Sequence[EventRecord]:
        """The next events with an id above `after`, oldest first."""

    async def first_event(self) -> int:
        """The lowest id from which on none has expired; 1 where none has at all."""

    async def event_before(self, last: int, count: int) -> int:
        """The id after which the last `count` events up to `last` follow; 0 when all do. Ids have gaps."""


class Claim(Protocol):
    """A name that this branch alone is taking, at one node of the broker."""

    async def send(self, key: str, body: bytes) -> bool:
        """As Bus.send(), over the claim's own connection, so that the same node answers for both."""

    async def release(self) -> None:
        """Gives it up. Unavailable unless the broker says that it was held until now."""


class BusState(Value):
    connected: bool
    where: str = ""  #: the broker, without its password
    why: str = ""  #: why it is not connected, in words that say what to do
    cluster: str = ""  #: what the broker says it belongs to


class Bus(Protocol):
    """The broker: a broadcast to all branches of a neighbourhood, and keys that messages are routed by.

    The inbox key of a branch is branchd.core.peers.inbox(ID); the bus itself holds it from each connection on, and
    everything else that was bound is gone with the connection. Everything is called in the loop and calls back in the
    loop, and blocks nobody. Bodies are sealed by the caller. Messages of one sender over one path (broadcast, send,
    claim) arrive in order, or not at all.
    """

    #: False: nobody tells for sure that a key is not held, so that silence must do (branchd.branch.mesh.link)
    definite: bool

    @property
    def state(self) -> BusState: ...

    async def open(self, on_message: Callable[[str, bytes | None], None], on_state: Callable[[BusState], None]) -> None:
        """Begins to connect, and goes on trying until close().

        on_message: the routing key, "" for a broadcast; and the body, None for one longer than
        branchd.wire.portions.LONGEST_MESSAGE, which is not kept.
        """

    async def close(self) -> None:
        """Leaves: the inbox and all that was bound is gone when it returns, or as soon as the broker sees it."""

    def broadcast(self, body: bytes) -> None:
        """To all, this branch too; lost while it is not connected."""

    async def send(self, key: str, body: bytes) -> bool:
        """True: routed; False: nobody holds the key. Unavailable where the broker does not tell in time."""

    async def bind(self, keys: Collection[str]) -> None:
        """Messages to these keys come here from now on, beside whoever else holds them. Unavailable."""

    async def unbind(self, keys: Collection[str]) -> None: ...

    async def claim(self, name: str) -> Claim:
        """Conflict where somebody else is claiming it now; Unavailable."""


class Served(Value):
    """An answer of the API: its body comes as it is asked for."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


class Door(Protocol):
    """This branch's own API, for requests that other branches carried here."""

    def serve(
        self, principal: Principal, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> AbstractAsyncContextManager[Served]:
        """Answers it as any other request, in the principal's name; leaving the block hangs up.

        NoAnswer where it was begun and its answer is lost, also while the body is read; any other error: nothing was
        begun of it.
        """
