"""What is bad on the broker, in a key, a state folder or a clock is refused in words, and `doctor` tells of it."""

import asyncio
import json
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import amqp
import pytest
from click.testing import CliRunner

from branchd.cli import control, daemon
from branchd.client import ApiProblem
from branchd.wire.portions import LONGEST_MESSAGE
from branchd.wire.sealing import VERSION
from tests.e2e.branch import RunningBranch
from tests.rabbitmq import RabbitMQ
from tests.waiting import until

#: the daemon in a process whose clock is 10 minutes ahead
FAST = """\
import time
real = time.time
time.time = lambda: real() + 600
from branchd.cli.daemon import main
main()
"""

#: seconds; an inbox that another connection holds is taken for this branch's own last one for 30
LOCKED = 60

Finding = dict[str, str]


class Member(RunningBranch):
    """A branch of a neighbourhood."""

    fast = False

    def command(self, *arguments: str) -> Sequence[str]:
        whole = super().command(*arguments)
        return [sys.executable, "-c", FAST, *whole[whole.index("run") :]] if self.fast else whole

    async def doctor(self, code: int | None = None) -> list[Finding]:
        """What `branchctl doctor` finds, the first one first; `code`: its exit code."""
        arguments = ["--url", f"unix:{self.socket}", "--run", f"{self.folder}/run", "doctor", "-o", "json"]
        told = await asyncio.to_thread(CliRunner().invoke, control.main, arguments)
        assert code is None or told.exit_code == code, told.output
        found: list[Finding] = json.loads(told.stdout)["findings"]
        assert all(finding["cure"] for finding in found if finding["level"] != "ok"), found
        return found

    async def finds(self, check: str, *words: str, level: str = "failure", code: int = 1, seconds: float = 30) -> None:
        """Waits until doctor tells of it, and exits so."""

        async def found() -> bool:
            self.seen = await self.doctor()
            meant = [one for one in self.seen if (one["check"], one["level"]) == (check, level)]
            return any(all(word in f"{one['detail']} {one['cure']}" for word in words) for one in meant)

        self.seen: list[Finding] = []
        try:
            await until(found, seconds, f"doctor to find {check} {words}")
        except AssertionError as late:
            raise AssertionError(f"{late}; it finds {self.seen}") from None
        await self.doctor(code)

    async def names(self) -> list[str]:
        return sorted(branch["name"] for branch in (await self.client.branches())["items"])


class Maker:
    def __init__(self, folder: Path) -> None:
        self.neighbourhood = f"doctor-{secrets.token_hex(4)}"
        self.folder = folder
        self._made: list[Member] = []

    def key(self, name: str = "key") -> Path:
        file = self.folder / name
        if not file.exists():
            made = CliRunner().invoke(daemon.main, ["key", "new", str(file)])
            assert made.exit_code == 0, made.output
        return file

    def __call__(self, name: str, broker: str, *arguments: str, key: Path | None = None, fast: bool = False) -> Member:
        where = self.folder / name
        where.mkdir(exist_ok=True)
        given = ("--name", name, "--broker", broker, "--neighbourhood", self.neighbourhood, *arguments)
        member = Member(where, *given, env={"BRANCHD_KEY_FILE": str(key or self.key())})
        member.fast = fast
        self._made.append(member)
        return member

    def end(self) -> None:
        for member in self._made:
            member.clean_up()


@pytest.fixture
def make(folder: Path) -> Iterator[Maker]:
    maker = Maker(folder)
    yield maker
    maker.end()


async def together(*members: Member) -> None:
    async def all_known() -> bool:
        known = [await member.names() for member in members]
        return all(len(names) == len(members) for names in known)

    await until(all_known, 30, "the branches to know each other")


