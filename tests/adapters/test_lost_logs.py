"""Logs that are taken away under a running program: seen, told, bounded, and left alone where they are somebody's."""
# ruff: noqa: ASYNC220, ASYNC240  (tests start programs and look at files as they please)

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from branchd.adapters import log_watching, logs
from branchd.adapters.folder_changes import FolderChanges
from branchd.adapters.logs import FileLogs
from branchd.adapters.lost_logs import bound, written_elsewhere
from branchd.core.errors import Conflict
from branchd.core.spec import LogFormat, Logs, LogTarget
from branchd.core.values import Stream
from tests.adapters.conformance_logs import APART, JOINED, KEY, collect, following, plain
from tests.waiting import until

#: writes as many bytes as each line of its input says, to its output or, where negative, to its standard error
PROGRAM = """
import os, sys
for line in sys.stdin:
    count = int(line)
    os.write(1 if count > 0 else 2, b"x" * (abs(count) - 1) + b"\\n")
"""


class Program:
    """Writes when it is told to."""

    def __init__(self, files: FileLogs, wanted: Logs) -> None:
        with files.open(KEY, wanted) as (out, err):
            command = [sys.executable, "-c", PROGRAM]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=err)
        self.told: list[dict[Stream, str]] = []
        files.watch(KEY, wanted, self.process.pid, lambda: self.told.append(dict(files.lost(KEY))))

    def write(self, count: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"%d\n" % count)
        self.process.stdin.flush()

    @property
    def log(self) -> os.stat_result:
        return os.stat(f"/proc/{self.process.pid}/fd/1")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


Start = Callable[[Logs], Program]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_watching, "QUIET", 0.05)
    monkeypatch.setattr(log_watching, "FIRST", 0.01)
    monkeypatch.setattr(log_watching, "FLOOR", 0.01)
    monkeypatch.setattr(logs, "FOLLOW", 0.01)


@pytest.fixture
def start(files: FileLogs) -> Iterator[Start]:
    started: list[Program] = []

    def begin(wanted: Logs) -> Program:
        started.append(Program(files, wanted))
        return started[-1]

    yield begin
    for program in started:
        program.end()


async def written(files: FileLogs, program: Program, count: int = 100) -> None:
    program.write(count)
    await until(lambda: program.log.st_size >= count)


def remove_file(folder: Path) -> str:
    (folder / "stdout.log").unlink()
    return f"{folder}/stdout.log (deleted)"


def rename_file(folder: Path) -> str:
    (folder / "stdout.log").rename(folder / "stdout.log.1")
    return f"{folder}/stdout.log.1"


def replace_file(folder: Path) -> str:
    """As logrotate's `create` does."""
    (folder / "stdout.log").rename(folder / "stdout.log-20260131")
    (folder / "stdout.log").touch()
    return f"{folder}/stdout.log-20260131"


def remove_folder(folder: Path) -> str:
    shutil.rmtree(folder)
    return f"{folder}/stdout.log (deleted)"


def rename_folder(folder: Path) -> str:
    folder.rename(folder.with_name("aside"))
    return f"{folder.with_name('aside')}/stdout.log"


def remove_all(folder: Path) -> str:
    shutil.rmtree(folder.parent.parent)
    return f"{folder}/stdout.log (deleted)"


def rename_above(folder: Path) -> str:
    folder.parent.rename(folder.parent.with_name("aside"))
    return f"{folder.parent.with_name('aside')}/{folder.name}/stdout.log"


