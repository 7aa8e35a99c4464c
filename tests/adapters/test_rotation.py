"""No byte is lost or doubled, where the filesystem takes holes out (tmp_path) and where they stay (/dev/shm)."""

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from branchd.adapters import log_layout, rotation
from branchd.adapters.log_layout import Archive, Phase, first_data
from branchd.adapters.log_reading import Progress, select
from branchd.adapters.rotation import RotatedLog, Turn
from branchd.branch.ports import Lines, Piece
from tests.adapters.crashing import dies_after
from tests.waiting import until_sync

BLOCK = 4096

#: argv: how many lines of 100 bytes, how many a write, seconds between writes, and 1 for numbers or 0 for equal lines
WRITER = """
import os, sys, time
total, together, pause, numbered = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
for first in range(0, total, together):
    os.write(1, b"".join(b"%099d\\n" % (number * numbered) for number in range(first, min(first + together, total))))
    if pause:
        time.sleep(pause)
"""


def lines(start: int, stop: int, numbered: bool = True) -> bytes:
    return b"".join(b"%099d\n" % (number * numbered) for number in range(start, stop))


@pytest.fixture(params=["collapsing", "punching"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "collapsing":
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder)


def log_in(root: Path) -> RotatedLog:
    """As a daemon would see it that was started now."""
    log = RotatedLog(root, "shop", "worker", "stdout.log")
    log.path.parent.mkdir(parents=True, exist_ok=True)
    log.path.touch()
    return log


def append(log: RotatedLog, data: bytes) -> None:
    with log.path.open("ab") as live:
        live.write(data)


def archives(log: RotatedLog) -> list[Path]:
    return sorted(path for path in log.path.parent.iterdir() if path != log.path)


def whole(log: RotatedLog) -> bytes:
    """The bytes of all files; their names must tell where they stand, and nothing may be left half done."""
    with log.path.open("rb") as live:
        live.seek(first_data(live.fileno()))
        rest = live.read()
    data = bytearray()
    for path in archives(log):
        assert path.name == Archive(len(data)).name(log.path.name)
        data += path.read_bytes()
    return bytes(data + rest)


def start_writer(
    log: RotatedLog, total: int, together: int, pause: float, numbered: bool = True
) -> subprocess.Popen[bytes]:
    descriptor = os.open(log.path, os.O_WRONLY | os.O_APPEND)
    try:
        command = [sys.executable, "-c", WRITER, str(total), str(together), str(pause), str(int(numbered))]
        return subprocess.Popen(command, stdout=descriptor)
    finally:
        os.close(descriptor)


def read_through(log: RotatedLog, position: int = 0) -> bytes:
    """As a follower reads."""
    data = bytearray()
    for piece in select(log, Lines(offset=position), follow=True):
        if isinstance(piece, Piece):
            data += (b"[%d bytes are gone]\n" % piece.gap if piece.gap else b"") + piece.data
        elif piece is Progress.WAITING:
            break
    return bytes(data)


def last_lines(log: RotatedLog, count: int) -> tuple[bytes, int]:
    pieces = [piece for piece in select(log, Lines(tail=count), follow=False) if isinstance(piece, Piece)]
    assert len(pieces) == 1
    return pieces[0].data, pieces[0].end


def test_an_append_that_is_not_told_was_not_made(root: Path) -> None:
    log = log_in(root)
    log.append(lines(0, 100), lambda end: None)
    log.rotate(4096, keep=10)

    def fail(end: int) -> None:
        assert end == 20_000
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        log.append(lines(100, 200), fail)
    assert whole(log) == lines(0, 100)
    ends: list[int] = []
    log.append(lines(100, 200), ends.append)
    assert (whole(log), ends) == (lines(0, 200), [20_000])


def test_a_hundred_megabytes_under_rotation_are_exact(root: Path) -> None:
    log = log_in(root)
    total = 1_000_000
    writer = start_writer(log, total, 1, 0)
    rotate_at = 10_000_000
    turns = []
    while writer.poll() is None:
        turns.append(log.rotate(rotate_at, keep=100))
        time.sleep(0.01)  # the pace of looking, not of waiting: the writer needs the processor too
    while log.rotate(rotate_at, keep=100).archived:
        pass
    assert writer.returncode == 0
    assert any(turn.archived > 0 for turn in turns), "rotated while the writer went on"
    assert whole(log) == lines(0, total)
    assert all(path.stat().st_size <= rotate_at for path in archives(log))
    assert read_through(log) == lines(0, total)
    assert log.path.stat().st_blocks * 512 <= rotate_at + BLOCK


@pytest.mark.parametrize("holes", [True, False])
def test_killed_after_any_step_and_again_after_any_step_of_setting_it_right(
    root: Path, holes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not holes:
        monkeypatch.setattr(rotation, "fallocate", lambda *_: False)
    modules = [rotation, log_layout]
    seen: set[Phase] = set()
    # What is written after the first crash is longer than what was to be cut: a cut made twice would take it.
    text = lines(0, 5_200)
    for first in itertools.count():
        for second in itertools.count():
            place = root / f"{first}-{second}"
            log = log_in(place)
            append(log, text[:200_000])
            died = dies_after(first, modules, lambda log=log: log.rotate(100_000, 100))
            parsed = (Archive.parse(log.path.name, path.name) for path in archives(log))
            seen |= {archive.phase for archive in parsed if archive}
            append(log, text[200_000:510_000])
            died_again = dies_after(second, modules, lambda place=place: log_in(place).rotate(100_000, 100))
            append(log, text[510_000:])
            again = log_in(place)
            assert read_through(again) == text, (first, second)
            assert whole(again) == text, (first, second)
            assert last_lines(again, 5_150) == (text[5_000:], 520_000)
            if not died_again:
                break
        if not died:
            break
    assert first > 8
    expected = (
        {Phase.COPYING, Phase.CUT, Phase.PUNCHED, Phase.DONE} if holes else {Phase.COPYING, Phase.TRUNCATE, Phase.DONE}
    )
    assert seen == expected


@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "equal"])
def test_killed_at_random_while_the_program_writes(root: Path, numbered: bool) -> None:
    log = log_in(root)
    total = 200_000
    chance = random.Random(2012)
    writer = start_writer(log, total, 25, 0.0002, numbered)
    kills = 0
    while writer.poll() is None:
        process = os.fork()
        if process == 0:
            try:
                rotating = log_in(root)
                while True:
                    rotating.rotate(200_000, 1000)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0, 0.03 + kills / 1000))  # the moment of the crash, later where the disk is slow
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        kills += 1
    assert writer.returncode == 0
    log.rotate(200_000, 1000)
    assert kills > 5
    assert len(archives(log)) > 1
    assert whole(log) == lines(0, total, numbered)
    assert read_through(log) == lines(0, total, numbered)


