"""The real log files: what they are on disk, when they are looked at, and that nothing of it blocks the loop."""
# ruff: noqa: ASYNC240  (tests look at files as they please; what must not block is watched by blockbuster)

import asyncio
import os
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from branchd.adapters import log_packing, log_reading, log_watching, logs
from branchd.adapters.folder_changes import FolderChanges
from branchd.adapters.log_watching import LogWatch, pause
from branchd.adapters.logs import FileLogs
from branchd.adapters.rotation import Cut
from branchd.core.errors import SpawnFailed, Unavailable
from branchd.core.values import Key, Stream
from tests.adapters.conformance_logs import (
    APART,
    JOINED,
    KEY,
    LogFilesConformance,
    collect,
    following,
    plain,
    selected,
    watch,
    write,
)
from tests.fakes.logs import MemoryLogs
from tests.waiting import until

#: writes lines of 100 bytes with their numbers: argv is how many, how many a write, seconds between two writes
WRITER = """
import os, sys, time
total, together, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for first in range(0, total, together):
    os.write(1, b"".join(b"%099d\\n" % number for number in range(first, min(first + together, total))))
    time.sleep(pause)
"""


def lines(total: int) -> bytes:
    return b"".join(b"%099d\n" % number for number in range(total))


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Fails what blocks the loop. open() may: its caller needs the descriptors, and it makes one folder."""
    with blockbuster_ctx("branchd.adapters") as blocking:
        for function in blocking.functions.values():
            function.can_block_in("adapters/logs.py", {"open"})
        yield blocking


class TestFileLogs(LogFilesConformance):
    @pytest.fixture
    async def logs(self, files: FileLogs, monkeypatch: pytest.MonkeyPatch) -> FileLogs:
        monkeypatch.setattr(log_watching, "QUIET", 0.05)
        monkeypatch.setattr(log_watching, "FLOOR", 0.01)
        return files


class TestMemoryLogs(LogFilesConformance):
    @pytest.fixture
    async def logs(self) -> AsyncIterator[MemoryLogs]:
        made = MemoryLogs()
        yield made
        await made.close()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_watching, "QUIET", 0.05)
    monkeypatch.setattr(log_watching, "FIRST", 0.01)
    monkeypatch.setattr(log_watching, "FLOOR", 0.01)
    monkeypatch.setattr(logs, "FOLLOW", 0.01)


def archives(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.name.startswith("stdout.log.") and path.suffix[1:].isdigit()
    )


async def test_folders_and_files_are_for_their_group_only(files: FileLogs, folder: Path) -> None:
    write(files, KEY)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)] == [0o750, 0o750]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        "stdout.log": 0o640,
        "stderr.log": 0o640,
    }


async def test_joined_output_has_one_file(files: FileLogs, folder: Path) -> None:
    write(files, KEY, joined=True)
    assert [path.name for path in folder.iterdir()] == ["stdout.log"]


def _symbolic_link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def _hard_link(path: Path, elsewhere: Path) -> None:
    path.hardlink_to(elsewhere)


def _pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, _: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("put", [_symbolic_link, _hard_link, _pipe, _folder])
@pytest.mark.parametrize("name", ["stdout.log", "stderr.log"])
async def test_what_is_no_plain_file_is_refused(files: FileLogs, folder: Path, tmp_path: Path, put, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"secret\n")
    folder.mkdir(parents=True)
    put(folder / name, elsewhere)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SpawnFailed, match="not a regular file") as caught, files.open(KEY, APART):
        pass
    assert not caught.value.ours
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(Unavailable, match="not a regular file"):
        await files.tail(KEY, Stream(name.removesuffix(".log")), 10)
    assert elsewhere.read_bytes() == b"secret\n"


@pytest.mark.parametrize("depth", [0, 1])
async def test_a_link_in_place_of_a_folder_is_refused(
    files: FileLogs, folder: Path, tmp_path: Path, depth: int
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / KEY.name).mkdir(parents=True)
    link = (folder.parent, folder)[depth]
    link.parent.mkdir(parents=True)
    link.symlink_to((elsewhere, elsewhere / KEY.name)[depth])
    with pytest.raises(SpawnFailed), files.open(KEY, APART):
        pass
    assert list((elsewhere / KEY.name).iterdir()) == []


async def test_a_folder_that_cannot_be_made_is_the_machines_fault() -> None:
    broken = FileLogs(Path("/proc/nowhere"))
    with pytest.raises(SpawnFailed) as caught, broken.open(KEY, APART):
        pass
    assert caught.value.ours
    await broken.close()


async def test_remove_follows_no_links(files: FileLogs, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"precious")
    write(files, KEY)
    (folder / "link").symlink_to(elsewhere)
    (folder / "inner").mkdir()
    (folder / "inner" / "link").symlink_to(elsewhere / "precious")
    await files.remove(KEY)
    assert not folder.exists()
    folder.symlink_to(elsewhere)
    await files.remove(KEY)
    assert not folder.is_symlink()
    folder.parent.rmdir()
    folder.parent.symlink_to(tmp_path)
    (tmp_path / KEY.name).mkdir()
    with pytest.raises(Unavailable):
        await files.remove(KEY)
    assert (tmp_path / KEY.name).exists()
    assert (elsewhere / "precious").read_bytes() == b"precious"


@pytest.mark.usefixtures("fast")
async def test_following_across_rotations_is_exact(files: FileLogs, folder: Path) -> None:
    total = 300_000  # 30 MB
    watch(files, KEY, plain(1_000_000, 1000))
    follower = asyncio.create_task(collect(following(files, KEY, Stream.STDOUT, 0), b"%099d\n" % (total - 1)))
    await asyncio.sleep(0)
    command = [sys.executable, "-c", WRITER, str(total), "500", "0.002"]
    with files.open(KEY, JOINED) as (out, _):
        writer = await asyncio.create_subprocess_exec(*command, stdout=out)
    assert await follower == lines(total)
    assert await writer.wait() == 0
    assert len(archives(folder)) > 5
    assert max(path.stat().st_size for path in archives(folder)) <= 1_000_000
    assert await files.tail(KEY, Stream.STDOUT, 100_000) == lines(total)[-100_000 * 100 :]


@pytest.mark.usefixtures("fast")
async def test_a_backlog_goes_into_several_archives_of_which_the_newest_stay(files: FileLogs, folder: Path) -> None:
    write(files, KEY, lines(50_000))  # 5 MB
    watch(files, KEY, plain(500_000, 3))
    await until(lambda: (folder / "stdout.log").stat().st_blocks * 512 <= 500_000 + 4096 and len(archives(folder)) == 3)
    kept = await files.tail(KEY, Stream.STDOUT, 100_000)
    assert lines(50_000).endswith(kept)
    assert len(kept) > 3 * 499_712  # three archives of whole blocks, and the live file


@pytest.mark.usefixtures("fast")
async def test_a_slow_follower_is_told_once_how_much_was_rotated_away(files: FileLogs, folder: Path) -> None:
    write(files, KEY, b"start\n")
    follower = following(files, KEY, Stream.STDOUT, 10)
    assert await anext(follower) == b"start\n"
    text = lines(50_000)
    write(files, KEY, text)
    watch(files, KEY, plain(500_000, 2))
    await until(lambda: len(archives(folder)) == 2 and archives(folder)[0].name > "stdout.log." + "3500000".zfill(20))
    gone = int(archives(folder)[0].name.rpartition(".")[2]) - len(b"start\n")
    told = b"[branchd: %d bytes were rotated away]\n" % gone
    assert await collect(follower, text[-100:]) == told + text[gone:]


@pytest.mark.usefixtures("fast")
async def test_following_goes_on_after_the_program_truncated_its_log(files: FileLogs, folder: Path) -> None:
    write(files, KEY, b"a long beginning\n")
    follower = following(files, KEY, Stream.STDOUT, 10)
    assert await anext(follower) == b"a long beginning\n"
    await asyncio.to_thread(os.truncate, folder / "stdout.log", 0)
    write(files, KEY, b"again\n")
    assert await anext(follower) == b"again\n"
    write(files, KEY, b"and on\n")
    assert await collect(follower, b"on\n") == b"and on\n"


@pytest.mark.usefixtures("fast")
async def test_watching_again_changes_the_limits_and_forgetting_ends_it(files: FileLogs, folder: Path) -> None:
    write(files, KEY, lines(5_000))
    watch(files, KEY, plain(10_000_000, 1000))
    watch(files, KEY, plain(100_000, 2))
    await until(lambda: len(archives(folder)) == 2)
    files.forget(KEY)
    assert files._watch._timer is None
    await until(lambda: files._watch._round is None)
    await asyncio.wrap_future(files._watch.submit(int))  # behind the last look
    before = archives(folder)
    write(files, KEY, lines(5_000))
    another = Key(KEY.app, "another")
    write(files, another, lines(5_000))
    watch(files, another, plain(100_000, 2))
    await until(lambda: len(archives(folder.parent / "another")) == 2)
    assert archives(folder) == before


async def test_all_that_is_too_much_is_rotated_when_it_is_forgotten(files: FileLogs, folder: Path) -> None:
    write(files, KEY, lines(50_000))
    watch(files, KEY, plain(1_000_000, 1000))
    files.forget(KEY)
    await asyncio.wrap_future(files._watch.submit(int))  # behind the last looks
    assert len(archives(folder)) >= 4, "of 5 MB no more than 1 is left"


async def test_nothing_watched_nothing_set(files: FileLogs) -> None:
    assert files._watch._timer is None
    watch(files, KEY, plain(100_000, 3))
    await until(lambda: files._watch._round is None and files._watch._timer is not None)
    files.forget(KEY)
    assert files._watch._timer is None


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many logs were looked at in each round."""
    counted: list[int] = []
    look_at = LogWatch._look_at

    def look(watch: LogWatch, due: list[Any]) -> Any:
        counted.append(len(due))
        return look_at(watch, due)

    monkeypatch.setattr(LogWatch, "_look_at", look)
    return counted