WAYS = [remove_file, rename_file, replace_file, remove_folder, rename_folder, remove_all, rename_above]


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("to", ["a.log", "../../../a.log"])
async def test_a_log_that_was_seen_in_its_place_is_missed_whatever_it_is_called_now(
    files: FileLogs, folder: Path, start: Start, to: str, replaced: bool
) -> None:
    program = start(JOINED)
    await written(files, program)
    await until(lambda: files._watch._watched[KEY][0].inode)
    (folder / "stdout.log").rename(folder / to)
    if replaced:
        (folder / "stdout.log").touch()
    program.write(100)
    await until(lambda: files.lost(KEY), what="it to be noticed")
    looked = files._watch._watched[KEY][0].looked
    await until(lambda: files._watch._watched[KEY][0].looked > looked)
    assert files.lost(KEY) == {Stream.STDOUT: str((folder / to).resolve())}
    (folder / to).rename(folder / "stdout.log")
    await until(lambda: not files.lost(KEY), what="it to be back")


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("take_away", WAYS)
async def test_a_log_that_is_taken_away_is_told_once_and_not_read_as_if_it_were_there(
    files: FileLogs, folder: Path, start: Start, take_away: Callable[[Path], str], still: bool
) -> None:
    program = start(JOINED)
    await written(files, program)
    if still:
        await until(lambda: files._watch._stills)
    with capture_logs() as told:
        where = take_away(folder)
        program.write(100)
        await until(lambda: program.told, what="it to be noticed")
        assert files.lost(KEY) == program.told[0] == {Stream.STDOUT: where}
        looked = files._watch._watched[KEY][0].looked
        await until(lambda: files._watch._watched[KEY][0].looked > looked)
    warnings = [one for one in told if one["log_level"] == "warning"]
    taken = [one for one in warnings if one["event"] == "log-taken-away"]
    assert [(one["pid"], one["writes_to"]) for one in taken] == [(program.process.pid, where)]
    for read in (files.tail(KEY, Stream.STDOUT, 10), files.read(KEY, Stream.STDOUT, 0, 10)):
        with pytest.raises(Conflict, match="removed, moved or replaced") as refused:
            await read
        assert refused.value.hint == "branchctl restart shop:worker-1: it opens a new one"
    assert where in refused.value.detail
    assert len(program.told) == 1


async def test_the_next_process_has_a_log_again(files: FileLogs, folder: Path, start: Start) -> None:
    program = start(JOINED)
    await written(files, program)
    remove_folder(folder)
    await until(lambda: program.told)
    program.end()
    following = start(JOINED)
    assert not files.lost(KEY)
    await written(files, following, 200_000)
    assert len(await files.tail(KEY, Stream.STDOUT, 10)) == 200_000
    await until(lambda: files._watch._stills, what="all to be well")
    assert not files.lost(KEY)


async def test_one_that_is_put_back_is_read_on(files: FileLogs, folder: Path, start: Start) -> None:
    program = start(JOINED)
    await written(files, program)
    rename_folder(folder)
    await until(lambda: program.told)
    folder.with_name("aside").rename(folder)
    await until(lambda: len(program.told) == 2)
    assert program.told[-1] == {}
    await written(files, program, 100)
    assert len(await files.tail(KEY, Stream.STDOUT, 10)) >= 100


async def test_each_stream_is_told_by_itself(files: FileLogs, folder: Path, start: Start) -> None:
    program = start(APART)
    await written(files, program)
    (folder / "stderr.log").unlink()
    await until(lambda: program.told)
    assert set(files.lost(KEY)) == {Stream.STDERR}
    assert len(await files.tail(KEY, Stream.STDOUT, 10)) == 100


async def test_whoever_follows_comes_to_the_end(files: FileLogs, folder: Path, start: Start) -> None:
    program = start(JOINED)
    await written(files, program)
    reader = following(files, KEY, Stream.STDOUT, 10)
    assert len(await anext(reader)) == 100
    remove_file(folder)
    assert await collect(reader, b"never") == b""


