"""The store: one SQLite file, owned by one thread, which commits in groups.

While one commit is made, the writes that come meanwhile are gathered, and the next one takes them all. Where one of
them fails, all are made again, each in a savepoint of its own, so that it takes nothing of its neighbours with it.

A commit waits for the disk where a caller of it asks for that. Without, it is in the kernel's hands when the caller
goes on: the daemon may be killed then, and only the machine's own end takes it away. So a machine that starts finds
all that was asked for, and what happened by itself but for the last of it.

What belongs here: the file and its migrations, the thread, and words for its failures. What the tables hold stands in
store_tables.py.
"""

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from branchd.adapters import proc
from branchd.adapters.store_tables import apply, enter_boot, event_before, first_event, read_all, read_events
from branchd.branch.records import Change, EventRecord, Snapshot
from branchd.core.errors import Conflict, Fatal, StorageFailed
from branchd.core.value import Value

T = TypeVar("T")

#: seconds between two commits of what happens by itself: while many start, one commit takes what came of several
PAUSE = 0.004

_Work = Callable[[sqlite3.Connection], Any]

#: by SQLite's primary result code, what to do about it
_ADVICE = {
    sqlite3.SQLITE_FULL: "free space on the disk",
    sqlite3.SQLITE_IOERR: "free space on the disk, or look for its faults in the kernel's log",
    sqlite3.SQLITE_CANTOPEN: "free space on the disk, and see that the folder is there and can be written to",
    sqlite3.SQLITE_READONLY: "make the file and its file system writable",
    sqlite3.SQLITE_BUSY: "end the other program that keeps the file locked",
    sqlite3.SQLITE_CORRUPT: "restore a backup of the file",
    sqlite3.SQLITE_NOTADB: "restore a backup of the file",
}


class _Job(Value):
    """Something for the thread to do with the connection."""

    work: _Work
    writes: bool
    durable: bool
    done: asyncio.Future[Any]


class _Outcome(Value):
    value: Any = None
    error: Exception | None = None


