"""The store in SQLite, and its fake beside it; then what only a file on a disk can suffer: full, broken, killed."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

import pytest
from msgspec.structs import replace

from branchd.adapters import proc
from branchd.adapters.store import SqliteStore, _Job, _Outcome
from branchd.adapters.store_tables import LOST_IDS
from branchd.branch.ports import Store
from branchd.branch.records import EventRecord, Put
from branchd.core.errors import Conflict, Fatal, StorageFailed
from tests.adapters.conformance_store import INSTANCE, MAIL, RUN, SHOP, StoreConformance, events
from tests.adapters.small_disk import fill, small_disk
from tests.fakes.store import MemoryStore
from tests.waiting import until

#: does not fit into what SQLite has already taken of the disk
BIG = "x" * 300_000


@contextmanager
def opened(folder: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(folder)) as store:
        yield store


class TestSqliteStore(StoreConformance):
    def opened(self, folder: Path) -> AbstractContextManager[Store]:
        return opened(folder)


class TestMemoryStore(StoreConformance):
    def setup_method(self) -> None:
        self.stores: dict[Path, MemoryStore] = {}

    def opened(self, folder: Path) -> AbstractContextManager[Store]:
        return nullcontext(self.stores.setdefault(folder, MemoryStore()))


async def test_the_fake_keeps_nothing_while_it_is_full() -> None:
    store = MemoryStore()
    store.full = True
    with pytest.raises(StorageFailed):
        await store.write(Put(SHOP))
    store.full = False
    await store.write(Put(SHOP), Put(MAIL))
    assert store.load().queues == (MAIL,)
    assert store.writes == [(Put(SHOP), Put(MAIL))]


def test_two_stores_have_two_ids(tmp_path: Path) -> None:
    found = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with opened(tmp_path / name) as store:
            found.add(store.load().branch_id)
    assert len(found) == 2


@contextmanager
def held(store: SqliteStore) -> Iterator[None]:
    """No commit gets through meanwhile: the first write waits for its turn, perhaps alone, and all others behind it."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many writes each commit had."""
    made: list[int] = []
    commit = SqliteStore._commit

    def counting(store: SqliteStore, connection: sqlite3.Connection, group: Sequence[_Job]) -> list[_Outcome]:
        made.append(len(group))
        return commit(store, connection, group)

    monkeypatch.setattr(SqliteStore, "_commit", counting)
    return made


async def test_writes_that_come_together_share_a_commit(tmp_path: Path, commits: list[int]) -> None:
    with opened(tmp_path) as store:
        store.load()
        with held(store):
            writes = [asyncio.create_task(store.write(Put(replace(SHOP, name=f"a{n}")))) for n in range(500)]
            await asyncio.sleep(0)
        await asyncio.gather(*writes)
        assert len(commits) <= 2
    with opened(tmp_path) as store:
        assert len(store.load().apps) == 500


async def test_a_write_that_fails_does_not_fail_those_of_the_same_commit(tmp_path: Path, commits: list[int]) -> None:
    changes: list[list[Put]] = [[Put(replace(SHOP, name=f"a{n}"))] for n in range(9)]
    changes[4] += [Put(replace(SHOP, name="half")), Put(MAIL)]
    with opened(tmp_path) as store:
        store.load()
        with held(store):
            writes = [asyncio.create_task(store.write(*some)) for some in changes]
            await asyncio.sleep(0)
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(result) for result in results] == [*[type(None)] * 4, Conflict, *[type(None)] * 4]
        assert len(commits) <= 2
    with opened(tmp_path) as store:
        assert [app.name for app in store.load().apps] == [f"a{n}" for n in range(9) if n != 4]


