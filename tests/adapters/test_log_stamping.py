"""Lines with their times: each is there once, whatever happens to the daemon between pipe and log."""
# ruff: noqa: ASYNC240  (tests look at files as they please)

import asyncio
import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from branchd.adapters import log_layout, log_stamping, log_times, log_watching, rotation
from branchd.adapters.log_stamping import Stamper
from branchd.adapters.logs import FileLogs
from branchd.adapters.rotation import RotatedLog
from branchd.branch.ports import Lines
from branchd.core.errors import SpawnFailed
from branchd.core.spec import LogFormat, Logs, Stderr
from branchd.core.values import Key, Stream
from tests.adapters import crashing
from tests.adapters.conformance_logs import KEY, selected, watch
from tests.waiting import until, until_sync

TIMESTAMPED = Logs(format=LogFormat.TIMESTAMPED)
JSON = Logs(format=LogFormat.JSON)
STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ")

#: writes numbered lines; argv: how many, how many a write
WRITER = """
import os, sys
for first in range(0, int(sys.argv[1]), int(sys.argv[2])):
    data = b"".join(b"%09d\\n" % number for number in range(first, first + int(sys.argv[2])))
    while data:
        data = data[os.write(1, data):]
"""


def texts(log: bytes) -> list[bytes]:
    """What was written, of lines with times."""
    found = log.split(b"\n")
    assert found.pop() == b""
    assert all(STAMP.match(line) for line in found)
    return [STAMP.sub(b"", line, count=1) for line in found]


def times(log: bytes) -> list[float]:
    return [datetime.fromisoformat(line[:27].decode()).timestamp() for line in log.splitlines()]


async def test_lines_get_the_time_of_their_end(files: FileLogs, folder: Path) -> None:
    began = time.time()
    with files.open(KEY, TIMESTAMPED) as (out, err):
        assert out == err
        os.write(out, b"one\n\ntw")
        assert texts(await files.tail(KEY, Stream.STDOUT, 10)) == [b"one", b""]
        unfinished = time.time()
        os.write(err, b"o\xff\r\n")
        log = await files.tail(KEY, Stream.STDOUT, 10)
    assert texts(log) == [b"one", b"", b"two\xff\r"]
    assert began - 0.001 <= times(log)[0] <= unfinished <= times(log)[2] + 0.001
    assert stat.S_IMODE((folder / "stdout.timestamped").stat().st_mode) == 0o600


async def test_lines_of_json_say_where_they_come_from(files: FileLogs) -> None:
    with files.open(KEY, Logs(format=LogFormat.JSON, stderr=Stderr.FILE)) as (out, err):
        os.write(out, 'quote " and é\n'.encode())
        os.write(err, b"\xff\x00\x1b[0m\n")
        lines = [json.loads(await files.tail(KEY, stream, 10)) for stream in Stream]
    assert [(line["stream"], line["line"]) for line in lines] == [
        ("stdout", 'quote " and é'), ("stderr", "\\xff\0\x1b[0m"),
    ]  # fmt: skip
    assert all(set(line) == {"at", "stream", "line"} and STAMP.match(line["at"].encode() + b" ") for line in lines)


@pytest.mark.parametrize("ended", [True, False])
async def test_lines_that_are_too_long_are_cut_and_say_so(files: FileLogs, ended: bool) -> None:
    longest = log_stamping.LONGEST_LINE
    line = random.Random(2).randbytes(longest * 2 + 100).replace(b"\n", b"-")
    for logs in (TIMESTAMPED, JSON):
        key = Key(KEY.app, logs.format.value)
        with files.open(key, logs) as (out, _):
            os.write(out, line + b"\n" * ended)
            if not ended:
                await files.tail(key, Stream.STDOUT, 10)
                os.write(out, b"end\n")
            found = await files.tail(key, Stream.STDOUT, 10)
        whole = line + b"end" * (not ended)
        pieces = [whole[start : start + longest] for start in range(0, len(whole), longest)]
        if logs is JSON:
            got = [json.loads(one) for one in found.splitlines()]
            assert [one["line"] for one in got] == [piece.decode(errors="backslashreplace") for piece in pieces]
            assert [one.get("partial", False) for one in got] == [True, True, False]
        else:
            assert texts(found) == [piece + log_stamping.GOES_ON * (number < 2) for number, piece in enumerate(pieces)]


async def test_an_unfinished_line_is_one_when_its_program_has_ended(files: FileLogs, folder: Path) -> None:
    with files.open(KEY, TIMESTAMPED) as (out, _):
        watch(files, KEY, TIMESTAMPED)
        os.write(out, b"one\nlast words")
    files.forget(KEY)
    await until(lambda: [path.name for path in folder.iterdir()] == ["stdout.log"])
    assert texts(await files.tail(KEY, Stream.STDOUT, 10)) == [b"one", b"last words"]


