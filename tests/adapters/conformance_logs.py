"""What every LogFiles must do; run for the real files and for the fake by test_logs.py."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from branchd.branch.ports import LogFiles
from branchd.core.errors import SpawnFailed
from branchd.core.values import Key, Stream

KEY = Key("shop", "worker-1")
OTHER = Key("shop", "worker-2")


def write(logs: LogFiles, key: Key, stdout: bytes = b"", stderr: bytes = b"", joined: bool = False) -> None:
    """As a program would, that was started now and has ended."""
    with logs.open(key, joined) as (out, err):
        os.write(out, stdout)
        os.write(err, stderr)


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
        with logs.open(KEY, False) as (out, err):
            process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=err)
        assert await process.wait() == 0
        assert await logs.tail(KEY, Stream.STDOUT, 10) == b"one\n"
        assert await logs.tail(KEY, Stream.STDERR, 10) == b"two\n"

    def test_descriptors_do_not_leak_into_other_programs(self, logs: LogFiles) -> None:
        with logs.open(KEY, False) as (out, err):
            assert not os.get_inheritable(out)
            assert not os.get_inheritable(err)

    def test_descriptors_are_closed_with_the_block_whatever_happens_in_it(self, logs: LogFiles) -> None:
        with pytest.raises(OSError, match="mine"), logs.open(KEY, False) as (out, err):
            raise OSError("mine")
        for descriptor in (out, err):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    async def test_joined_output_is_one_stream_in_order(self, logs: LogFiles) -> None:
        with logs.open(KEY, True) as (out, err):
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
        following = logs.follow(KEY, Stream.STDOUT, 2)
        assert await anext(following) == b"two\nthree\n"
        write(logs, KEY, b"four\n")
        assert await anext(following) == b"four\n"
        write(logs, KEY, b"five\n")
        assert await collect(following, b"five\n") == b"five\n"

    async def test_follow_waits_for_the_first_output(self, logs: LogFiles) -> None:
        waiting = asyncio.create_task(collect(logs.follow(KEY, Stream.STDERR, 10), b"!\n"))
        await asyncio.sleep(0)
        write(logs, KEY, b"not this\n", b"at last!\n")
        assert await waiting == b"at last!\n"

    async def test_two_followers_get_the_same(self, logs: LogFiles) -> None:
        both = [asyncio.create_task(collect(logs.follow(KEY, Stream.STDOUT, 1000), b"end\n")) for _ in range(2)]
        expected = b"".join(b"%d\n" % number for number in range(500)) + b"end\n"
        write(logs, KEY, expected)
        assert await asyncio.gather(*both) == [expected, expected]

    async def test_watched_output_is_told_in_full(self, logs: LogFiles) -> None:
        logs.watch(KEY, rotate_at=65536, keep=1000)
        following = asyncio.create_task(collect(logs.follow(KEY, Stream.STDOUT, 100_000), b"end\n"))
        expected = b"".join(b"%099d\n" % number for number in range(20_000)) + b"end\n"
        for start in range(0, len(expected), 50_000):
            write(logs, KEY, expected[start : start + 50_000])
            await asyncio.sleep(0)
        assert await following == expected
        assert await logs.tail(KEY, Stream.STDOUT, 100_000) == expected
        logs.forget(KEY)
        assert await logs.tail(KEY, Stream.STDOUT, 100_000) == expected

    async def test_remove_deletes_that_instance_only(self, logs: LogFiles) -> None:
        write(logs, KEY, b"mine\n", b"mine\n")
        write(logs, OTHER, b"other\n")
        logs.watch(KEY, rotate_at=65536, keep=3)
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
            with pytest.raises(SpawnFailed), logs.open(key, False):
                pass
