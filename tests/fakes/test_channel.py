"""The fake keeps what the real channel promises."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.adapters.conformance_channel import ChannelConformance
from tests.fakes.channel import FakeAgent, FakeChannel


class FakePeer:
    def __init__(self, agent: FakeAgent | None) -> None:
        self._agent = agent

    async def say(self, message: Mapping[str, Any]) -> None:
        if self._agent is not None:
            self._agent.say(message)

    async def hear(self) -> dict[str, Any]:
        assert self._agent is not None
        return await self._agent.commands.get()

    async def leave(self) -> None:
        assert self._agent is not None
        self._agent.leave()


class FakeLine:
    pid = 4711

    def __init__(self) -> None:
        self.channel = FakeChannel()

    async def arrive(self) -> FakePeer:
        return FakePeer(self.channel.arrive(self.pid))


class TestFakeChannel(ChannelConformance):
    @pytest.fixture
    def line(self) -> FakeLine:
        return FakeLine()