async def test_close_commits_what_was_asked_for_and_takes_no_more(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.load()
        write = asyncio.create_task(store.write(Put(SHOP)))
        await asyncio.sleep(0)
        store.close()
        await write
        with pytest.raises(StorageFailed, match="closed"):
            await store.write(Put(SHOP))
    assert os.listdir(tmp_path) == ["branchd.db"]
    with opened(tmp_path) as store:
        assert store.load().apps == (SHOP,)


async def setting(store: SqliteStore, name: str) -> str | int:
    found: str | int = await store._ask(lambda connection: connection.execute(f"PRAGMA {name}").fetchone()[0])
    return found


async def test_a_commit_waits_for_the_disk_where_one_of_its_writes_asks_for_that(tmp_path: Path) -> None:
    normal, full = 1, 2
    with opened(tmp_path) as store:
        store.load()
        assert [await setting(store, name) for name in ("journal_mode", "foreign_keys")] == ["wal", 1]
        for durable, synchronous in (
            ([True], full), ([False], normal), ([False, True, False], full), ([False, False], normal),
        ):  # fmt: skip
            await asyncio.gather(*(store.write(Put(SHOP), durable=one) for one in durable))
            assert await setting(store, "synchronous") == synchronous


async def test_ids_of_events_that_a_power_cut_took_are_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def last_event(boot: str, *more: Put) -> int:
        monkeypatch.setattr(proc, "boot_id", lambda: boot)
        with opened(tmp_path) as store:
            found = store.load().last_event
            await store.write(*more)
            return found

    assert await last_event("first", *events(1, 2)) == 0
    assert await last_event("first") == 2
    assert await last_event("second") == 2 + LOST_IDS
    assert await last_event("second", *events(LOST_IDS + 3)) == 2 + LOST_IDS
    assert await last_event("second") == 3 + LOST_IDS


async def test_a_value_that_no_table_can_hold_fails_its_own_write_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.load()
        results = await asyncio.gather(
            store.write(Put(replace(SHOP, generation=2**63))),
            store.write(Put(replace(SHOP, name="\ud800"))),
            store.write(Put(SHOP)),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [OverflowError, UnicodeEncodeError, type(None)]


WRITER = """
import asyncio, sys
from pathlib import Path
from branchd.adapters.store import SqliteStore
from branchd.branch.records import AppRecord, Put

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    store.load()
    number = 0
    while True:
        number += 1
        puts = [Put(AppRecord(f"{number}-{part}", {})) for part in range(5)]
        await asyncio.gather(*(store.write(put, durable=sys.argv[2] == "durable") for put in puts))
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["durable", "not durable"])
def test_what_a_write_returned_for_survives_kill_9(tmp_path: Path, how: str) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, how], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [next(writer.stdout) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
        assert writer.wait() == -signal.SIGKILL
    with opened(tmp_path) as store:
        kept = {app.name for app in store.load().apps}
    assert {f"{int(line)}-{part}" for line in said for part in range(5)} <= kept


async def test_a_full_disk_fails_the_writes_in_words_and_once_there_is_space_they_work(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk, opened(disk) as store:
        store.load()
        await store.write(Put(SHOP), *events(1))
        filler = fill(disk)
        big = Put(replace(SHOP, name="big", spec={"command": BIG}))
        writes = (store.write(big), store.write(big), store.write(*events(2), big))
        for result in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(result, StorageFailed)
            assert str(store.path) in result.detail
            assert "full" in result.detail
            assert result.hint == "free space on the disk; running instances go on"
        assert [event.id for event in await store.events(0, 10)] == [1]

        filler.unlink()
        await store.write(big, *events(3))
        store.close()
        with opened(disk) as again:
            assert [app.name for app in again.load().apps] == ["big", "shop"]
            assert [event.id for event in await again.events(0, 10)] == [1, 3]


async def test_a_file_that_grows_till_the_disk_is_full_keeps_all_that_was_confirmed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk, opened(disk) as store:
        store.load()
        confirmed: list[int] = []

        async def write_on() -> None:
            for number in range(1, 10_000):
                await store.write(Put(EventRecord(number, 1.0, "t", data={"text": "x" * 2000})))
                confirmed.append(number)

        with pytest.raises(StorageFailed):
            await write_on()
        assert confirmed
        assert [event.id for event in await store.events(0, 10_000)] == confirmed


async def test_a_write_that_is_larger_than_the_disk_leaves_no_part_of_a_commit_behind(tmp_path: Path) -> None:
    # Larger than SQLite's cache too, so that it meets the full disk before the commit, amid its neighbours.
    huge = [Put(EventRecord(number, 1.0, "t", data={"text": BIG})) for number in range(100, 120)]
    groups = [events(1), events(2), huge, events(3), events(4)]
    with small_disk(tmp_path / "disk", "2m") as disk:
        with opened(disk) as store:
            store.load()
            with held(store):
                writes = [asyncio.create_task(store.write(*group)) for group in groups]
                await asyncio.sleep(0)
            results = await asyncio.gather(*writes, return_exceptions=True)
            assert isinstance(results[2], StorageFailed)
            assert all("full" in str(result) for result in results if result is not None)
            confirmed = [group[0].record for group, result in zip(groups, results, strict=True) if result is None]
            assert list(await store.events(0, 100)) == confirmed
            await store.write(*events(5))
        with opened(disk) as store:
            store.load()
            assert list(await store.events(0, 100)) == [*confirmed, events(5)[0].record]


async def test_another_program_that_holds_the_file_fails_the_write_in_words(tmp_path: Path) -> None:
    with opened(tmp_path) as store, closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        store.load()
        await store._ask(lambda connection: connection.execute("PRAGMA busy_timeout = 1"))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageFailed, match="locked") as caught:
            await store.write(Put(SHOP))
        assert "end the other program" in caught.value.hint
        other.execute("ROLLBACK")
        await store.write(Put(SHOP))


async def test_a_file_that_is_moved_away_takes_nothing_until_it_is_back(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.load()
        await store.write(Put(SHOP))
        store.path.rename(tmp_path / "elsewhere")
        with pytest.raises(StorageFailed, match="removed, moved or replaced"):
            await store.write(Put(MAIL))
        (tmp_path / "elsewhere").rename(store.path)
        await store.write(Put(MAIL))
    with opened(tmp_path) as store:
        assert store.load().queues == (MAIL,)


def test_nobody_else_may_read_its_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path) as store:
            store.load()
            asyncio.run(store.write(Put(SHOP)))
            assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    finally:
        os.umask(before)


async def test_the_thread_ends_with_the_process_even_when_nobody_closes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from branchd.adapters.store import SqliteStore\n"
        "SqliteStore(Path(sys.argv[1])).load(); raise SystemExit(3)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, tmp_path)
    try:
        await until(lambda: process.returncode is not None, seconds=60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 3


class TestStart:
    """What load() says of a store that it cannot use."""

    def test_a_full_disk(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "256k") as disk:
            fill(disk)
            self.refuses(disk, "free space on the disk")

    def test_a_file_system_that_is_read_only(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "1m") as disk:
            with opened(disk) as store:
                store.load()
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            self.refuses(disk, "can be written to")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        self.refuses(tmp_path / "gone", "the folder is there")

    def test_a_file_that_is_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "branchd.db").write_bytes(b"this is no database\n" * 100)
        self.refuses(tmp_path, "restore a backup")

    async def test_a_page_that_was_overwritten(self, tmp_path: Path) -> None:
        with opened(tmp_path) as store:
            store.load()
            await store.write(Put(SHOP), *events(*range(1, 2000)))
        size = store.path.stat().st_size
        with store.path.open("r+b") as file:
            file.seek(size - 3 * 4096)
            file.write(os.urandom(4096))
        self.refuses(tmp_path, "restore a backup")

    async def test_a_file_that_was_cut_off(self, tmp_path: Path) -> None:
        with opened(tmp_path) as store:
            store.load()
            await store.write(Put(INSTANCE), Put(RUN), *events(*range(1, 2000)))
        os.truncate(store.path, store.path.stat().st_size // 2)
        self.refuses(tmp_path, "restore a backup")

    async def test_a_row_that_makes_no_record(self, tmp_path: Path) -> None:
        with opened(tmp_path) as store:
            store.load()
            await store.write(Put(INSTANCE), Put(RUN))
        self.change(tmp_path, "UPDATE runs SET state = 'SINGING'")
        self.refuses(tmp_path, "restore a backup", "SINGING")

    def test_a_store_of_a_newer_branchd(self, tmp_path: Path) -> None:
        with opened(tmp_path) as store:
            store.load()
        self.change(tmp_path, "PRAGMA user_version = 1000")
        self.refuses(tmp_path, "install that branchd again", "newer branchd: its version is 1000")

    def test_a_migration_that_fails_leaves_the_file_as_it_was(self, tmp_path: Path) -> None:
        self.change(tmp_path, "CREATE TABLE outcomes (mine TEXT)")  # the last one that the migration would make
        self.refuses(tmp_path, "", "outcomes already exists")
        with closing(sqlite3.connect(tmp_path / "branchd.db")) as other:
            assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("outcomes",)]
            assert other.execute("PRAGMA user_version").fetchone() == (0,)

    @staticmethod
    def change(folder: Path, statement: str) -> None:
        with closing(sqlite3.connect(folder / "branchd.db", isolation_level=None)) as other:
            other.execute(statement)

    @staticmethod
    def refuses(folder: Path, hint: str, detail: str = "") -> None:
        with pytest.raises(Fatal) as caught, opened(folder) as store:
            store.load()
        assert str(folder / "branchd.db") in caught.value.detail
        assert detail in caught.value.detail
        assert hint in caught.value.hint