async def test_looks_at_idle_logs_fall_together_where_the_kernel_tells_nothing(
    files: FileLogs, rounds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderChanges, "watch", lambda self, folder: None)
    monkeypatch.setattr(log_watching, "QUIET", 0.5)
    monkeypatch.setattr(log_watching, "FIRST", 0.0)
    monkeypatch.setattr(log_watching, "FLOOR", 0.001)
    for number in range(20):
        before = len(rounds)
        watch(files, Key("shop", str(number)), plain(100_000, 3))
        await until(lambda before=before: len(rounds) > before, what="looked at when it was watched, apart from others")
    await until(lambda: rounds[-3:] == [40, 40, 40], what="all together, again and again")


async def test_slow_looks_at_others_keep_no_still_log_waiting(
    files: FileLogs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_watching, "QUIET", 0.3)
    monkeypatch.setattr(log_watching, "FLOOR", 0.001)
    still, busy = Key("shop", "still"), Key("shop", "busy")
    write(files, still, lines(10))
    watch(files, still, plain(100_000, 3))
    await until(lambda: still in files._watch._stills, what="still")
    look_at = LogWatch._look_at

    def slowly(watch: LogWatch, due: list[Any]) -> Any:
        time.sleep(0.4)  # a slow disk: no round is over before the next one is due
        return look_at(watch, due)

    async def grow() -> None:
        while True:
            write(files, busy, lines(100))
            await asyncio.sleep(0.01)

    monkeypatch.setattr(LogWatch, "_look_at", slowly)
    watch(files, busy, plain(10_000, 1))
    growing = asyncio.create_task(grow())
    write(files, still, lines(5_000))
    await until(lambda: archives(folder.parent / still.name), what="looked at")
    growing.cancel()