@pytest.mark.parametrize("take_away", [remove_file, remove_folder, remove_all])
async def test_what_nobody_can_read_any_more_is_bounded(
    files: FileLogs, folder: Path, start: Start, take_away: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[bool] = []

    def counted(*asked: Any) -> bool:
        emptied.append(done := bound(*asked))
        return done

    monkeypatch.setattr(log_watching, "bound", counted)
    program = start(plain(100_000, 3))
    await written(files, program)
    take_away(folder)
    await until(lambda: program.told)
    for number in range(1, 4):
        program.write(300_000)
        await until(lambda number=number: sum(emptied) == number and program.log.st_size == 0)
    program.write(50_000)
    await until(lambda: program.log.st_size == 50_000)
    looked = files._watch._watched[KEY][0].looked
    await until(lambda: files._watch._watched[KEY][0].looked > looked)
    assert program.log.st_size == 50_000


@pytest.mark.parametrize("take_away", [rename_file, replace_file, rename_folder, rename_above])
async def test_what_was_moved_is_its_movers(
    files: FileLogs, folder: Path, start: Start, take_away: Callable[[Path], str]
) -> None:
    program = start(plain(100_000, 3))
    await written(files, program)
    where = take_away(folder)
    program.write(100)  # of a still log whose folder's folder is renamed, nothing else tells
    await until(lambda: program.told)
    await written(files, program, 300_000)
    looked = files._watch._watched[KEY][0].looked
    await until(lambda: files._watch._watched[KEY][0].looked > looked)
    assert Path(where).stat().st_size == 300_200


async def test_a_later_daemon_sees_it_too(files: FileLogs, folder: Path, start: Start, tmp_path: Path) -> None:
    program = start(JOINED)
    await written(files, program)
    await files.close()
    where = replace_file(folder)
    later = FileLogs(tmp_path / "logs")
    try:
        later.watch(KEY, JOINED, program.process.pid, lambda: None)
        await until(lambda: later.lost(KEY) == {Stream.STDOUT: where})
    finally:
        await later.close()


async def test_a_pipe_that_is_taken_away_is_told_too(files: FileLogs, folder: Path, start: Start) -> None:
    program = start(Logs(format=LogFormat.JSON))
    program.write(100)
    await until((folder / "stdout.log").exists)
    (folder / "stdout.log").unlink()  # the daemon makes that one anew
    program.write(100)
    await until((folder / "stdout.log").exists)
    assert not files.lost(KEY)
    remove_folder(folder)
    await until(lambda: files.lost(KEY) == {Stream.STDOUT: f"{folder}/stdout.json (deleted)"})


def test_what_a_program_has_made_of_its_output_itself_is_its_own(tmp_path: Path) -> None:
    """Whatever that is: nothing is said of it, and nothing is done to it."""
    root = tmp_path / "logs"
    root.mkdir()
    (root / "stdout.log").touch()
    for chosen in (tmp_path / "elsewhere", tmp_path / "stdout.txt", tmp_path / "stdout.log"):
        with chosen.open("wb") as out:
            process = subprocess.Popen(["sleep", "1000"], stdout=out)
        try:
            chosen.write_bytes(bytes(1 << 20))
            assert written_elsewhere(str(root), str(root), Stream.STDOUT, process.pid, 0) == ""
            assert not bound(str(root), Stream.STDOUT, process.pid, 0)
            chosen.unlink()
            assert not bound(str(root), Stream.STDOUT, process.pid, 0), "it was never in the logs' folder"
            assert os.stat(f"/proc/{process.pid}/fd/1").st_size == 1 << 20
        finally:
            process.kill()
            process.wait()
    assert written_elsewhere(str(root), str(root), Stream.STDOUT, process.pid, 0) == "", "it is gone"


@pytest.mark.parametrize(("mode", "emptied"), [("rb", False), ("ab", True)])
def test_only_what_the_program_could_empty_itself_is_emptied(tmp_path: Path, mode: str, emptied: bool) -> None:
    """In a mount namespace of its own it may give the logs' place to any file that it may read."""
    log = tmp_path / "logs" / "stdout.log"
    log.parent.mkdir()
    log.write_bytes(bytes(1 << 20))
    with log.open(mode) as held:
        process = subprocess.Popen(["sleep", "1000"], stdout=held)
        try:
            log.unlink()
            assert bound(str(log.parent), Stream.STDOUT, process.pid, 1000) == emptied
            assert os.fstat(held.fileno()).st_size == (0 if emptied else 1 << 20)
        finally:
            process.kill()
            process.wait()


async def test_what_goes_elsewhere_than_to_files_is_not_missed(files: FileLogs, tmp_path: Path) -> None:
    with (tmp_path / "stdout.log").open("wb") as inherited:
        process = subprocess.Popen(["sleep", "1000"], stdout=inherited)
    try:
        files.watch(KEY, Logs(to=LogTarget.INHERIT), process.pid, lambda: None)
        await until(lambda: files._watch._watched[KEY][0].looked)
        assert not files.lost(KEY)
    finally:
        process.kill()
        process.wait()


async def test_a_bug_while_logs_are_looked_at_costs_no_watch(
    files: FileLogs, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[int | None] = []
    forgotten: list[int] = []
    watch, forget = FolderChanges.watch, FolderChanges.forget
    monkeypatch.setattr(FolderChanges, "watch", lambda it, folder: watched.append(watch(it, folder)) or watched[-1])
    monkeypatch.setattr(FolderChanges, "forget", lambda it, number: forgotten.append(number) or forget(it, number))
    start(JOINED)
    looked = log_watching.Watched.look

    def broken(log: log_watching.Watched) -> None:
        looked(log)
        if watched and len(watched) == 1 and not forgotten:
            raise RuntimeError("a bug")

    monkeypatch.setattr(log_watching.Watched, "look", broken)
    await until(lambda: files._watch._stills)
    assert forgotten[0] == watched[0]
    assert files._watch._stills == {KEY: watched[-1]}