def test_small_logs_are_left_alone(root: Path) -> None:
    log = log_in(root)
    assert log.rotate(BLOCK, 3) == Turn(0, 0)
    append(log, b"x" * BLOCK)
    assert log.rotate(1, 3) == Turn(0, BLOCK)
    append(log, b"x")
    assert log.rotate(1, 3) == Turn(BLOCK, 1)
    assert log.rotate(1, 3) == Turn(0, 1)


@pytest.mark.parametrize(("keep", "kept"), [(0, 1), (1, 1), (3, 3)])
def test_only_the_newest_archives_are_kept_and_the_gap_is_told_once(root: Path, keep: int, kept: int) -> None:
    log = log_in(root)
    text = lines(0, 5_000)
    append(log, text)
    while log.rotate(50_000, keep).archived:
        pass
    assert len(archives(log)) == kept
    oldest = int(archives(log)[0].name.rpartition(".")[2])
    assert read_through(log, 1_000) == b"[%d bytes are gone]\n" % (oldest - 1_000) + text[oldest:]
    assert read_through(log, oldest) == text[oldest:]
    assert last_lines(log, 100_000) == (text[oldest:], len(text))


def test_an_archive_that_somebody_deleted_is_a_gap(root: Path) -> None:
    log = log_in(root)
    text = lines(0, 3_000)
    append(log, text)
    while log.rotate(40_960, 100).archived:
        pass
    archives(log)[2].unlink()
    gap = b"[40960 bytes are gone]\n"
    assert read_through(log) == text[: 2 * 40_960] + gap + text[3 * 40_960 :]
    assert last_lines(log, 100_000)[0] == text[3 * 40_960 :]


def test_a_log_made_of_holes_costs_nothing(root: Path) -> None:
    log = log_in(root)
    append(log, b"first")
    os.truncate(log.path, 1 << 40)
    append(log, b"middle")
    os.truncate(log.path, 2 << 40)
    append(log, b"last\n")
    turns = 0
    while log.rotate(100_000, 3).archived:
        turns += 1
    assert turns == 2
    used = sum(path.stat().st_blocks * 512 for path in log.path.parent.iterdir())
    assert used <= 5 * BLOCK
    assert log.rotate(100_000, 3).left <= BLOCK
    assert last_lines(log, 1)[0].endswith(b"last\n")
    os.truncate(log.path, 3 << 40)
    os.truncate(log.path, 0)
    os.truncate(log.path, 1 << 40)
    assert log.rotate(100_000, 3) == Turn(0, 0)