@pytest.mark.usefixtures("fast")
async def test_logs_that_do_not_grow_are_not_looked_at_until_they_do(
    files: FileLogs, folder: Path, rounds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    changed = FolderChanges.changed
    monkeypatch.setattr(FolderChanges, "changed", lambda changes: asked.append(None) or changed(changes))
    keys = [Key("shop", str(number)) for number in range(20)]
    for key in keys:
        write(files, key, lines(10))
        watch(files, key, plain(100_000, 3))
    await until(lambda: len(files._watch._stills) == 20, what="all still")
    rounds.clear()
    asked.clear()
    await until(lambda: len(asked) >= 5, what="the kernel's notes were read")
    assert not rounds
    write(files, keys[7], lines(5_000))
    await until(lambda: len(archives(folder.parent / keys[7].name)) == 3)
    await until(lambda: len(files._watch._stills) == 20, what="all still again")
    assert set(rounds) <= {1, 2}  # nobody else's
    rounds.clear()
    write(files, keys[7], lines(5_000))
    await until(lambda: rounds, what="looked at when it grew again")


@pytest.mark.usefixtures("fast")
async def test_a_log_that_comes_late_to_a_still_instance_is_rotated(files: FileLogs, folder: Path) -> None:
    write(files, KEY, joined=True)
    watch(files, KEY, plain(100_000, 3))
    await until(lambda: files._watch._stills)
    (folder / "stderr.log").write_bytes(lines(5_000))
    await until(lambda: len(list(folder.glob("stderr.log.*"))) == 3)


@pytest.mark.usefixtures("fast")
async def test_a_still_log_whose_folder_is_made_anew_is_rotated(files: FileLogs, folder: Path) -> None:
    write(files, KEY)
    watch(files, KEY, plain(100_000, 3))
    await until(lambda: files._watch._stills)
    folder.parent.rename(folder.parent.with_name("aside"))
    write(files, KEY, lines(5_000))
    watch(files, KEY, plain(100_000, 3))  # its next process
    await until(lambda: len(archives(folder)) == 3)


@pytest.mark.usefixtures("fast")
async def test_when_the_kernel_lost_its_notes_all_logs_are_looked_at(
    files: FileLogs, rounds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write(files, Key("shop", str(number)))
        watch(files, Key("shop", str(number)), plain(100_000, 3))
    await until(lambda: len(files._watch._stills) == 3)
    rounds.clear()
    lost = [None]
    monkeypatch.setattr(FolderChanges, "changed", lambda changes: lost.pop() if lost else set())
    await until(lambda: rounds)
    assert rounds[0] == 6
    await until(lambda: len(files._watch._stills) == 3)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5])
