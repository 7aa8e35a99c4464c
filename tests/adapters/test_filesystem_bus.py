"""The bus in a folder: the suite of all buses, and what several programs on one folder make of it."""
# ruff: noqa: ASYNC240  (tests look at files as they please)

import asyncio
import json
import shutil
import stat
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from branchd.adapters.filesystem_bus import LONGEST_FILE, FilesystemBus
from branchd.core.errors import Unavailable
from branchd.wire.portions import LONGEST_MESSAGE
from tests.adapters.conformance_bus import ONE, SOON, TWO, BusConformance, Join, Member, NewBus
from tests.waiting import until, until_sync

#: opens a bus, binds twenty keys one after the other, and says so; it leaves when its input ends
BINDER = """
import asyncio, sys
from pathlib import Path
from branchd.adapters.filesystem_bus import FilesystemBus

async def main(folder, branch):
    bus = FilesystemBus(Path(folder), "hood", branch)
    connected = asyncio.Event()
    await bus.open(lambda key, body: None, lambda state: connected.set())
    await connected.wait()
    for number in range(20):
        await bus.bind([f"i.{branch}:{number}"])
    print("bound", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await bus.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "mesh"


def inbox(folder: Path, branch: str) -> Path:
    return folder / "queues" / f"branchd.hood.inbox.{branch}"


def table(folder: Path) -> set[tuple[str, str]]:
    """Keys and who holds them, of the direct exchange."""
    held = json.loads((folder / "control" / "branchd.hood.direct.exchange").read_text())
    assert len(held) == len({tuple(binding) for binding in held})
    return {(key, queue.rpartition(".")[2]) for key, _, queue in held}


class TestFilesystemBus(BusConformance):
    @pytest.fixture
    def new_bus(self, folder: Path) -> NewBus:
        return lambda branch: FilesystemBus(folder, "hood", branch)

    async def test_it_does_not_tell_that_nobody_holds_a_key(self, one: Member) -> None:
        assert not one.bus.definite
        assert await one.bus.send("i.web:nobody", b"")
        await (await one.bus.claim("web:one")).release()

    async def test_neighbourhoods_in_one_folder_do_not_hear_each_other(self, folder: Path, one: Member) -> None:
        other = Member(ONE, FilesystemBus(folder, "other", ONE))
        await other.open()
        await other.connected()
        await other.bus.send(one.inbox, b"there")
        await other.has_heard((one.inbox, b"there"))
        await one.bus.send(one.inbox, b"here")
        await one.has_heard((one.inbox, b"here"))
        await other.bus.close()

    async def test_only_this_user_may_enter_the_folder(self, folder: Path, one: Member) -> None:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    async def test_it_leaves_nothing_behind(self, folder: Path, one: Member, two: Member) -> None:
        await one.bus.bind(["i.web:one"])
        await one.bus.close()
        assert table(folder) == {(two.inbox, TWO)}
        assert not inbox(folder, ONE).exists()
        await until(lambda: not [each for each in threading.enumerate() if ONE in each.name])

    async def test_what_an_earlier_life_left_is_gone_at_the_next(self, folder: Path, one: Member, join: Join) -> None:
        await one.bus.bind(["i.web:one"])
        await one.bus.close()
        # as a kill -9 leaves it
        inbox(folder, ONE).mkdir()
        (inbox(folder, ONE) / f"{5:020d}-x.msg").write_text("cut o")
        exchange = folder / "control" / "branchd.hood.direct.exchange"
        exchange.write_text(json.dumps([["i.web:one", "", f"branchd.hood.inbox.{ONE}"]]))
        again = await join(ONE)
        assert table(folder) == {(again.inbox, ONE)}
        await again.bus.send("i.web:one", b"lost")
        await again.bus.send(again.inbox, b"me")
        await again.has_heard((again.inbox, b"me"))

    async def test_what_is_old_is_not_heard(self, folder: Path, one: Member) -> None:
        old = inbox(folder, ONE) / f"{5:020d}-x.msg"
        old.write_text("{}")
        await until(lambda: not old.exists(), SOON)
        await one.bus.send(one.inbox, b"new")
        await one.has_heard((one.inbox, b"new"))

    @pytest.mark.parametrize("text", [b"{}", b"[]", b"null", b"cut o", b"\xff", b'{"body": 1, "properties": 2}'])
    async def test_a_file_that_is_no_message_is_thrown_away_and_ends_nothing(
        self, folder: Path, one: Member, text: bytes
    ) -> None:
        await one.bus.bind(["i.web:one"])
        file = inbox(folder, ONE) / f"{time.monotonic_ns():020d}-x.msg"
        file.write_bytes(text)
        await until(lambda: not file.exists(), SOON)
        await asyncio.wait_for(one.bus.send("i.web:one", b"new"), SOON)
        await one.has_heard(("i.web:one", b"new"))
        assert [state.connected for state in one.states] == [True]

    async def test_a_message_that_is_too_long_is_told_of_and_not_kept(self, folder: Path, one: Member) -> None:
        file = inbox(folder, ONE) / f"{time.monotonic_ns():020d}-x.msg"
        with file.open("wb") as long:
            long.truncate(LONGEST_FILE + 1)
        await until(lambda: one.heard, SOON)
        assert one.heard == [("", None)]
        one.heard.clear()
        await one.bus.send(one.inbox, b"x" * LONGEST_MESSAGE)
        await one.has_heard((one.inbox, b"x" * LONGEST_MESSAGE))

    async def test_a_loop_that_is_busy_is_not_given_more_than_it_can_keep(
        self, one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        turns: Counter[FilesystemBus] = Counter()
        receive = FilesystemBus._receive

        def counting(bus: FilesystemBus) -> int:
            turns[bus] += 1
            return receive(bus)

        monkeypatch.setattr(FilesystemBus, "_receive", counting)
        monkeypatch.setattr("branchd.adapters.filesystem_bus.MOST_BYTES_WAITING", 1000)
        for _ in range(40):
            two.bus.broadcast(b"x" * 600)
        until_sync(lambda: one.bus._loop.size > 1000, SOON)  # and the loop takes nothing
        before = turns[one.bus]
        until_sync(lambda: not two.bus._work and turns[one.bus] > before + 5, SOON)
        assert one.bus._loop.size == 1200
        await until(lambda: len(one.heard) == 40, SOON)

    async def test_a_folder_that_hangs_holds_nobody_up(self, one: Member, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("branchd.adapters.filesystem_bus.ANSWER_LIMIT", 0.2)
        hang = threading.Event()
        monkeypatch.setattr(FilesystemBus, "_publish", lambda *_: hang.wait(SOON))
        try:
            with pytest.raises(Unavailable, match="does not answer in time"):
                await asyncio.wait_for(one.bus.send(one.inbox, b"x"), SOON)
        finally:
            hang.set()

    async def test_what_nobody_reads_is_swept(self, folder: Path, one: Member, monkeypatch: pytest.MonkeyPatch) -> None:
        inbox(folder, TWO).mkdir()
        old = inbox(folder, TWO) / f"{5:020d}-x.msg"
        old.write_text("{}")
        monkeypatch.setattr("branchd.adapters.filesystem_bus.SWEEP", 0)
        await until(lambda: not old.exists(), SOON)

    async def test_a_folder_that_vanishes_is_a_lost_connection_and_is_made_again(
        self, folder: Path, one: Member, two: Member
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for member in (one, two):
            await until(lambda: [state.connected for state in member.states] == [True, False, True], SOON)  # noqa: B023
            assert str(folder) in member.states[1].why
        assert await one.bus.send(two.inbox, b"back")
        await two.has_heard((two.inbox, b"back"))

    async def test_a_folder_that_cannot_be_made_is_told(self, folder: Path, enter: Join) -> None:
        folder.write_text("a file")
        one = await enter(ONE)
        await until(lambda: one.states, SOON)
        assert not one.bus.state.connected
        assert str(folder) in one.bus.state.why
        folder.unlink()
        await one.connected()

    @pytest.mark.parametrize("sweep", [0, 10])
    async def test_what_several_send_at_once_arrives_whole_and_in_order(
        self, join: Join, monkeypatch: pytest.MonkeyPatch, sweep: float
    ) -> None:
        monkeypatch.setattr("branchd.adapters.filesystem_bus.SWEEP", sweep)
        members = [await join(str(number) * 32) for number in range(4)]
        for number in range(200):
            for member in members:
                member.bus.broadcast(f"{member.inbox} {number}".encode())
        for member in members:
            await until(lambda: len(member.heard) == 800, SOON)  # noqa: B023
            for sender in members:
                from_it = [body for _, body in member.heard if body.startswith(sender.inbox.encode())]
                assert from_it == [f"{sender.inbox} {number}".encode() for number in range(200)]
            assert [state.connected for state in member.states] == [True]

    async def test_programs_that_bind_at_once_lose_nothing(self, folder: Path) -> None:
        branches = [f"branch{number}" for number in range(6)]
        programs = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", BINDER, folder, branch),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            for branch in branches
        ]
        for program in programs:
            assert program.stdout is not None
            assert await asyncio.wait_for(program.stdout.readline(), SOON) == b"bound\n"
        bound = {(f"i.{branch}:{number}", branch) for branch in branches for number in range(20)}
        assert table(folder) == bound | {(f"b.{branch}", branch) for branch in branches}
        await asyncio.gather(*(program.communicate(b"") for program in programs))
        assert table(folder) == set()
