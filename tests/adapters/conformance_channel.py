"""What every Channel does, the real one and the fake: a suite to inherit from; `line` is the fixture to give."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import pytest

from branchd.branch.ports import Channel
from branchd.core.errors import NoChannel, Refused
from branchd.core.health import Phase
from branchd.wire import agent
from branchd.wire.agent import Heartbeat
from tests.waiting import until

#: seconds for what should happen at once
SOON = 30.0
UP = {"type": "heartbeat", "phase": "up"}


class Peer(Protocol):
    """An agent's end."""

    async def say(self, message: Mapping[str, Any]) -> None: ...

    async def hear(self) -> dict[str, Any]:
        """The next command."""

    async def leave(self) -> None: ...


class Line(Protocol):
    """A channel under test and the process whose agents speak."""

    channel: Channel
    pid: int

    async def arrive(self) -> Peer:
        """Connects an agent of that process, turned away or not."""


class Heard:
    """What the channel reported."""

    def __init__(self, channel: Channel) -> None:
        self.beats: list[tuple[int, Heartbeat]] = []
        self.closed: list[int] = []
        channel.listen(lambda pid, beat: self.beats.append((pid, beat)), self.closed.append)


class ChannelConformance:
    @pytest.fixture
    async def heard(self, line: Line) -> Heard:
        return Heard(line.channel)

    @pytest.fixture
    async def peer(self, line: Line, heard: Heard) -> Peer:
        """An agent that was admitted and has connected."""
        line.channel.admit(line.pid)
        arrived = await line.arrive()
        await until(lambda: line.channel.connected(line.pid), SOON)
        return arrived

    async def test_an_admitted_agent_is_heard(self, line: Line, heard: Heard, peer: Peer) -> None:
        await peer.say({**UP, "active": 3, "queues": ["a", "b"], "autoscale": [1, 4]})
        await until(lambda: heard.beats, SOON)
        assert heard.beats == [(line.pid, Heartbeat(Phase.UP, active=3, queues=("a", "b"), autoscale=(1, 4)))]

    async def test_others_are_turned_away(self, line: Line, heard: Heard) -> None:
        stranger = await line.arrive()
        await stranger.say(UP)
        line.channel.admit(line.pid)
        known = await line.arrive()
        await until(lambda: line.channel.connected(line.pid), SOON)
        await known.say({"type": "heartbeat", "phase": "down"})
        await until(lambda: heard.beats, SOON)
        assert [beat.phase for _, beat in heard.beats] == [Phase.DOWN]
        assert heard.closed == []

    async def test_an_answer_is_returned(self, line: Line, peer: Peer) -> None:
        asking = asyncio.create_task(line.channel.ask(line.pid, agent.stats(), SOON))
        command = await peer.hear()
        assert (command["type"], command["op"]) == ("command", "stats")
        await peer.say({"type": "reply", "id": command["id"], "ok": {"some": ["value"]}})
        assert await asking == {"some": ["value"]}

    async def test_answers_find_their_questions_in_any_order(self, line: Line, peer: Peer) -> None:
        one = asyncio.create_task(line.channel.ask(line.pid, agent.cancel_consumer("one"), SOON))
        first = await peer.hear()
        two = asyncio.create_task(line.channel.ask(line.pid, agent.cancel_consumer("two"), SOON))
        second = await peer.hear()
        for command in (second, first):
            await peer.say({"type": "reply", "id": command["id"], "ok": command["name"]})
        assert (await one, await two) == ("one", "two")

    async def test_a_no_is_told_in_the_agents_words(self, line: Line, peer: Peer) -> None:
        asking = asyncio.create_task(line.channel.ask(line.pid, agent.autoscale(1, 2), SOON))
        command = await peer.hear()
        await peer.say({"type": "reply", "id": command["id"], "error": "no autoscale here"})
        with pytest.raises(Refused, match="no autoscale here"):
            await asking

    async def test_silence_has_an_end_and_a_late_answer_harms_nobody(
        self, line: Line, heard: Heard, peer: Peer
    ) -> None:
        with pytest.raises(NoChannel, match="did not answer"):
            await line.channel.ask(line.pid, agent.stats(), 0.05)
        late = await peer.hear()
        await peer.say({"type": "reply", "id": late["id"], "ok": "pong"})
        await peer.say(UP)
        await until(lambda: heard.beats, SOON)
        assert line.channel.connected(line.pid)

    async def test_nobody_there_is_told_at_once(self, line: Line, heard: Heard) -> None:
        line.channel.admit(line.pid)
        assert not line.channel.connected(line.pid)
        with pytest.raises(NoChannel, match="not connected"):
            await line.channel.ask(line.pid, agent.stats(), SOON)

    async def test_an_agent_that_leaves_is_reported_once_and_its_questions_fail(
        self, line: Line, heard: Heard, peer: Peer
    ) -> None:
        asking = asyncio.create_task(line.channel.ask(line.pid, agent.stats(), SOON))
        await peer.hear()
        await peer.leave()
        with pytest.raises(NoChannel, match="went away"):
            await asking
        await until(lambda: heard.closed, SOON)
        assert heard.closed == [line.pid]
        assert not line.channel.connected(line.pid)

    async def test_an_agent_that_comes_again_takes_the_place_of_the_first(
        self, line: Line, heard: Heard, peer: Peer
    ) -> None:
        asking = asyncio.create_task(line.channel.ask(line.pid, agent.stats(), SOON))
        await peer.hear()
        second = await line.arrive()
        with pytest.raises(NoChannel, match="went away"):
            await asking
        again = asyncio.create_task(line.channel.ask(line.pid, agent.stats(), SOON))
        await second.say({"type": "reply", "id": (await second.hear())["id"], "ok": "second"})
        assert await again == "second"
        assert heard.closed == []

    async def test_a_dismissed_worker_is_cut_off(self, line: Line, heard: Heard, peer: Peer) -> None:
        line.channel.dismiss(line.pid)
        line.channel.dismiss(line.pid)
        assert not line.channel.connected(line.pid)
        await peer.say(UP)
        line.channel.admit(line.pid)
        await line.arrive()
        await until(lambda: line.channel.connected(line.pid), SOON)
        assert (heard.beats, heard.closed) == ([], [])

    async def test_what_is_no_message_ends_the_line(self, line: Line, heard: Heard, peer: Peer) -> None:
        await peer.say({"type": "heartbeat", "active": "many"})
        await until(lambda: heard.closed == [line.pid], SOON)
        assert heard.beats == []

    async def test_close_ends_every_line_without_a_word(self, line: Line, heard: Heard, peer: Peer) -> None:
        line.channel.close()
        assert not line.channel.connected(line.pid)
        assert heard.closed == []
