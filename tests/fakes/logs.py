"""LogFiles in memory, for tests of who uses the port: passes tests/adapters/conformance_logs.py. It never rotates."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from branchd.core.errors import SpawnFailed
from branchd.core.values import Key, Stream


class MemoryLogs:
    """What programs wrote can be had by tail(); what the caller asked for stands in `watched`."""

    def __init__(self) -> None:
        self.watched: dict[Key, tuple[int, int]] = {}  #: (rotate_at, keep)
        self._memory: dict[tuple[Key, Stream], int] = {}

    @contextmanager
    def open(self, key: Key, joined: bool) -> Iterator[tuple[int, int]]:
        if any(part in ("", ".", "..") or "/" in part for part in (key.app, key.name)):
            raise SpawnFailed(f"the log files of {key} cannot be opened")
        descriptors = [self._open(key, stream) for stream in ([Stream.STDOUT] if joined else Stream)]
        try:
            yield descriptors[0], descriptors[-1]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def watch(self, key: Key, rotate_at: int, keep: int) -> None:
        self.watched[key] = rotate_at, keep

    def forget(self, key: Key) -> None:
        self.watched.pop(key, None)

    async def remove(self, key: Key) -> None:
        self.forget(key)
        for stream in Stream:
            memory = self._memory.pop((key, stream), None)
            if memory is not None:
                os.close(memory)

    async def tail(self, key: Key, stream: Stream, lines: int) -> bytes:
        return self._tail(self._content(key, stream), lines)

    async def follow(self, key: Key, stream: Stream, lines: int) -> AsyncIterator[bytes]:
        content = self._content(key, stream)
        position = len(content)
        if last := self._tail(content, lines):
            yield last
        while True:
            content = self._content(key, stream)
            position = 0 if position > len(content) else position
            if position < len(content):
                yield content[position:]
                position = len(content)
            else:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for key, _ in list(self._memory):
            await self.remove(key)

    def _open(self, key: Key, stream: Stream) -> int:
        if (key, stream) not in self._memory:
            self._memory[key, stream] = os.memfd_create(f"{key}.{stream}")
        return os.open(f"/proc/self/fd/{self._memory[key, stream]}", os.O_WRONLY | os.O_APPEND)

    def _content(self, key: Key, stream: Stream) -> bytes:
        memory = self._memory.get((key, stream))
        return b"" if memory is None else os.pread(memory, os.fstat(memory).st_size, 0)

    @staticmethod
    def _tail(content: bytes, lines: int) -> bytes:
        return b"".join(content.splitlines(keepends=True)[-lines:]) if lines > 0 else b""