async def test_a_program_that_starts_again_at_once_has_its_pipe(files: FileLogs, folder: Path) -> None:
    for number in range(50):
        with files.open(KEY, TIMESTAMPED) as (out, _):
            watch(files, KEY, TIMESTAMPED)
            os.write(out, b"%d\n" % number)
        files.forget(KEY)
    await until(lambda: not (folder / "stdout.timestamped").exists())
    assert texts(await files.tail(KEY, Stream.STDOUT, 100)) == [b"%d" % number for number in range(50)]


async def test_a_program_that_ends_before_its_pipe_is_found_leaves_none(tmp_path: Path, folder: Path) -> None:
    first = FileLogs(tmp_path / "logs")
    with first.open(KEY, TIMESTAMPED) as (out, _):
        os.write(out, b"one\nlast words")
        assert texts(await first.tail(KEY, Stream.STDOUT, 10)) == [b"one"]  # what is still in the pipe goes with it
        await first.close()
        second = FileLogs(tmp_path / "logs")
        busy = threading.Event()
        second._watch.submit(busy.wait)  # it rotates a large log
        watch(second, KEY, TIMESTAMPED)
        second.forget(KEY)
    busy.set()
    await until(lambda: [path.name for path in folder.iterdir()] == ["stdout.log"])
    assert texts(await second.tail(KEY, Stream.STDOUT, 10)) == [b"one", b"last words"]
    await second.close()


async def test_a_daemon_that_was_killed_after_its_program_ended_leaves_no_pipe_to_the_next(
    tmp_path: Path, folder: Path, files: FileLogs
) -> None:
    killed = FileLogs(tmp_path / "logs")
    with killed.open(KEY, TIMESTAMPED) as (out, _):
        os.write(out, b"one\nlast words")
        assert texts(await killed.tail(KEY, Stream.STDOUT, 10)) == [b"one"]
    await killed.close()
    assert (folder / "stdout.timestamped").is_fifo()
    files.forget(KEY)
    await until(lambda: [path.name for path in folder.iterdir()] == ["stdout.log"])
    assert texts(await files.tail(KEY, Stream.STDOUT, 10)) == [b"one", b"last words"]


async def test_where_its_folder_was_taken_away_the_next_program_has_one_again(files: FileLogs, folder: Path) -> None:
    with files.open(KEY, TIMESTAMPED) as (out, _):
        os.write(out, b"gone\n")
        assert texts(await files.tail(KEY, Stream.STDOUT, 10)) == [b"gone"]
        shutil.rmtree(folder)
        os.write(out, b"left\nlast words")
    with files.open(KEY, TIMESTAMPED) as (out, _):
        os.write(out, b"\nnext\n")
        assert texts(await files.tail(KEY, Stream.STDOUT, 10))[-1] == b"next"
        assert texts(await files.tail(KEY, Stream.STDOUT, 10))[0] == b"left"


async def test_the_format_changes_with_the_next_start(files: FileLogs, folder: Path) -> None:
    for number, logs in enumerate([TIMESTAMPED, Logs(), JSON, TIMESTAMPED, Logs(stderr=Stderr.FILE), JSON, Logs()]):
        with files.open(KEY, logs) as (out, _):
            os.write(out, b"%d\n" % number)
        assert {path.name for path in folder.iterdir()} <= {
            "stdout.log", "stderr.log", f"stdout.{logs.format}", "stdout.spool",
        }  # fmt: skip
    lines = (await files.tail(KEY, Stream.STDOUT, 10)).splitlines()
    assert [re.search(rb'(?:^|Z |line":")(\d)(?:"}|$)', line)[1] for line in lines] == [b"%d" % n for n in range(7)]  # type: ignore[index]


async def test_a_program_waits_without_a_daemon_and_goes_on_with_the_next(tmp_path: Path) -> None:
    root = tmp_path / "logs"
    first = FileLogs(root)
    with first.open(KEY, TIMESTAMPED) as (out, _):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, "50000", "1000", stdout=out)
    await first.close()
    second = FileLogs(root)
    watch(second, KEY, TIMESTAMPED)
    assert await process.wait() == 0
    found = await second.tail(KEY, Stream.STDOUT, 100_000)
    assert texts(found) == [b"%09d" % number for number in range(50_000)]
    await second.close()


def _killed_at_random(root: Path, seconds: float) -> None:
    """A daemon that reads the pipe and is killed so late."""
    process = os.fork()
    if process == 0:
        try:
            stamper = Stamper(root)
            log = RotatedLog(root, KEY.app, KEY.name, "stdout.log")
            stamper.attach(KEY, lambda _: log)
            while True:
                log.rotate(200_000, 1000)
        finally:
            os._exit(1)
    time.sleep(seconds)  # the moment of the crash
    os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("spool", [log_stamping.SPOOL, 1_000])
