"""Compressed archives: the same bytes as before, for our readers and for gzip, whoever dies when."""

import gzip
import itertools
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchd.adapters import log_layout, log_packing, log_reading, rotation
from branchd.adapters.log_reading import Progress, read_range, select
from branchd.adapters.rotation import RotatedLog
from branchd.branch.ports import Lines, Piece
from tests.adapters.crashing import dies_after
from tests.adapters.test_rotation import append, archives, last_lines, lines, log_in, read_through

BLOCK = 4096

#: later than any archive is made
LATER = 1e12


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones, so that archives have several."""
    monkeypatch.setattr(log_packing, "MEMBER", 10_000)


def rotated(root: Path, count: int = 5_000) -> RotatedLog:
    """A log of several archives."""
    log = log_in(root)
    append(log, lines(0, count))
    while log.rotate(100_000, 1000).archived:
        pass
    return log


def names(log: RotatedLog) -> list[str]:
    return [path.name for path in archives(log)]


@pytest.mark.parametrize("size", [1, 9_999, 10_000, 10_001, 35_000])
@pytest.mark.usefixtures("members")
def test_any_part_of_it_is_read_as_it_was(size: int) -> None:
    text = random.Random(size).randbytes(size)
    with tempfile.TemporaryFile() as plain, tempfile.TemporaryFile() as packed:
        plain.write(text)
        plain.flush()
        assert log_packing.pack(plain.fileno(), packed.fileno(), lambda: True)
        packed.seek(0)
        assert gzip.decompress(packed.read()) == text
        assert log_packing.size(packed.fileno()) == size
        for start in range(0, size + 2, 997):
            data = log_packing.read(packed.fileno(), start, 5_000)
            assert text.startswith(data, start)
            assert (len(data) > 0) == (start < size)
            if 0 < start <= size:
                before = log_packing.read_before(packed.fileno(), start, 5_000)
                assert before
                assert text[:start].endswith(before)


def test_what_is_large_has_larger_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_packing, "MEMBER", 100)
    monkeypatch.setattr(log_packing, "MOST_MEMBERS", 7)
    text = random.Random(1).randbytes(12_345)
    with tempfile.TemporaryFile() as plain, tempfile.TemporaryFile() as packed:
        plain.write(text)
        plain.flush()
        asked: list[int] = []
        assert log_packing.pack(plain.fileno(), packed.fileno(), lambda: asked.append(1) or True)  # type: ignore[func-returns-value]
        assert len(asked) == 7
        packed.seek(0)
        assert gzip.decompress(packed.read()) == text


def test_the_most_members_fit_into_the_field_that_tells_of_them() -> None:
    assert 4 + log_packing.MOST_MEMBERS * 8 + 16 <= 0xFFFF


@pytest.mark.parametrize("content", [b"", b"x" * 100, gzip.compress(b"by somebody else", mtime=0), bytes(5_000)])
def test_what_was_not_compressed_here_is_not_believed(content: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        for ask in (lambda: log_packing.size(file.fileno()), lambda: log_packing.read(file.fileno(), 0, 1)):
            with pytest.raises(OSError, match="damaged"):
                ask()


@pytest.mark.usefixtures("members")
def test_archives_are_compressed_the_newest_first_and_read_as_before(tmp_path: Path) -> None:
    log = rotated(tmp_path)
    text, plain, made = lines(0, 5_000), names(log), [path.stat().st_mtime for path in archives(log)]
    newest = iter(range(1 + -(-archives(log)[-1].stat().st_size // 10_000)))
    assert log.pack(LATER, lambda: next(newest, None) is not None)
    assert names(log) == [*plain[:-1], plain[-1] + ".gz"]
    assert log.pack(LATER, lambda: True)
    assert names(log) == [name + ".gz" for name in plain]
    assert [path.stat().st_mtime for path in archives(log)] == made
    assert read_through(log) == text
    assert last_lines(log, 4_321)[0] == lines(5_000 - 4_321, 5_000)
    assert text.startswith(b"".join(gzip.decompress(path.read_bytes()) for path in archives(log)))
    append(log, lines(5_000, 7_000))
    while log.rotate(100_000, 3).archived:
        pass
    assert len(names(log)) == 3
    assert [name.endswith(".gz") for name in names(log)] == [True, False, False]
    oldest = int(names(log)[0].split(".")[2])
    assert read_through(log, oldest) == lines(0, 7_000)[oldest:]


def test_young_archives_are_left_alone(tmp_path: Path) -> None:
    log = rotated(tmp_path)
    os.utime(archives(log)[0], (1, 1))
    assert not log.pack(2.0, lambda: True)
    assert [name.endswith(".gz") for name in names(log)] == [True] + [False] * (len(names(log)) - 1)


@pytest.mark.usefixtures("members")
def test_killed_after_any_step_of_compressing_and_of_setting_that_right(tmp_path: Path) -> None:
    modules = [rotation, log_layout, log_packing]
    text = lines(0, 1_200)
    both = plain_again = 0
    for step in itertools.count():
        log = rotated(tmp_path / str(step), 1_200)
        before = names(log)
        died = dies_after(step, modules, lambda step=step: log_in(tmp_path / str(step)).pack(LATER, lambda: True))
        left = names(log)
        both += {before[0], f"{before[0]}.gz"} <= set(left)
        assert not dies_after(10_000, modules, lambda step=step: log_in(tmp_path / str(step)).end())
        plain_again += names(log) == before
        assert read_through(log_in(tmp_path / str(step))) == text
        assert all(name in before or name.removesuffix(".gz") in before for name in names(log))
        if not died:
            break
    assert step > 5
    assert both, "killed between the new name and the end of the old one"
    assert plain_again
    assert names(log) == [f"{name}.gz" for name in before]


def test_an_archive_that_is_deleted_meanwhile_stays_away(tmp_path: Path) -> None:
    log = rotated(tmp_path)

    def clear() -> bool:
        log.clear()
        return True

    end = log.end()
    log.pack(LATER, clear)
    assert names(log) == [f"stdout.log.{end:020d}"]
    assert read_through(log, end) == b""


def test_a_damaged_archive_is_a_gap(tmp_path: Path) -> None:
    log = rotated(tmp_path)
    log.pack(LATER, lambda: True)
    starts = [int(name.split(".")[2]) for name in names(log)]
    archives(log)[1].write_bytes(b"\0" * 1000)
    text = lines(0, 5_000)
    gap = b"[%d bytes are gone]\n" % (starts[2] - starts[1])
    assert read_through(log) == text[: starts[1]] + gap + text[starts[2] :]
    assert last_lines(log, 100_000)[0] == text[starts[2] :]


WRITE = st.tuples(st.just("write"), st.integers(1, 300))
ROTATE = st.tuples(st.just("rotate"), st.integers(1, 6))
PACK = st.tuples(st.just("pack"), st.integers(0, 3))
CLEAR = st.tuples(st.just("clear"), st.just(0))
READ = st.tuples(st.just("read"), st.integers(-70_000, 120_000))


@settings(deadline=None, max_examples=150)
@given(steps=st.lists(st.one_of(WRITE, WRITE, ROTATE, ROTATE, PACK, READ, READ, CLEAR), max_size=25))
def test_ranges_are_exact_whatever_was_rotated_compressed_and_cleared(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_packing, "MEMBER", 1_000)
        patch.setattr(log_reading, "CHUNK", 1_500)
        log, text, cleared = log_in(Path(folder)), b"", 0
        for what, number in steps:
            if what == "write":
                new = b"".join(b"%09d\n" % (len(text) + 10 * line) for line in range(number))
                append(log, new)
                text += new
            elif what == "rotate":
                log.rotate(BLOCK, number)
            elif what == "pack":
                counted = iter(range(number))
                log.pack(LATER, lambda counted=counted: next(counted, None) is not None)  # type: ignore[misc]
            elif what == "clear":
                log.clear()
                cleared = len(text)
            else:
                with log.layout() as layout:
                    first, end = layout.first, layout.end
                assert (first >= cleared, end) == (True, len(text))
                begin = min(max(end + number if number < 0 else number, first), end)
                assert read_range(log, number, 7_000) == (text[begin : begin + 7_000], begin, end)
                if number >= 0:
                    gap = b"[%d bytes are gone]\n" % (begin - number) if begin > number else b""
                    assert read_through(log, min(number, end)) == gap + text[begin:]
        assert last_lines(log, 100_000) == (text[log_first(log) :], len(text))


def log_first(log: RotatedLog) -> int:
    with log.layout() as layout:
        return layout.first


def found(log: RotatedLog, asked: Lines) -> bytes:
    return b"".join(piece.data for piece in select(log, asked, follow=False) if piece is not Progress.WORKING
                    and isinstance(piece, Piece))  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    words=st.lists(st.sampled_from([b"one", b"two", b"twone", b"", b"ONE two"]), max_size=200),
    unfinished=st.booleans(), tail=st.integers(0, 30) | st.none(), text=st.sampled_from(["one", "two", "e t", "x"]),
    ignore_case=st.booleans(), chunk=st.integers(3, 200), packed=st.booleans(),
)  # fmt: skip
def test_lines_are_found_as_grep_finds_them(
    words: list[bytes], unfinished: bool, tail: int | None, text: str, ignore_case: bool, chunk: int, packed: bool
) -> None:
    written = [word + b"\n" for word in words] + ([b"one"] if unfinished else [])
    padding = b"-" * 60 + b"\n"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_packing, "MEMBER", 1_000)
        patch.setattr(log_reading, "CHUNK", chunk)
        log = log_in(Path(folder))
        append(log, padding * 100 + b"".join(written))
        while packed and log.rotate(BLOCK, 100).archived:
            log.pack(LATER, lambda: True)
        expected = [line for line in written if text.encode() in (line.lower() if ignore_case else line)]
        if tail is not None:
            expected = expected[len(expected) - min(tail, len(expected)) :]
        assert found(log, Lines(tail=tail, grep=text, ignore_case=ignore_case)) == b"".join(expected)


def test_looking_is_bounded_in_time_and_bytes_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = rotated(tmp_path)
    monkeypatch.setattr(log_reading, "CHUNK", 1_000)
    monkeypatch.setattr(log_reading, "MOST_BYTES", 50_000)
    text = lines(0, 5_000)
    for asked in (Lines(), Lines(grep="0"), Lines(tail=4_000, grep="0"), Lines(tail=4_000)):
        pieces = [piece for piece in select(log, asked, follow=False) if isinstance(piece, Piece)]
        data = b"".join(piece.data for piece in pieces)
        assert 49_000 <= len(data) <= 51_000
        assert data in text
        assert any(piece.cut for piece in pieces)
        if asked.tail is None:  # it can be gone on from there
            assert text.startswith(data)
            assert pieces[-1].end == len(data)
    monkeypatch.setattr(log_reading, "MOST_SECONDS", -1.0)
    for asked in (Lines(grep="none such"), Lines(tail=10, grep="none such")):
        pieces = [piece for piece in select(log, asked, follow=False) if isinstance(piece, Piece)]
        assert pieces[-1].cut
    assert pieces[0].start >= len(text) - 1_000