class Intruder:
    """Somebody who knows the broker's password, and not the neighbourhood's key."""

    def __init__(self, broker: RabbitMQ, neighbourhood: str) -> None:
        self._everyone, self._direct = f"branchd.{neighbourhood}.all", f"branchd.{neighbourhood}.direct"
        parts = urlsplit(broker.url)
        self._connection = amqp.Connection(f"{parts.hostname}:{parts.port}", parts.username, parts.password)
        self._connection.connect()
        self._channel = self._connection.channel()
        self._queue = self._channel.queue_declare("", exclusive=True).queue
        self._channel.queue_bind(self._queue, self._everyone)

    def listen(self, whose: str) -> bytes:
        """The next announcement of the branch with that id, as it goes over the wire."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = self._channel.basic_get(self._queue, no_ack=True)
            if message is not None and whose.encode() in bytes(message.body):
                return bytes(message.body)
            self._connection.heartbeat_tick()
            time.sleep(0.05)  # between two looks
        raise AssertionError("no announcement")

    def say(self, body: bytes, to: str | None = None) -> None:
        """To all, or to the branch with that id."""
        exchange, key = (self._everyone, "") if to is None else (self._direct, f"b.{to}")
        self._channel.basic_publish(amqp.Message(body), exchange, key)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def intruder(broker: RabbitMQ, neighbourhood: str) -> Iterator[Intruder]:
    one = Intruder(broker, neighbourhood)
    try:
        yield one
    finally:
        one.close()


def changed(message: bytes, index: int, byte: int) -> bytes:
    copy = bytearray(message)
    copy[index] = byte
    return bytes(copy)


# Messages


async def test_messages_of_somebody_without_the_key_are_dropped_and_counted(rabbitmq: RabbitMQ, make: Maker) -> None:
    left, right = await make("left", rabbitmq.url).start(), await make("right", rabbitmq.url).start()
    await together(left, right)
    ids = {branch["name"]: branch["id"] for branch in (await left.client.branches())["items"]}
    before = await left.doctor(0)
    assert "messages" not in {finding["check"] for finding in before}, before
    with intruder(rabbitmq, make.neighbourhood) as mallory:
        genuine = await asyncio.to_thread(mallory.listen, ids["right"])
        bad = {
            "replayed": genuine,
            "forged": changed(genuine, -1, genuine[-1] ^ 1),
            "wrong version": changed(genuine, 3, VERSION + 1),
            "unknown key": changed(genuine, 4, genuine[4] ^ 1),
            "garbage": b'{"kind": "Announce"}',
            "oversized": b"x" * (LONGEST_MESSAGE + 1),
        }
        for number, body in enumerate(bad.values(), 2):
            for _ in range(number):
                mallory.say(body)
        mallory.say(genuine, to=ids["left"])
        for number, reason in enumerate(bad, 2):
            level = "warning" if reason in {"garbage", "oversized"} else "failure"
            await left.finds("messages", f"{number} dropped as '{reason}'", level=level)
        await left.finds("messages", "1 dropped as 'wrong target'", level="warning")

    # Nothing else came of them.
    await together(left, right)
    await left.client.put_app("shop", {"kind": "command", "command": ["sleep", "1000"], "user": "nobody"})
    made = await left.client.at("right").create_instance("shop", {"name": "web"}, wait=20)
    assert (made["branch"], made["status"]["state"]) == ("right", "RUNNING")


# Keys


async def test_a_branch_with_another_key_is_not_believed_and_both_are_told(rabbitmq: RabbitMQ, make: Maker) -> None:
    left = await make("left", rabbitmq.url).start()
    stranger = await make("stranger", rabbitmq.url, key=make.key("another")).start()
    for member in (left, stranger):
        await member.finds("messages", "dropped as 'unknown key'", "compare the key ids")
        assert await member.names() == [member.folder.name]


async def test_a_broker_without_a_key_is_refused_and_doctor_says_which_command_makes_one(make: Maker) -> None:
    keyless = make("keyless", "amqp://guest:guest@127.0.0.1:1//", key=make.folder / "nowhere")
    assert keyless.launch().wait(60) == 1
    await keyless.finds("start", "nowhere", "branchd key new", code=6)
    assert (await keyless.doctor(6))[0]["check"] == "daemon"

    unnamed = RunningBranch(keyless.folder, "--broker", "amqp://guest:guest@127.0.0.1:1//")
    assert unnamed.launch().wait(60) == 1
    await keyless.finds("start", "key_file", "branchd key new", code=6)


# Identities


async def test_a_copied_state_folder_is_refused_and_doctor_says_what_to_answer(rabbitmq: RabbitMQ, make: Maker) -> None:
    left = await make("left", rabbitmq.url).start()
    await left.finds("broker", "connected to", level="ok", code=0)
    assert left.stop() == 0
    shutil.copytree(left.folder, make.folder / "copy", symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    copy = make("copy", rabbitmq.url)
    assert copy.launch().wait(60) == 1
    await copy.finds("start", "inode", "--new-id", "--same-machine", code=6)


async def test_a_second_branch_of_one_id_stays_out_and_is_told_why(rabbitmq: RabbitMQ, make: Maker) -> None:
    left = await make("left", rabbitmq.url).start()
    await left.finds("broker", "connected to", level="ok", code=0)
    shutil.copytree(left.folder, make.folder / "copy", symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    copy = await make("copy", rabbitmq.url, "--same-machine").start()
    await copy.finds("broker", "another branch with the id", "start one of them with a new id", seconds=LOCKED)
    await left.finds("broker", "connected to", level="ok", code=0)
    assert await copy.names() == ["copy"]


# Clocks


async def test_a_clock_that_is_ten_minutes_off_writes_no_definitions(rabbitmq: RabbitMQ, make: Maker) -> None:
    left, right = make("left", rabbitmq.url), make("right", rabbitmq.url)
    early = make("early", rabbitmq.url, fast=True)
    await asyncio.gather(left.start(), right.start(), early.start())
    await together(left, right, early)
    await early.finds("clock", "ahead of the median", "set the clock")
    app = {"kind": "command", "command": ["sleep", "1000"]}
    with pytest.raises(ApiProblem, match=r"clock-skew: this branch's clock is \d+ s ahead") as refused:
        await early.client.put_app("shop", app)
    assert refused.value.status == 503
    for member in (left, right):
        await member.finds("clock", "the median of the neighbourhood", level="ok", code=0)
    assert (await right.client.put_app("shop", app))["name"] == "shop"


# Brokers


async def test_a_broker_of_another_cluster_is_not_taken_for_the_first(
    rabbitmq: RabbitMQ, own_rabbitmq: RabbitMQ, make: Maker
) -> None:
    left = await make("left", f"{own_rabbitmq.url};{rabbitmq.url}").start()
    await left.finds("broker", f"connected to amqp://127.0.0.1:{own_rabbitmq.port}", level="ok", code=0)
    own_rabbitmq.kill()
    await left.finds("broker", "belongs to the cluster", "make them one cluster, or name one only")
    own_rabbitmq.start()
    await left.finds("broker", f"connected to amqp://127.0.0.1:{own_rabbitmq.port}", level="ok", code=0)
