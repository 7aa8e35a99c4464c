"""What every LogFiles must do; run for the real files and for the fake by test_logs.py."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from branchd.branch.ports import Lines, LogFiles, Piece
from branchd.core.errors import SpawnFailed
from branchd.core.spec import Logs, Stderr
from branchd.core.values import Key, Stream

KEY = Key("shop", "worker-1")
OTHER = Key("shop", "worker-2")

JOINED = Logs()
APART = Logs(stderr=Stderr.FILE)


def plain(rotate_at: int, keep: int, compress: bool = False) -> Logs:
    return Logs(rotate_at=rotate_at, keep=keep, compress=compress)


async def following(logs: LogFiles, key: Key, stream: Stream, tail: int, **asked: Any) -> AsyncGenerator[bytes, None]:
    """What is shown to who follows."""
    async with aclosing(logs.select(key, stream, Lines(tail=tail, **asked), follow=True)) as pieces:
        async for piece in pieces:
            if piece.gap or piece.data:
                yield shown(piece)


def shown(piece: Piece) -> bytes:
    return (b"[branchd: %d bytes were rotated away]\n" % piece.gap if piece.gap else b"") + piece.data


async def selected(logs: LogFiles, key: Key = KEY, stream: Stream = Stream.STDOUT, **asked: Any) -> bytes:
    async with aclosing(logs.select(key, stream, Lines(**asked))) as pieces:
        return b"".join([shown(piece) async for piece in pieces])


def write(logs: LogFiles, key: Key, stdout: bytes = b"", stderr: bytes = b"", joined: bool = False) -> None:
    """As a program would, that was started now and has ended."""
    with logs.open(key, JOINED if joined else APART) as (out, err):
        os.write(out, stdout)
        os.write(err, stderr)


def watch(logs: LogFiles, key: Key, wanted: Logs) -> None:
    """As of a program that has its output elsewhere."""
    logs.watch(key, wanted, os.getpid(), lambda: None)


async def collect(following: AsyncIterator[bytes], until: bytes) -> bytes:
    """What a follower gets, till it ends with those bytes."""
    got = bytearray()
    async with asyncio.timeout(60), aclosing(following):  # type: ignore[type-var]
        async for data in following:
            got += data
            if got.endswith(until):
                break
    return bytes(got)


class LogFilesConformance:
    """Subclasses give a fixture `logs`."""

    async def test_a_program_writes_to_the_descriptors_itself(self, logs: LogFiles) -> None:
        command = [sys.executable, "-c", "import os; os.write(1, b'one\\n'); os.write(2, b'two\\n')"]
        with logs.open(KEY, APART) as (out, err):
            process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=err)
        assert await process.wait() == 0
        assert await logs.tail(KEY, Stream.STDOUT, 10) == b"one\n"
        assert await logs.tail(KEY, Stream.STDERR, 10) == b"two\n"

    def test_descriptors_do_not_leak_into_other_programs(self, logs: LogFiles) -> None:
        with logs.open(KEY, APART) as (out, err):
            assert not os.get_inheritable(out)
            assert not os.get_inheritable(err)

    def test_descriptors_are_closed_with_the_block_whatever_happens_in_it(self, logs: LogFiles) -> None:
        with pytest.raises(OSError, match="mine"), logs.open(KEY, APART) as (out, err):
            raise OSError("mine")
        for descriptor in (out, err):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    async def test_joined_output_is_one_stream_in_order(self, logs: LogFiles) -> None:
        with logs.open(KEY, JOINED) as (out, err):
            assert out == err
        write(logs, KEY, b"first\n", b"second\n", joined=True)
        assert await logs.tail(KEY, Stream.STDOUT, 10) == b"first\nsecond\n"
        assert await logs.tail(KEY, Stream.STDERR, 10) == b""

    async def test_output_is_appended_to_that_of_earlier_starts(self, logs: LogFiles) -> None:
        write(logs, KEY, b"before\n")
        write(logs, KEY, b"after\n")
        assert await logs.tail(KEY, Stream.STDOUT, 10) == b"before\nafter\n"

    async def test_nothing_is_told_of_what_never_wrote(self, logs: LogFiles) -> None:
        assert await logs.tail(KEY, Stream.STDOUT, 10) == b""
        write(logs, KEY)
        assert await logs.tail(KEY, Stream.STDOUT, 10) == b""

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            (0, b""),
            (1, b"unfinished"),
            (2, b"two\nunfinished"),
            (3, b"one\ntwo\nunfinished"),
            (99, b"one\ntwo\nunfinished"),
        ],
    )
    async def test_tail_counts_an_unfinished_line(self, logs: LogFiles, lines: int, expected: bytes) -> None:
        write(logs, KEY, b"one\ntwo\nunfinished")
        assert await logs.tail(KEY, Stream.STDOUT, lines) == expected

    @pytest.mark.parametrize(("lines", "expected"), [(1, b"\n"), (2, b"two\n\n"), (3, b"one\ntwo\n\n")])
    async def test_tail_counts_empty_lines(self, logs: LogFiles, lines: int, expected: bytes) -> None:
        write(logs, KEY, b"one\ntwo\n\n")
        assert await logs.tail(KEY, Stream.STDOUT, lines) == expected

    async def test_tail_of_long_output_is_exact(self, logs: LogFiles) -> None:
        numbered = [b"%099d\n" % number for number in range(20_000)]
        write(logs, KEY, b"".join(numbered))
        assert await logs.tail(KEY, Stream.STDOUT, 12_345) == b"".join(numbered[-12_345:])

    async def test_follow_gives_the_last_lines_and_then_what_comes(self, logs: LogFiles) -> None:
        write(logs, KEY, b"one\ntwo\nthree\n")
        follower = following(logs, KEY, Stream.STDOUT, 2)
        assert await anext(follower) == b"two\nthree\n"
        write(logs, KEY, b"four\n")
        assert await anext(follower) == b"four\n"
        write(logs, KEY, b"five\n")
        assert await collect(follower, b"five\n") == b"five\n"

    async def test_follow_waits_for_the_first_output(self, logs: LogFiles) -> None:
        waiting = asyncio.create_task(collect(following(logs, KEY, Stream.STDERR, 10), b"!\n"))
        await asyncio.sleep(0)
        write(logs, KEY, b"not this\n", b"at last!\n")
        assert await waiting == b"at last!\n"

    async def test_two_followers_get_the_same(self, logs: LogFiles) -> None:
        both = [asyncio.create_task(collect(following(logs, KEY, Stream.STDOUT, 1000), b"end\n")) for _ in range(2)]
        expected = b"".join(b"%d\n" % number for number in range(500)) + b"end\n"
        write(logs, KEY, expected)
        assert await asyncio.gather(*both) == [expected, expected]

    async def test_watched_output_is_told_in_full(self, logs: LogFiles) -> None:
        watch(logs, KEY, plain(65536, 1000))
        follower = asyncio.create_task(collect(following(logs, KEY, Stream.STDOUT, 100_000), b"end\n"))
        expected = b"".join(b"%099d\n" % number for number in range(20_000)) + b"end\n"
        for start in range(0, len(expected), 50_000):
            write(logs, KEY, expected[start : start + 50_000])
            await asyncio.sleep(0)
        assert await follower == expected
        assert await logs.tail(KEY, Stream.STDOUT, 100_000) == expected
        logs.forget(KEY)
        assert await logs.tail(KEY, Stream.STDOUT, 100_000) == expected

    async def test_ranges_are_counted_from_the_first_byte_or_from_the_end(self, logs: LogFiles) -> None:
        assert await logs.read(KEY, Stream.STDOUT, 0, 10) == (b"", 0, 0)
        write(logs, KEY, b"0123456789")
        for offset, length, expected in [
            (0, 4, (b"0123", 0, 10)), (3, 4, (b"3456", 3, 10)), (8, 100, (b"89", 8, 10)), (10, 5, (b"", 10, 10)),
            (99, 5, (b"", 10, 10)), (-3, 2, (b"78", 7, 10)), (-99, 2, (b"01", 0, 10)), (0, 0, (b"", 0, 10)),
        ]:  # fmt: skip
            assert await logs.read(KEY, Stream.STDOUT, offset, length) == expected

    async def test_what_is_cleared_is_gone_and_offsets_go_on(self, logs: LogFiles) -> None:
        await logs.clear(KEY)
        with logs.open(KEY, APART) as (out, err):
            os.write(out, b"before\n")
            os.write(err, b"too\n")
            follower = following(logs, KEY, Stream.STDOUT, 10)
            assert await anext(follower) == b"before\n"
            await logs.clear(KEY)
            assert await logs.read(KEY, Stream.STDOUT, 0, 10) == (b"", 7, 7)
            assert await logs.tail(KEY, Stream.STDERR, 10) == b""
            await logs.clear(KEY)
            os.write(out, b"after\n")
        assert await anext(follower) == b"after\n"
        assert await logs.read(KEY, Stream.STDOUT, 3, 100) == (b"after\n", 7, 13)
        assert await logs.tail(KEY, Stream.STDOUT, 10) == b"after\n"
        assert await selected(logs, offset=3) == b"[branchd: 4 bytes were rotated away]\nafter\n"
        await follower.aclose()

    async def test_lines_with_a_text_alone(self, logs: LogFiles) -> None:
        write(logs, KEY, b"one apple\ntwo\nthree Apples\nfour apples")
        assert await selected(logs, grep="apple") == b"one apple\nfour apples"
        assert await selected(logs, grep="APPLE", ignore_case=True, tail=2) == b"three Apples\nfour apples"
        assert await selected(logs, grep="APPLE", tail=2) == b""
        assert await selected(logs, grep="o", tail=1) == b"four apples"
        assert await selected(logs, grep="apple", offset=4) == b"apple\nfour apples"

    async def test_following_lines_with_a_text(self, logs: LogFiles) -> None:
        write(logs, KEY, b"old apple\nold pear\n")
        follower = following(logs, KEY, Stream.STDOUT, 5, grep="apple")
        assert await anext(follower) == b"old apple\n"
        write(logs, KEY, b"pear\nan apple\npear\n")
        assert await anext(follower) == b"an apple\n"
        await follower.aclose()

    async def test_pieces_tell_where_they_are(self, logs: LogFiles) -> None:
        write(logs, KEY, b"one\ntwo\n")
        pieces = logs.select(KEY, Stream.STDOUT, Lines(tail=1), follow=True)
        assert await anext(pieces) == Piece(b"two\n", 4, 8)
        write(logs, KEY, b"three\n")
        assert await anext(pieces) == Piece(b"three\n", 8, 14)
        await pieces.aclose()

    async def test_remove_deletes_that_instance_only(self, logs: LogFiles) -> None:
        write(logs, KEY, b"mine\n", b"mine\n")
        write(logs, OTHER, b"other\n")
        watch(logs, KEY, plain(65536, 3))
        await logs.remove(KEY)
        assert await logs.tail(KEY, Stream.STDOUT, 10) == b""
        assert await logs.tail(KEY, Stream.STDERR, 10) == b""
        assert await logs.tail(OTHER, Stream.STDOUT, 10) == b"other\n"
        write(logs, KEY, b"new\n")
        assert await logs.tail(KEY, Stream.STDOUT, 10) == b"new\n"

    async def test_removing_and_forgetting_what_is_not_there_is_fine(self, logs: LogFiles) -> None:
        logs.forget(KEY)
        await logs.remove(KEY)
        await logs.remove(KEY)

    @pytest.mark.parametrize("name", ["..", ".", "", "../other", "/etc", "a/b"])
    def test_names_that_lead_elsewhere_are_refused(self, logs: LogFiles, name: str) -> None:
        for key in (Key("shop", name), Key(name, "worker")):
            with pytest.raises(SpawnFailed), logs.open(key, APART):
                pass