def test_killed_at_random_while_the_program_writes(tmp_path: Path, spool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stamping, "SPOOL", spool)
    chance = random.Random(7)
    place = tmp_path / KEY.app / KEY.name
    place.mkdir(parents=True)
    os.mkfifo(place / "stdout.timestamped", 0o600)
    pipe = os.open(place / "stdout.timestamped", os.O_RDWR)
    total = 300_000
    # Pieces that are no multiple of a line, so that lines are torn everywhere.
    command = f"import os\ndata = b''.join(b'%09d\\n' % number for number in range({total}))\n"
    command += "while data: data = data[os.write(1, data[:7777]):]"
    writer = subprocess.Popen([sys.executable, "-c", command], stdout=pipe)
    kills = 0
    while writer.poll() is None:
        _killed_at_random(tmp_path, chance.uniform(0, 0.05 + kills / 1000))  # later where the machine is slow
        kills += 1
    assert writer.returncode == 0
    stamper, log = Stamper(tmp_path), RotatedLog(tmp_path, KEY.app, KEY.name, "stdout.log")
    stamper.attach(KEY, lambda _: log)
    until_sync(lambda: stamper.drain(KEY) or written(log).count(b"\n") >= total, 20, "all lines")
    stamper.close()
    os.close(pipe)
    assert kills > 5
    assert texts(written(log)) == [b"%09d" % number for number in range(total)]


def written(log: RotatedLog) -> bytes:
    with log.layout() as layout:
        data, position = b"", 0
        while block := layout.read(position, 1 << 20)[0]:
            data, position = data + block, position + len(block)
    return data


def test_killed_after_any_step_of_writing_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crashing, "STEPS", crashing.STEPS | {"write", "pwrite", "splice"})
    monkeypatch.setattr(log_stamping, "SPOOL", 100)
    text = b"".join(b"%09d\n" % number for number in range(50)) + b"unfini"
    for step in itertools.count():
        root = tmp_path / str(step)
        place = root / KEY.app / KEY.name
        place.mkdir(parents=True)
        os.mkfifo(place / "stdout.timestamped", 0o600)
        pipe = os.open(place / "stdout.timestamped", os.O_RDWR)
        os.write(pipe, text)

        def read(root: Path = root) -> None:
            stamping = log_stamping._Pipe(
                RotatedLog(root, KEY.app, KEY.name, "stdout.log"), (root, KEY.app, KEY.name), Stream.STDOUT,
                LogFormat.TIMESTAMPED,
            )  # fmt: skip
            stamping.begin()
            stamping.drain()

        died = crashing.dies_after(step, [log_stamping, log_layout, rotation], read)
        os.write(pipe, b"shed\nmore\n")
        read()
        os.close(pipe)
        expected = [b"%09d" % number for number in range(50)] + [b"unfinished", b"more"]
        assert texts((place / "stdout.log").read_bytes()) == expected, step
        if not died:
            break
    assert step > 8


def test_a_spool_of_another_boot_takes_nothing_away(tmp_path: Path) -> None:
    place = tmp_path / KEY.app / KEY.name
    place.mkdir(parents=True)
    os.mkfifo(place / "stdout.json", 0o600)
    (place / "stdout.log").write_bytes(b"on disk\n")
    (place / "stdout.spool").write_bytes(bytes(16) + (32).to_bytes(8, "little") + bytes(8) + b"half\n")
    stamper, log = Stamper(tmp_path), RotatedLog(tmp_path, KEY.app, KEY.name, "stdout.log")
    stamper.attach(KEY, lambda _: log)
    stamper.close()
    assert (place / "stdout.log").read_bytes() == b"on disk\n"


async def test_a_spool_whose_pipe_was_taken_away_takes_nothing_away(tmp_path: Path, folder: Path) -> None:
    for logs in (TIMESTAMPED, Logs(), TIMESTAMPED):
        daemon = FileLogs(tmp_path / "logs")
        with daemon.open(KEY, logs) as (out, _):
            os.write(out, logs.format.encode() + b"\n")
            found = await daemon.tail(KEY, Stream.STDOUT, 10)
        await daemon.close()  # nobody has said that the program ended
        (folder / "stdout.timestamped").unlink(missing_ok=True)
    assert [line.split(b" ")[-1] for line in found.splitlines()] == [b"timestamped", b"plain", b"timestamped"]


@pytest.mark.parametrize("name", ["stdout.timestamped", "stdout.spool", "stdout.log"])
async def test_what_stands_in_the_way_is_refused(files: FileLogs, folder: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"precious")
    folder.mkdir(parents=True)
    (folder / name).symlink_to(elsewhere)
    if name == "stdout.spool":
        os.mkfifo(folder / "stdout.timestamped", 0o600)
    with pytest.raises(SpawnFailed) as caught, files.open(KEY, TIMESTAMPED):
        pass
    assert not caught.value.ours
    assert elsewhere.read_bytes() == b"precious"


