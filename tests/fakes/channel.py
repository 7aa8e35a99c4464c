"""Channel without sockets: tests speak for the agents."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from branchd.core.errors import NoChannel, Refused
from branchd.wire import json
from branchd.wire.agent import Heartbeat, parse


class FakeAgent:
    """What is at the other end of one line."""

    def __init__(self, channel: "FakeChannel", pid: int) -> None:
        self._channel = channel
        self._pid = pid
        self.commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.waiting: dict[int, asyncio.Future[Any]] = {}

    def say(self, message: Mapping[str, Any]) -> None:
        """A heartbeat or a reply as the wire has it; what is none ends the line."""
        if self._channel.agents.get(self._pid) is not self:
            return
        try:
            parsed = parse(json.dumps(message))
        except ValueError:
            self.leave()
            return
        if isinstance(parsed, Heartbeat):
            self._channel.on_message(self._pid, parsed)
            return
        waiting = self.waiting.get(parsed.id)
        if waiting is None or waiting.done():
            return
        if parsed.error is not None:
            waiting.set_exception(Refused(parsed.error))
        else:
            waiting.set_result(parsed.ok)

    def leave(self) -> None:
        if self._channel.agents.get(self._pid) is self:
            self._channel.drop(self._pid)
            self._channel.on_close(self._pid)


class FakeChannel:
    """Implements branchd.branch.ports.Channel."""

    def __init__(self) -> None:
        self.agents: dict[int, FakeAgent] = {}
        self.admitted: set[int] = set()
        self._numbers = itertools.count(1)

    def arrive(self, pid: int) -> FakeAgent | None:
        """An agent connects; None when it is turned away."""
        if pid not in self.admitted:
            return None
        self.drop(pid)
        self.agents[pid] = agent = FakeAgent(self, pid)
        return agent

    def drop(self, pid: int) -> None:
        agent = self.agents.pop(pid, None)
        for waiting in agent.waiting.values() if agent else ():
            if not waiting.done():
                waiting.set_exception(NoChannel("the worker's agent went away"))

    def listen(self, on_message: Callable[[int, Heartbeat], None], on_close: Callable[[int], None]) -> None:
        self.on_message = on_message
        self.on_close = on_close

    def close(self) -> None:
        for pid in list(self.admitted):
            self.dismiss(pid)

    def admit(self, pid: int) -> None:
        self.admitted.add(pid)

    def dismiss(self, pid: int) -> None:
        self.admitted.discard(pid)
        self.drop(pid)

    def connected(self, pid: int) -> bool:
        return pid in self.agents

    async def ask(self, pid: int, message: Mapping[str, Any], timeout: float) -> Any:
        agent = self.agents.get(pid)
        if agent is None:
            raise NoChannel("the worker's agent is not connected")
        number = next(self._numbers)
        agent.waiting[number] = asyncio.get_running_loop().create_future()
        agent.commands.put_nowait({**message, "id": number})
        try:
            async with asyncio.timeout(timeout):
                return await agent.waiting[number]
        except TimeoutError:
            raise NoChannel(f"the worker's agent did not answer within {timeout:g} s") from None
        finally:
            agent.waiting.pop(number, None)
