"""Every byte that a program writes is kept, in order and once, whatever the daemon does and whatever happens to it."""

import asyncio
import os
import random
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from branchd.adapters.log_layout import Archive, first_data
from branchd.client import ApiProblem
from tests.e2e.branch import RunningBranch
from tests.e2e.test_survival import SEED
from tests.waiting import until

#: argv: a named pipe; writes 100 MB as lines of 100 bytes, each by itself, at some 10 MB a second, once it is told to
WRITER = """
import os, sys, time
os.read(os.open(sys.argv[1], os.O_RDONLY), 1)
for first in range(0, 1_000_000, 1_000):
    for number in range(first, first + 1_000):
        os.write(1, b"%099d\\n" % number)
    time.sleep(0.008)
"""

#: lines that it writes
TOTAL = 1_000_000

#: an archive is made of this many bytes at most
ROTATE_AT = 1 << 20

#: nothing is deleted
LOGS = {"rotate_at": ROTATE_AT, "keep": 10_000}


def lines(start: int, stop: int) -> bytes:
    return b"".join(b"%099d\n" % number for number in range(start, stop))


class Writer:
    """shop:writer, and what it has written."""

    def __init__(self, branch: RunningBranch) -> None:
        self._branch = branch
        self._pipe = branch.folder / "go"
        os.mkfifo(self._pipe)

    @property
    def folder(self) -> Path:
        return self._branch.folder / "state/logs/shop/writer"

    async def start(self) -> None:
        """Returns when it has begun to write."""
        command = [sys.executable, "-c", WRITER, str(self._pipe)]
        body = {"name": "writer", "command": command, "logs": LOGS, "restart": {"policy": "never"}}
        await self._branch.client.create_instance("shop", body, wait=30)
        self._pipe.write_bytes(b"+")
        live = self.folder / "stdout.log"
        await until(lambda: live.stat().st_size > 3 * ROTATE_AT, 30)

    async def finished(self) -> None:
        """Returns when it has written all and ended."""
        status = await self._branch.state("shop", "writer", "EXITED", 120)
        assert status["restarts"] == 0

    def archives(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.name.startswith("stdout.log."))

    def written(self) -> bytes:
        """All files, in order; their names tell where each begins."""
        written = bytearray()
        for path in self.archives():
            assert path.name == Archive(len(written)).name("stdout.log"), "one is missing, or is left half done"
            assert path.stat().st_size <= ROTATE_AT
            written += path.read_bytes()
        with (self.folder / "stdout.log").open("rb") as live:
            live.seek(first_data(live.fileno()))
            return bytes(written + live.read())


@pytest.fixture
async def writer(branch: RunningBranch) -> Writer:
    await branch.client.put_app("shop", {"kind": "command"})
    return Writer(branch)


async def text(branch: RunningBranch, name: str, **query: Any) -> bytes:
    return b"".join([piece async for piece in branch.client.logs("shop", name, **query)])


async def test_a_hundred_megabytes_are_exact_over_archives_and_live_file_and_to_a_follower(
    branch: RunningBranch, writer: Writer
) -> None:
    await writer.start()
    await branch.client.patch_instance("shop", "writer", {"logs": {"keep": 9_999}})  # it looks at once
    received = bytearray()
    async with aclosing(branch.client.logs("shop", "writer", tail=1, follow=True)) as stream:
        async for piece in stream:
            received += piece
            if received.endswith(b"%099d\n" % (TOTAL - 1)):
                break
    await writer.finished()
    assert len(writer.archives()) >= 20, "rotated while it was written"
    assert writer.written() == lines(0, TOTAL)
    came = int(received[:99])  # the line after which the follower came
    assert came < TOTAL // 2
    assert received == lines(came, TOTAL)
    for count in (0, 1, 7, 10_000):
        assert await text(branch, "writer", tail=count) == lines(TOTAL - count, TOTAL)


async def test_so_are_they_when_the_daemon_is_killed_again_and_again_while_it_rotates(
    branch: RunningBranch, writer: Writer
) -> None:
    chance = random.Random(SEED)
    await writer.start()
    for _ in range(5):
        branch.kill()
        rotated = len(writer.archives())
        await branch.start()
        await until(lambda before=rotated: len(writer.archives()) > before, 30, "it to rotate")
        assert (await branch.status("shop", "writer"))["state"] == "RUNNING"
        await asyncio.sleep(chance.uniform(0, 0.3))  # the random moment, within or between two turns
    await writer.finished()
    assert writer.written() == lines(0, TOTAL), f"BRANCHD_TEST_SEED={SEED}"
    assert await text(branch, "writer", tail=10_000) == lines(TOTAL - 10_000, TOTAL)


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
    assert await text(branch, "w") == b"run\n" * 3


async def test_standard_error_is_joined_in_order_or_has_a_file_of_its_own(branch: RunningBranch) -> None:
    await branch.client.put_app("shop", {"kind": "command", "restart": {"policy": "never"}})
    command = ["/bin/sh", "-c", "echo one; echo two >&2; echo three"]
    for name, stderr in (("joined", "join"), ("apart", "file")):
        await branch.client.create_instance("shop", {"name": name, "command": command, "logs": {"stderr": stderr}})
        await branch.state("shop", name, "EXITED")

    assert await text(branch, "joined") == b"one\ntwo\nthree\n"
    assert (await text(branch, "apart"), await text(branch, "apart", stream="stderr")) == (b"one\nthree\n", b"two\n")
    with pytest.raises(ApiProblem, match="joined") as refused:
        await text(branch, "joined", stream="stderr")
    assert refused.value.status == 409