async def test_tail_does_not_depend_on_how_it_is_read(
    files: FileLogs, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_reading, "CHUNK", block)
    write(files, KEY, b"one\ntwo\n\n", b"one\ntwo\nun")
    for count in range(6):
        assert await files.tail(KEY, Stream.STDOUT, count) == b"".join([b"one\n", b"two\n", b"\n"][max(3 - count, 0) :])
        assert await files.tail(KEY, Stream.STDERR, count) == b"".join([b"one\n", b"two\n", b"un"][max(3 - count, 0) :])


async def test_a_log_that_cannot_be_rotated_does_not_hold_up_others(
    files: FileLogs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_watching, "QUIET", 0.05)
    bad = folder.parent / "bad"
    bad.mkdir(parents=True)
    (bad / "stdout.log").symlink_to("/etc/passwd")
    write(files, KEY, lines(5_000))
    watch(files, Key(KEY.app, "bad"), plain(100_000, 3))
    watch(files, KEY, plain(100_000, 3))
    await until(lambda: len(archives(folder)) == 3)


async def test_a_crashed_rotation_is_finished_when_watching_begins(files: FileLogs, folder: Path) -> None:
    write(files, KEY, lines(1_000))
    (folder / f"stdout.log.{0:020d}.0.copying").write_bytes(b"half")
    watch(files, KEY, plain(10_000_000, 3))
    await until(lambda: sorted(path.name for path in folder.iterdir()) == ["stderr.log", "stdout.log"])
    assert await files.tail(KEY, Stream.STDOUT, 10_000) == lines(1_000)


def _plain_or_packed(folder: Path) -> list[bool]:
    """Of each archive, the oldest first, whether it is compressed."""
    return [path.suffix == ".gz" for path in sorted(folder.glob("stdout.log.*")) if path.suffix != ".packing"]


