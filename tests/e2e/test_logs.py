"""Every byte that a program writes is kept, in order and once, whatever the daemon does and whatever happens to it."""

import asyncio
import os
import random
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from branchd.adapters.log_layout import Archive, first_data
from branchd.client import ApiProblem
from tests.e2e.branch import RunningBranch
from tests.e2e.test_survival import SEED
from tests.waiting import until

#: argv: a named pipe, and how many lines of 100 bytes are written for each byte that comes through it
WRITER = """
import os, sys
go, together, written = os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2]), 0
while os.read(go, 1) == b"+":
    for number in range(written, written + together):
        os.write(1, b"%099d\\n" % number)
    written += together
"""

#: an archive is made of this many bytes at most
ROTATE_AT = 1 << 20

LOGS = {"rotate_at": ROTATE_AT, "keep": 10_000}


def lines(start: int, stop: int) -> bytes:
    return b"".join(b"%099d\n" % number for number in range(start, stop))


class Writer:
    """shop:writer, and what it has written."""

    def __init__(self, branch: RunningBranch, together: int) -> None:
        self._branch = branch
        self._together = together
        self._pipe = branch.folder / "go"
        os.mkfifo(self._pipe)
        self._descriptor = os.open(self._pipe, os.O_RDWR)  # held: what is written waits till the program reads it
        self.expected = 0  #: lines

    @property
    def folder(self) -> Path:
        return self._branch.folder / "state/logs/shop/writer"

    async def create(self) -> None:
        command = [sys.executable, "-c", WRITER, str(self._pipe), str(self._together)]
        body = {"name": "writer", "command": command, "logs": LOGS, "restart": {"policy": "never"}}
        await self._branch.client.create_instance("shop", body, wait=30)

    def go(self) -> None:
        os.write(self._descriptor, b"+")
        self.expected += self._together

    async def finish(self) -> None:
        """Waits till it has written all and ended."""
        os.write(self._descriptor, b".")
        status = await self._branch.state("shop", "writer", "EXITED", 120)
        assert status["restarts"] == 0

    def close(self) -> None:
        os.close(self._descriptor)

    def archives(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.name.startswith("stdout.log."))

    def written(self) -> Iterator[bytes]:
        """All files, in order; the names tell where each begins."""
        position = 0
        for path in self.archives():
            assert path.name == Archive(position).name("stdout.log"), "an archive is missing, or one is half done"
            data = path.read_bytes()
            assert len(data) <= ROTATE_AT
            position += len(data)
            yield data
        with (self.folder / "stdout.log").open("rb") as live:
            live.seek(first_data(live.fileno()))
            yield live.read()


@pytest.fixture
async def writer(branch: RunningBranch) -> Any:
    """Writes 20 MB each time it is told to."""
    await branch.client.put_app("shop", {"kind": "command"})
    writer = Writer(branch, 200_000)
    await writer.create()
    yield writer
    writer.close()


async def test_a_hundred_megabytes_are_exact_over_archives_and_live_file(branch: RunningBranch, writer: Writer) -> None:
    for _ in range(5):
        writer.go()
    await writer.finish()
    assert len(writer.archives()) >= 10, "rotated while it was written"
    assert b"".join(writer.written()) == lines(0, 1_000_000)


async def test_so_are_they_when_the_daemon_is_killed_again_and_again_while_it_rotates(
    branch: RunningBranch, writer: Writer
) -> None:
    chance = random.Random(SEED)
    for _ in range(5):
        rotated = len(writer.archives())
        writer.go()
        await until(lambda before=rotated: len(writer.archives()) > before, 60, "it to rotate")
        await asyncio.sleep(chance.uniform(0, 0.2))  # the random moment, within or between two turns
        branch.kill()
        await branch.start()
    await writer.finish()
    assert b"".join(writer.written()) == lines(0, 1_000_000), f"BRANCHD_TEST_SEED={SEED}"


async def test_following_over_http_is_exact_while_it_is_rotated(branch: RunningBranch, writer: Writer) -> None:
    received = bytearray()
    writer.go()
    async with aclosing(branch.client.logs("shop", "writer", tail=10_000, follow=True)) as stream:
        first = await anext(stream)
        start = int(first.split(b"\n", 1)[0])  # where the follower came in
        received += first
        writer.go()
        async for piece in stream:
            received += piece
            if len(received) >= (400_000 - start) * 100:
                break
    assert len(writer.archives()) >= 2, "rotated while it was followed"
    assert bytes(received) == lines(start, 400_000)


async def test_the_tail_is_the_end_of_what_was_written_across_archives(branch: RunningBranch, writer: Writer) -> None:
    writer.go()
    await writer.finish()
    for count in (0, 1, 7, 10_000):
        tail = b"".join([piece async for piece in branch.client.logs("shop", "writer", tail=count)])
        assert tail == lines(200_000 - count, 200_000)


async def test_output_goes_on_in_the_same_log_after_a_crash(branch: RunningBranch) -> None:
    await branch.client.put_app("shop", {"kind": "command"})
    body = {
        "name": "w",
        "command": ["/bin/sh", "-c", "echo run; exit 3"],
        "restart": {"max_restarts": 2, "ceiling": 0},
    }
    await branch.client.create_instance("shop", body)
    status = await branch.state("shop", "w", "FATAL")
    assert status["last_exit"]["code"] == 3
    assert b"".join([piece async for piece in branch.client.logs("shop", "w")]) == b"run\n" * 3


async def test_standard_error_is_joined_in_order_or_has_a_file_of_its_own(branch: RunningBranch) -> None:
    await branch.client.put_app("shop", {"kind": "command", "restart": {"policy": "never"}})
    command = ["/bin/sh", "-c", "echo one; echo two >&2; echo three"]
    for name, stderr in (("joined", "join"), ("apart", "file")):
        await branch.client.create_instance("shop", {"name": name, "command": command, "logs": {"stderr": stderr}})
        await branch.state("shop", name, "EXITED")

    async def text(name: str, stream: str) -> bytes:
        return b"".join([piece async for piece in branch.client.logs("shop", name, stream=stream)])

    assert await text("joined", "stdout") == b"one\ntwo\nthree\n"
    assert (await text("apart", "stdout"), await text("apart", "stderr")) == (b"one\nthree\n", b"two\n")
    with pytest.raises(ApiProblem, match="joined") as refused:
        await text("joined", "stderr")
    assert refused.value.status == 409


async def test_a_program_that_writes_goes_on_while_no_daemon_is_there(branch: RunningBranch, writer: Writer) -> None:
    writer.go()
    branch.kill()
    size = (writer.folder / "stdout.log").stat
    await until(lambda: not writer.archives() or size().st_size >= 0)
    before = sum(map(len, writer.written()))
    await until(lambda: sum(map(len, writer.written())) >= max(before, 20_000_000), 60, "it to write all")
    await branch.start()
    await writer.finish()
    assert b"".join(writer.written()) == lines(0, 200_000)