class SqliteStore:
    """branch.ports.Store in `folder`/branchd.db. One process at a time: StateFolder sees to that.

    load() comes first; write(), events() and close() are called in the thread of the loop.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "branchd.db"
        self._jobs: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._waiting: list[_Job] = []  #: for the thread to be done with what it has
        self._busy = False
        self._pause: asyncio.TimerHandle | None = None  #: until the thread gets what waits
        self._durable = True  #: as the connection is set
        self._thread: threading.Thread | None = None
        self._place = (0, 0)  #: device and inode of the file

    def load(self) -> Snapshot:
        """Opens the file, makes it where there is none, brings it to this version, and reads everything; Fatal."""
        try:
            with contextlib.suppress(
                OSError
            ):  # what is wrong with it, SQLite says below; its other files get this mode too
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
                self.path.chmod(0o600)
            # Handed over to the thread that is started below, and used by nobody else from then on.
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            with contextlib.ExitStack() as undo:
                undo.callback(connection.close)
                snapshot = self._prepare(connection)
                place = self.path.stat()
                self._place = (place.st_dev, place.st_ino)
                undo.pop_all()
        except sqlite3.Error as error:
            raise Fatal(f"{self.path} cannot be opened: {error}", _advice(error)) from error
        except (ValueError, TypeError) as error:
            raise Fatal(f"{self.path} holds what makes no record: {error}", "restore a backup of the file") from error
        # A daemon thread: a crash of the rest must end the process, not wait for a close() that never comes.
        self._thread = threading.Thread(target=self._serve, args=(connection,), name="store", daemon=True)
        self._thread.start()
        return snapshot

    def check(self) -> None:
        """Whether load() would know what to do with the file, which another process may have open; Fatal."""
        try:
            with contextlib.closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as connection:
                _known(self.path, connection)
        except sqlite3.Error as error:
            raise Fatal(f"{self.path} cannot be read: {error}", _advice(error)) from error

    async def write(self, *changes: Change, durable: bool = True) -> None:
        """Commits all of them or none, in the order of the calls, and returns when that is done.

        `durable`: a power cut does not take it away either. A caller that is cancelled while it waits takes nothing
        back: the changes are committed all the same. StorageFailed where nothing was kept; Conflict for a queue without
        its app or a run without its instance.
        """
        await self._ask(partial(_apply_all, changes), writes=True, durable=durable)

    def begin_write(self, *changes: Change) -> asyncio.Future[None]:
        """As write(), not durable, and asked for when this returns."""
        return self._asked(partial(_apply_all, changes), writes=True)

    async def events(self, after: int, limit: int) -> Sequence[EventRecord]:
        """The next events with an id above `after`, oldest first; StorageFailed."""
        return await self._ask(partial(read_events, after=after, limit=limit))

    async def first_event(self) -> int:
        """The lowest id from which on none has expired, 1 where none has at all; StorageFailed."""
        return await self._ask(first_event)

    async def event_before(self, last: int, count: int) -> int:
        """The id after which the last `count` events up to `last` follow, 0 when all do; StorageFailed."""
        return await self._ask(partial(event_before, last=last, count=count))

    def close(self) -> None:
        """Commits what was asked for before, then lets go of the file."""
        if self._thread is not None:
            self._hand_over()
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _prepare(self, connection: sqlite3.Connection) -> Snapshot:
        self._migrate(connection)
        [verdict] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Fatal(f"{self.path} is damaged: {verdict}", "restore a backup of the file")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('branch_id', ?)", (os.urandom(16).hex(),))
        enter_boot(connection, proc.boot_id())
        return read_all(connection)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        migrations, found = _known(self.path, connection)
        newest = max(migrations)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        for number in range(found + 1, newest + 1):
            steps = ("BEGIN IMMEDIATE;", migrations[number], f"PRAGMA user_version = {number};", "COMMIT;")
            connection.executescript("\n".join(steps))

    async def _ask(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False, durable: bool = False) -> T:
        return await self._asked(work, writes=writes, durable=durable)

    def _asked(
        self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False, durable: bool = False
    ) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if self._thread is None:
            done.set_exception(StorageFailed("the store is closed"))
            return done
        self._waiting.append(_Job(work, writes, durable, done))
        if not self._busy:
            # Not at once: to wake a thread costs more than what most of them ask for, so that a round of the loop
            # asks for all at a time.
            self._busy = True
            loop.call_soon(self._hand_over)
        elif self._pause is not None and (durable or not writes):
            self._hand_over()
        return done

    def _hand_over(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        jobs, self._waiting = self._waiting, []
        self._busy = bool(jobs)
        if jobs:
            self._jobs.put(jobs)

    def _serve(self, connection: sqlite3.Connection) -> None:
        """The thread: takes all that waits, commits it together, reads, answers."""
        with contextlib.closing(connection):
            while (jobs := self._jobs.get()) is not None:
                writes = [job for job in jobs if job.writes]
                reads = [job for job in jobs if not job.writes]
                answers = list(zip(writes, self._commit(connection, writes) if writes else (), strict=True))
                # After the writes, so that a reader sees what it has asked to be written.
                answers += [(job, self._outcome(job.work, connection)) for job in reads]
                with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
                    jobs[0].done.get_loop().call_soon_threadsafe(self._answer, answers)

    def _answer(self, answers: Sequence[tuple[_Job, _Outcome]]) -> None:
        if self._waiting and all(job.writes and not job.durable for job in self._waiting):
            self._pause = asyncio.get_running_loop().call_later(PAUSE, self._hand_over)
        else:
            self._hand_over()
        for job, outcome in answers:
            if job.done.done():
                continue  # its caller was cancelled
            if outcome.error is not None:
                job.done.set_exception(outcome.error)
            else:
                job.done.set_result(outcome.value)

    def _commit(self, connection: sqlite3.Connection, group: Sequence[_Job]) -> list[_Outcome]:
        """One transaction for all; an outcome for each."""
        try:
            self._check_place()
            self._wait_for_the_disk(connection, any(job.durable for job in group))
            connection.execute("BEGIN IMMEDIATE")
            try:
                outcomes = [_Outcome(job.work(connection)) for job in group]
            except Exception:  # noqa: BLE001 - whose it is comes out now
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
                outcomes = [self._within_savepoint(job.work, connection) for job in group]
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - it is the callers', who get it; the thread goes on
            # SQLite may have rolled back by itself.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            return [_Outcome(error=self._in_words(error)) for _ in group]
        return outcomes

    def _wait_for_the_disk(self, connection: sqlite3.Connection, durable: bool) -> None:
        """Whether the commits from now on do; one that does takes all before it to the disk too."""
        if durable is not self._durable:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable

    def _check_place(self) -> None:
        """What is written to a file that nobody can open again is not kept."""
        try:
            found = self.path.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._place:
            raise StorageFailed(
                f"{self.path} was removed, moved or replaced while the daemon ran",
                "put it back, or stop the daemon and start it again; running instances go on",
            )

    def _within_savepoint(self, work: _Work, connection: sqlite3.Connection) -> _Outcome:
        connection.execute("SAVEPOINT one_write")
        try:
            outcome = _Outcome(work(connection))
        except Exception as error:
            if not connection.in_transaction:
                raise  # SQLite has rolled back the whole group by itself, as it may on a full disk
            connection.execute("ROLLBACK TO one_write")
            outcome = _Outcome(error=self._in_words(error))
        connection.execute("RELEASE one_write")
        return outcome

    def _outcome(self, work: _Work, connection: sqlite3.Connection) -> _Outcome:
        try:
            return _Outcome(work(connection))
        except Exception as error:  # noqa: BLE001 - it is the caller's, who gets it; the thread goes on for the others
            return _Outcome(error=self._in_words(error))

    def _in_words(self, error: Exception) -> Exception:
        match error:
            case sqlite3.IntegrityError():
                return Conflict(f"it contradicts what the store holds: {error}")
            case sqlite3.DatabaseError():
                return StorageFailed(f"{self.path} failed: {error}", f"{_advice(error)}; running instances go on")
            case _:
                return error


def _migrations() -> dict[int, str]:
    """By number, which is the version of the store that each leads to."""
    folder = Path(__file__).with_name("migrations")  # not importlib.resources: that takes 10 ms of a start
    return {int(file.name[:4]): file.read_text("utf-8") for file in folder.glob("*.sql")}


def _known(path: Path, connection: sqlite3.Connection) -> tuple[dict[int, str], int]:
    """The migrations, and up to which of them the file was brought; Fatal where that is beyond the last."""
    [found] = connection.execute("PRAGMA user_version").fetchone()
    migrations = _migrations()
    newest = max(migrations)
    if found > newest:
        raise Fatal(
            f"{path} was written by a newer branchd: its version is {found}, this one knows {newest}",
            "install that branchd again, or restore a backup from before it",
        )
    return migrations, found


def _apply_all(changes: Sequence[Change], connection: sqlite3.Connection) -> None:
    for change in changes:
        apply(connection, change)


def _advice(error: sqlite3.Error) -> str:
    # The low byte is the primary code; errors of Python's own module have none.
    return _ADVICE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "look for the cause in the kernel's log")