@pytest.mark.usefixtures("fast")
async def test_archives_that_stay_are_compressed_and_others_cost_nothing(
    files: FileLogs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_watching, "UNPACKED", 1.0)
    packed: list[int] = []
    pack = log_packing.pack

    def counted(plain: int, *others: Any) -> bool:
        packed.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return pack(plain, *others)

    monkeypatch.setattr(log_packing, "pack", counted)
    watch(files, KEY, plain(100_000, 3, compress=True))
    write(files, KEY, lines(50_000))  # 5 MB: some fifty archives
    await until(lambda: _plain_or_packed(folder) == [True] * 3, 30)
    assert len(packed) < 20  # three, but where the machine took a second for some of them
    assert set(packed) == {log_watching.NICE}
    assert (await files.tail(KEY, Stream.STDOUT, 100_000)) == lines(50_000)[-len(await selected(files)) :]


@pytest.mark.usefixtures("fast")
async def test_what_stops_is_compressed_at_once_and_what_is_not_to_be_never(files: FileLogs, folder: Path) -> None:
    write(files, KEY, lines(5_000))
    for compress in (False, True):
        watch(files, KEY, plain(100_000, 3, compress=compress))
        await until(lambda: len(archives(folder)) == 3)
        files.forget(KEY)
        await asyncio.wrap_future(files._watch.submit(int))
        await asyncio.wrap_future(files._watch._packing.submit(int))
        assert _plain_or_packed(folder) == [compress] * 3


async def test_an_instance_is_deleted_while_its_archives_are_compressed(
    files: FileLogs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_packing, "MEMBER", 1_000)
    write(files, KEY, lines(50_000))
    watch(files, KEY, plain(1_000_000, 100))
    await until(lambda: len(archives(folder)) >= 4)
    watch(files, KEY, plain(1_000_000, 100, compress=True))
    files.forget(KEY)
    await until(lambda: list(folder.glob("*.packing")))
    await files.remove(KEY)
    assert not folder.exists()


async def test_how_logs_are_cut_in_a_folder_is_told(tmp_path: Path) -> None:
    in_memory = FileLogs(Path("/dev/shm"))
    assert await in_memory.cut() is Cut.PUNCH
    await in_memory.close()
    missing = FileLogs(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        await missing.cut()
    await missing.close()


async def test_tail_is_bounded(files: FileLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reading, "MOST_BYTES", 1 << 20)
    text = lines(50_000)
    write(files, KEY, text)
    got = await files.tail(KEY, Stream.STDOUT, 100_000)
    assert text.endswith(got)
    assert len(got) % 100 == 0
    assert (1 << 20) - 100 <= len(got) <= (1 << 20) + log_reading.CHUNK
    write(files, KEY, b"", b"x" * (3 << 20))
    assert len(await files.tail(KEY, Stream.STDERR, 1)) == 1 << 20
    monkeypatch.setattr(log_reading, "MOST_LINES", 100)
    assert await files.tail(KEY, Stream.STDOUT, 100_000) == text[-100 * 100 :]


async def test_close_ends_followers_and_threads(tmp_path: Path) -> None:
    closing = FileLogs(tmp_path / "logs")
    write(closing, KEY, b"one\n")
    watch(closing, KEY, plain(100_000, 3))
    follower = following(closing, KEY, Stream.STDOUT, 10)
    assert await anext(follower) == b"one\n"
    await closing.close()
    with pytest.raises(StopAsyncIteration):
        await anext(follower)
    assert closing._watch._timer is None
    assert [thread for thread in threading.enumerate() if thread.name.startswith("log-")] == []


@pytest.mark.parametrize(
    ("backlog", "rate", "expected"),
    [
        (0, 0, log_watching.QUIET),
        (5, -3, log_watching.QUIET),
        (0, 1, log_watching.QUIET),
        (90, 1, 5),
        (90, 10, 0.5),
        (99, 10, log_watching.FLOOR),
        (500, 10, log_watching.FLOOR),
    ],
)
def test_the_next_look_comes_in_half_the_time_till_the_limit(backlog: int, rate: float, expected: float) -> None:
    assert pause(backlog, rate, rotate_at=100) == expected
