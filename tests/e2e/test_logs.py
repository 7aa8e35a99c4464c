"""Every byte that a program writes is kept, in order and once, whatever the daemon does and whatever happens to it."""

import asyncio
import gzip
import json
import os
import random
import shutil
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from branchd.adapters.log_layout import Archive, first_data
from branchd.client import ApiProblem
from tests.e2e.branch import RunningBranch, alive
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
        await until(lambda: live.stat().st_size > 3 * ROTATE_AT)

    async def finished(self) -> None:
        """Returns when it has written all and ended, and all of it but the live file is compressed."""
        status = await self._branch.state("shop", "writer", "EXITED", 120)
        assert status["restarts"] == 0
        await until(lambda: all(path.suffix == ".gz" for path in self.archives()), 60, "all to be compressed")

    def archives(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.name.startswith("stdout.log."))

    def starts(self) -> set[str]:
        """Where the archives begin, compressed or not."""
        return {path.name.split(".")[2] for path in self.archives()}

    def size(self) -> int:
        """Bytes that were written till the last rotation."""
        return max(map(int, self.starts()), default=0)

    def written(self) -> bytes:
        """All files, in order; their names tell where each begins."""
        written = bytearray()
        for path in self.archives():
            plain = Archive(len(written)).name("stdout.log")
            assert path.name in {plain, f"{plain}.gz"}, "one is missing, or is left half done"
            data = path.read_bytes() if path.name == plain else gzip.decompress(path.read_bytes())
            assert len(data) <= ROTATE_AT
            written += data
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
    assert came < TOTAL - 1, "it came while it was written"
    assert received == lines(came, TOTAL)
    for count in (0, 1, 7, 10_000):
        assert await text(branch, "writer", tail=count) == lines(TOTAL - count, TOTAL)


async def test_so_are_they_when_the_daemon_is_killed_again_and_again_while_it_rotates(
    branch: RunningBranch, writer: Writer
) -> None:
    chance = random.Random(SEED)
    await writer.start()
    kills = 0
    while kills < 5 and writer.size() < 80 * TOTAL:  # a slow machine takes longer to start than the program to write
        branch.kill()
        kills += 1
        rotated = writer.starts()
        await branch.start()
        await until(lambda before=rotated: writer.starts() > before, 60, "it to rotate")
        assert (await branch.status("shop", "writer"))["state"] in {"RUNNING", "EXITED"}
        await asyncio.sleep(chance.uniform(0, 0.3))  # the random moment, within or between two turns
    assert kills >= 1
    await writer.finished()
    assert writer.written() == lines(0, TOTAL), f"BRANCHD_TEST_SEED={SEED}"
    assert await text(branch, "writer", tail=10_000) == lines(TOTAL - 10_000, TOTAL)


async def test_what_ends_while_no_daemon_is_there_is_rotated_and_compressed_by_the_next(branch: RunningBranch) -> None:
    await branch.client.put_app("shop", {"kind": "command"})
    go = branch.folder / "go"
    os.mkfifo(go)
    script = f"read x <{go}; head -c 5000000 /dev/zero"
    body = {"name": "w", "command": ["/bin/sh", "-c", script], "logs": LOGS, "restart": {"policy": "never"}}
    pid = (await branch.client.create_instance("shop", body, wait=30))["status"]["pid"]
    branch.kill()
    go.write_text("go\n")
    await until(lambda: not alive(pid), what="it to end")
    await branch.start()
    folder = branch.folder / "state/logs/shop/w"
    await until(lambda: len(list(folder.glob("stdout.log.*.gz"))) >= 4, what="all but the last of 5 MB to be packed")


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


#: argv: how many lines, a file; writes them by pieces that are no lines, as fast as they are taken, and ends when it is
#: there: what a pipe holds of one that ends while no daemon is there is lost
TORN = """
import os, sys, time
data = b"".join(b"%09d\\n" % number for number in range(int(sys.argv[1])))
while data:
    data = data[os.write(1, data[:7777]):]
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
"""


@pytest.mark.parametrize("format", ["timestamped", "json"])
async def test_lines_with_times_are_each_there_once_though_the_daemon_is_killed_again_and_again(
    branch: RunningBranch, format: str
) -> None:
    chance = random.Random(SEED)
    total, end = 400_000, branch.folder / "end"
    await branch.client.put_app("shop", {"kind": "command"})
    body = {"name": "w", "command": [sys.executable, "-c", TORN, str(total), str(end)], "restart": {"policy": "never"},
            "logs": {"format": format, "rotate_at": ROTATE_AT, "keep": 10_000}}  # fmt: skip
    await branch.client.create_instance("shop", body)
    folder = branch.folder / "state/logs/shop/w"
    for _ in range(5):
        branch.kill()
        assert (folder / f"stdout.{format}").is_fifo()
        await branch.start()
        await asyncio.sleep(chance.uniform(0, 0.2))  # the random moment
    end.touch()
    await branch.state("shop", "w", "EXITED", 120)

    async def whole() -> list[bytes]:
        found, offset = b"", 0
        while piece := await text(branch, "w", offset=offset, length=16 << 20):
            found, offset = found + piece, offset + len(piece)
        return found.splitlines()

    found = await whole()
    if format == "json":
        numbers = [json.loads(line)["line"].encode() for line in found]
    else:
        numbers = [line.split(b" ", 1)[1] for line in found]
    assert numbers == [b"%09d" % number for number in range(total)], f"BRANCHD_TEST_SEED={SEED}"
    await until(lambda: not (folder / f"stdout.{format}").exists(), 60, "the pipe to be taken away")
    last = found[-1][7:34] if format == "json" else found[-1][:27]
    since = (await text(branch, "w", since=last.decode())).splitlines()
    assert since == [line for line in found if last in line]

    branch.kill()
    os.mkfifo(folder / f"stdout.{format}", 0o600)  # as if it were killed before it took that away
    await branch.start()
    await until(lambda: not (folder / f"stdout.{format}").exists(), 60, "the next daemon to take it away")
    assert await whole() == found