async def test_a_disk_that_takes_nothing_makes_the_program_wait(
    files: FileLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_stamping, "PATIENCE", 0.01)
    real, failures = RotatedLog.append, 0

    def full(log: RotatedLog, data: bytes, written: object) -> None:
        def fail(end: int) -> None:
            nonlocal failures
            failures += 1
            raise OSError(errno.ENOSPC, "No space left on device")

        real(log, data, fail)

    with files.open(KEY, TIMESTAMPED) as (out, _):
        with monkeypatch.context() as patch:
            patch.setattr(RotatedLog, "append", full)
            os.write(out, b"one\ntwo\n")
            await until(lambda: failures >= 3)
        os.write(out, b"three\n")
        assert texts(await files.tail(KEY, Stream.STDOUT, 10)) == [b"one", b"two", b"three"]


async def test_since_is_exact_where_lines_have_times(files: FileLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_times, "WINDOW", 500)
    clock = iter(itertools.count(1_000_000))
    monkeypatch.setattr(log_stamping, "_now", lambda: float(next(clock)))
    with files.open(KEY, TIMESTAMPED) as (out, _):
        for number in range(300):
            os.write(out, b"%d\n" % number)
            await files.tail(KEY, Stream.STDOUT, 0)
    for since in (0, 999_999.5, 1_000_000, 1_000_000.5, 1_000_123, 1_000_298.5, 1_000_299, 1_000_299.5):
        async for piece in files.select(KEY, Stream.STDOUT, Lines(since=since)):
            assert not piece.coarse
        found = texts(await selected(files, since=since))
        assert found == [b"%d" % n for n in range(300) if 1_000_000 + n >= since]
        assert texts(await selected(files, since=since, tail=3)) == found[-3:]
        assert texts(await selected(files, since=since, grep="Z 2")) == [
            text for text in found if text.startswith(b"2")
        ]


async def test_since_is_coarse_where_they_have_none_and_says_so(files: FileLogs, folder: Path) -> None:
    with files.open(KEY, Logs()) as (out, _):
        for number in range(3):
            os.write(out, b"%d\n" % number * 40_000)
    log = RotatedLog(folder.parent.parent, KEY.app, KEY.name, "stdout.log")
    assert log.rotate(80_000, 9).archived
    assert log.rotate(80_000, 9).archived
    found = sorted(path for path in folder.iterdir() if path.name != "stdout.log")
    for age, path in enumerate(found):
        os.utime(path, (100 + 10 * age, 100 + 10 * age))
    starts = [int(path.name.split(".")[2]) for path in found]
    for since, begin in [(101.5, 0), (103.0, starts[1]), (115.0, log.end() - (folder / "stdout.log").stat().st_size)]:
        first = await anext(files.select(KEY, Stream.STDOUT, Lines(since=since)))
        assert (first.start, first.coarse) == (begin, True)
    later = await anext(files.select(KEY, Stream.STDOUT, Lines(since=time.time() + 60)))
    assert (later.start, later.coarse) == (log.end(), False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_watching, "QUIET", 0.05)
    monkeypatch.setattr(log_watching, "FLOOR", 0.01)
    monkeypatch.setattr(log_watching, "UNPACKED", 0.2)


@pytest.mark.usefixtures("quick")
async def test_since_is_exact_over_archives_that_are_compressed(files: FileLogs, folder: Path) -> None:
    logs = Logs(format=LogFormat.JSON, rotate_at=65536, keep=1000)
    watch(files, KEY, logs)
    with files.open(KEY, logs) as (out, _):
        command = [sys.executable, "-c", WRITER, "30000", "1000"]
        process = await asyncio.create_subprocess_exec(*command, stdout=out)
        assert await process.wait() == 0
        await files.tail(KEY, Stream.STDOUT, 0)
        middle = time.time()
        os.write(out, b"after\n")
    await files.tail(KEY, Stream.STDOUT, 0)
    await until(lambda: len(list(folder.glob("*.gz"))) > 10 and len(list(folder.glob("stdout.log.*[0-9]"))) == 0, 30)
    found = [json.loads(line) for line in (await selected(files)).splitlines()]
    assert [line["line"] for line in found] == [*(f"{number:09}" for number in range(30_000)), "after"]
    assert [json.loads(line)["line"] for line in (await selected(files, since=middle)).splitlines()] == ["after"]
    at = found[20_000]["at"]
    since = datetime.fromisoformat(at).timestamp()
    later = [json.loads(line)["at"] for line in (await selected(files, since=since)).splitlines()]
    assert later == [line["at"] for line in found if line["at"] >= at]