def test_data_in_pieces_between_holes_is_taken_piece_by_piece(root: Path) -> None:
    log = log_in(root)
    with log.path.open("r+b") as live:
        for number in range(10):
            os.pwrite(live.fileno(), bytes([65 + number]) * BLOCK, number * 1_000 * BLOCK)
        os.ftruncate(live.fileno(), 20_000 * BLOCK)
    while log.rotate(10 * BLOCK, 100).archived:
        pass
    assert [path.read_bytes() for path in archives(log)] == [bytes([65 + number]) * BLOCK for number in range(10)]


def test_what_the_program_truncated_meanwhile_is_not_cut(root: Path) -> None:
    log = log_in(root)
    append(log, lines(0, 5_000))
    for step in itertools.count():
        assert dies_after(step, [rotation], lambda: log_in(root).rotate(100_000, 3))
        if found := list(log.path.parent.glob("*.cut")):
            break
    archived = found[0].read_bytes()
    os.truncate(log.path, 0)
    append(log, b"new\n")
    assert read_through(log_in(root)) == archived + b"new\n"


def test_a_full_disk_leaves_the_log_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_in(root)
    append(log, lines(0, 5_000))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", full)
        with pytest.raises(OSError, match="no space"):
            log.rotate(100_000, 100)
    assert archives(log) == []
    assert log.rotate(100_000, 100).archived > 90_000
    assert whole(log) == lines(0, 5_000)


@pytest.mark.parametrize("mode", [rotation.PUNCH_HOLE | rotation.KEEP_SIZE, rotation.COLLAPSE_RANGE])
def test_a_cut_that_fails_is_made_at_the_next_turn(root: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_in(root)
    append(log, lines(0, 5_000))
    real = rotation.fallocate

    def failing(descriptor: int, asked: int, offset: int, length: int) -> bool:
        if asked == mode and length > BLOCK:
            raise OSError(errno.EIO, "broken")
        return real(descriptor, asked, offset, length)

    with monkeypatch.context() as patch:
        patch.setattr(rotation, "fallocate", failing)
        with pytest.raises(OSError, match="broken"):
            log.rotate(100_000, 100)
        with pytest.raises(OSError, match="broken"):
            read_through(log)
    append(log, lines(5_000, 5_100))
    assert read_through(log) == lines(0, 5_100)
    assert whole(log) == lines(0, 5_100)


def test_without_holes_it_is_copied_and_truncated_with_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "fallocate", lambda *_: False)
    log = log_in(root)
    append(log, lines(0, 5_000))
    with capture_logs() as told:
        assert log.rotate(100_000, 3) == Turn(500_000, 0)
    assert [(entry["event"], entry["log_level"]) for entry in told] == [("log-rotation-may-lose-bytes", "warning")]
    append(log, lines(5_000, 5_100))
    assert whole(log) == lines(0, 5_100)
    assert read_through(log) == lines(0, 5_100)


def test_where_holes_can_be_taken_out_the_file_gets_shorter_elsewhere_its_blocks_are_freed(root: Path) -> None:
    log = log_in(root)
    append(log, lines(0, 5_000))
    turn = log.rotate(400_000, 3)
    assert turn.left == 500_000 - turn.archived
    assert log.path.stat().st_size in (turn.left, 500_000)
    until_sync(lambda: log.path.stat().st_blocks * 512 <= turn.left + 2 * BLOCK)


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(1, 5), max_size=5),
    first=st.integers(0, 20),
    live=st.integers(0, 9),
    hole=st.integers(0, 2),
    count=st.integers(1, 7),
    skip=st.integers(0, 40),
)
def test_offsets_lead_to_the_same_bytes_however_they_lie(
    sizes: list[int], first: int, live: int, hole: int, count: int, skip: int
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        start = end = first if sizes else 0
        for size in sizes:
            Path(folder, Archive(end).name("x.log")).write_bytes(bytes(range(end, end + size)))
            end += size
        with Path(folder, "x.log").open("w+b") as file:
            file.seek(hole * BLOCK if live else 0)
            file.write(bytes(range(end, end + live)))
            file.flush()
            layout = log_layout.survey(descriptor, "x.log", file.fileno())
            everything = bytes(range(start, end + live))
            assert layout.end == end + live
            backwards, position = b"", layout.end
            while block := layout.read_before(position, count):
                backwards, position = block + backwards, position - len(block)
            assert backwards == everything
            position, got = skip, b""
            while data := layout.read(position, count)[0]:
                position = layout.read(position, count)[1] + len(data)
                got += data
            # From before the first byte: that one. From past the end: the program truncated; the live file's first.
            expected = everything[max(skip - start, 0) :] if skip <= layout.end else bytes(range(end, end + live))
            assert got == expected
        os.close(descriptor)