async def test_what_is_inherited_goes_where_the_daemons_own_goes_and_on_without_it(branch: RunningBranch) -> None:
    await branch.client.put_app("shop", {"kind": "command", "logs": {"to": "inherit"}})
    go = branch.folder / "go"
    os.mkfifo(go)
    command = ["/bin/sh", "-c", f"echo to-stdout; echo to-stderr >&2; read x <{go}; echo without a daemon; sleep 1000"]
    await branch.client.create_instance("shop", {"name": "w", "command": command}, wait=30)
    await until(lambda: "to-stdout\n" in branch.log and "to-stderr\n" in branch.log)
    with pytest.raises(ApiProblem, match="goes where the daemon's own does") as refused:
        await text(branch, "w")
    assert refused.value.status == 409
    branch.kill()
    go.write_text("go\n")
    await until(lambda: "without a daemon\n" in branch.log)


async def test_without_a_journal_an_instance_that_wants_it_says_so(branch: RunningBranch) -> None:
    await branch.client.put_app("shop", {"kind": "command", "restart": {"max_restarts": 0}})
    body = {"name": "w", "command": ["sleep", "1000"], "logs": {"to": "journal"}}
    await branch.client.create_instance("shop", body)
    status = await branch.state("shop", "w", "FATAL")
    assert "there is no journal to write to" in status["reason"]
    assert "systemd-journald" in status["reason"]


@pytest.mark.parametrize(("format", "left"), [("plain", b"second\n"), ("timestamped", b"first\nsecond\nthird\n")])
async def test_a_program_that_opens_dev_stdout_truncates_a_file_and_not_a_pipe(
    branch: RunningBranch, format: str, left: bytes
) -> None:
    """A trap that docs/operating.md tells of."""
    await branch.client.put_app("shop", {"kind": "command", "restart": {"policy": "never"}})
    script = "echo first; echo second >/dev/stdout; " + ("echo third" if format == "timestamped" else "")
    body = {"name": "w", "command": ["/bin/sh", "-c", script], "logs": {"format": format}}
    await branch.client.create_instance("shop", body)
    await branch.state("shop", "w", "EXITED")
    found = [line if format == "plain" else line.split(b" ", 1)[1] for line in (await text(branch, "w")).splitlines()]
    assert b"".join(line + b"\n" for line in found) == left


async def test_a_log_that_is_removed_by_hand_is_told_and_bounded_till_a_restart(branch: RunningBranch) -> None:
    write = "import os, time\nwhile True: os.write(1, b'x' * 9_999 + b'\\n'); time.sleep(0.01)"
    await branch.client.put_app("shop", {"kind": "command", "logs": {"rotate_at": 1 << 16}})
    await branch.client.create_instance("shop", {"name": "w", "command": [sys.executable, "-c", write]}, wait=30)
    pid = (await branch.status("shop", "w"))["pid"]
    folder = branch.folder / "state/logs/shop/w"
    await until(lambda: (folder / "stdout.log").stat().st_size)
    branch.kill()
    shutil.rmtree(folder)
    await branch.start()  # the next daemon finds it so

    async def kept() -> list[str]:
        conditions = (await branch.status("shop", "w"))["conditions"]
        return [one["reason"] for one in conditions if one["type"] == "LogsKept" and one["status"] == "False"]

    [reason] = await until(kept, 30, "it to be noticed")
    assert f"it writes to {folder}/stdout.log (deleted); branchctl restart shop:w" in reason
    with pytest.raises(ApiProblem, match="removed, moved or replaced") as refused:
        await text(branch, "w")
    assert refused.value.status == 409
    assert "logs" in [one["check"] for one in (await branch.client.doctor())["findings"] if one["level"] == "warning"]

    def written() -> int:
        return int(Path(f"/proc/{pid}/io").read_text().split("wchar: ")[1].split()[0])

    held = Path(f"/proc/{pid}/fd/1")
    await until(lambda: written() > held.stat().st_size + (1 << 20), 60, "it to be emptied")
    assert (await branch.status("shop", "w"))["pid"] == pid

    await branch.client.restart("shop", "w", wait=30)
    assert not await kept()
    assert await until(lambda: text(branch, "w", tail=1)) == b"x" * 9_999 + b"\n"
