"""The agents' socket: what every channel does, and what only a real one can be done to."""

import asyncio
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from branchd.adapters.channel import RATE_LIMIT, AgentChannel
from branchd.core.errors import Fatal, NoChannel, Refused
from branchd.wire import agent, json
from branchd.wire.agent import MESSAGE_LIMIT
from tests.adapters.conformance_channel import SOON, UP, ChannelConformance, Heard
from tests.waiting import until


class SocketPeer:
    """An agent in this process."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(str(path))
        self.socket.setblocking(False)

    async def say(self, message: Mapping[str, Any]) -> None:
        self.send(json.dumps(message))

    def send(self, raw: bytes) -> bool:
        try:
            return bool(self.socket.send(raw))
        except (BrokenPipeError, ConnectionResetError):
            return False

    async def hear(self) -> dict[str, Any]:
        raw = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, MESSAGE_LIMIT), SOON)
        heard: dict[str, Any] = json.loads(raw)
        return heard

    async def hung_up(self) -> bool:
        """Waits until the other side has ended the line."""
        try:
            return not await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, MESSAGE_LIMIT), SOON)
        except ConnectionResetError:
            return True

    async def leave(self) -> None:
        self.socket.close()


class SocketLine:
    pid = os.getpid()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channel = AgentChannel(path)
        self.peers: list[SocketPeer] = []

    async def arrive(self) -> SocketPeer:
        self.peers.append(SocketPeer(self.path))
        return self.peers[-1]


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[SocketLine]:
    made = SocketLine(tmp_path / "agents.sock")
    yield made
    made.channel.close()
    for peer in made.peers:
        peer.socket.close()


class TestAgentChannel(ChannelConformance):
    async def test_another_process_is_turned_away_whoever_admitted_its_parent(
        self, line: SocketLine, heard: Heard
    ) -> None:
        line.channel.admit(line.pid)
        code = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
            "try: sys.exit(len(s.recv(10)))\n"
            "except ConnectionResetError: sys.exit(0)"
        )
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(line.path))
        assert await asyncio.wait_for(child.wait(), SOON) == 0
        assert not line.channel.connected(line.pid)

    @pytest.mark.parametrize(
        "raw",
        [
            b"\xff",
            b"no JSON",
            b"[]",
            b"{}",
            b'{"type": "reply"}',
            b'{"type": "heartbeat", "loop_age": NaN}',
            b"[" * 50_000,
            b'{"type": "heartbeat", "queues": ["' + b"x" * MESSAGE_LIMIT + b'"]}',
        ],
        ids=["bytes", "text", "list", "untyped", "unnumbered", "constant", "deep", "oversized"],
    )
    async def test_garbage_ends_the_line_and_the_worker_may_come_again(
        self, line: SocketLine, heard: Heard, peer: SocketPeer, raw: bytes
    ) -> None:
        peer.send(raw)
        assert await peer.hung_up()
        assert heard.closed == [line.pid]
        again = await line.arrive()
        await again.say(UP)
        await until(lambda: heard.beats, SOON)

    async def test_a_message_of_the_limit_is_taken(self, line: SocketLine, heard: Heard, peer: SocketPeer) -> None:
        frame = json.dumps({**UP, "more": ""})
        peer.send(json.dumps({**UP, "more": "x" * (MESSAGE_LIMIT - len(frame))}))
        await until(lambda: heard.beats, SOON)

    async def test_a_flood_ends_the_line_also_when_it_reconnects(
        self, line: SocketLine, heard: Heard, peer: SocketPeer
    ) -> None:
        def flooded() -> bool:
            """Whether it is disconnected; sends much faster than an agent."""
            try:
                return not peer.send(json.dumps(UP))
            except BlockingIOError:
                return False

        await until(flooded, SOON)
        assert len(heard.beats) < 3 * RATE_LIMIT
        await until(lambda: heard.closed == [line.pid], SOON)
        turned_away = await line.arrive()
        assert await turned_away.hung_up()

        async def welcome() -> bool:
            """The next second, it may speak again."""
            await line.arrive()
            await asyncio.sleep(0.05)
            return line.channel.connected(line.pid)

        await until(welcome, SOON)

    async def test_an_agent_that_does_not_read_gets_no_more_commands(self, line: SocketLine, peer: SocketPeer) -> None:
        command = agent.cancel_consumer("x" * 50_000)
        asking = [asyncio.create_task(line.channel.ask(line.pid, command, 1)) for _ in range(100)]
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(outcome, NoChannel) for outcome in outcomes)
        assert "takes no commands" in str(outcomes[-1])

    async def test_a_command_beyond_the_limit_is_refused(self, line: SocketLine, peer: SocketPeer) -> None:
        with pytest.raises(Refused, match="at most"):
            await line.channel.ask(line.pid, agent.cancel_consumer("x" * MESSAGE_LIMIT), SOON)

    async def test_everybody_who_reaches_the_folder_may_connect(self, line: SocketLine, heard: Heard) -> None:
        mode = line.path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o666

    async def test_the_socket_of_an_earlier_daemon_is_replaced(self, line: SocketLine) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
            stale.bind(str(line.path))
        assert line.path.is_socket()
        line.channel.admit(line.pid)
        Heard(line.channel)
        await line.arrive()
        await until(lambda: line.channel.connected(line.pid), SOON)

    async def test_anything_else_in_its_place_is_left_alone(self, line: SocketLine) -> None:
        line.path.write_text("precious")
        with pytest.raises(Fatal, match="not a socket"):
            Heard(line.channel)
        assert line.path.read_text() == "precious"

    async def test_a_socket_on_which_another_daemon_answers_is_left_alone(self, line: SocketLine, heard: Heard) -> None:
        second = AgentChannel(line.path)
        with pytest.raises(Fatal, match="another daemon listens there"):
            Heard(second)
        second.close()
        line.channel.admit(line.pid)
        await line.arrive()
        await until(lambda: line.channel.connected(line.pid), SOON)

    async def test_a_socket_that_somebody_put_in_its_place_is_left_alone(self, line: SocketLine, heard: Heard) -> None:
        line.path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as another:
            another.bind(str(line.path))
            line.channel.close()
            assert line.path.is_socket()

    async def test_nothing_is_left_after_close(self, line: SocketLine, heard: Heard) -> None:
        line.channel.close()
        line.channel.close()
        assert not line.path.exists()
