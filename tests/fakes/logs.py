"""LogFiles in memory, for tests of who uses the port: passes tests/adapters/conformance_logs.py.

It never rotates, and whatever the format is, the bytes stay as they were written.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager

from branchd.branch.output import taken_away
from branchd.branch.ports import Lines, Piece
from branchd.core.errors import SpawnFailed
from branchd.core.spec import Logs, Stderr
from branchd.core.values import Key, Stream


class MemoryLogs:
    """What programs wrote can be had by tail(); what the caller asked for stands in `watched`."""

    def __init__(self) -> None:
        self.watched: dict[Key, Logs] = {}
        self._lost: dict[Key, tuple[int, Mapping[Stream, str]]] = {}  #: of the program of that pid
        self._on_lost: dict[Key, tuple[int, Callable[[], None]]] = {}
        self._memory: dict[tuple[Key, Stream], int] = {}
        self._base: dict[tuple[Key, Stream], int] = {}  #: bytes that were cleared

    @contextmanager
    def open(self, key: Key, logs: Logs) -> Iterator[tuple[int, int]]:
        if any(part in ("", ".", "..") or "/" in part for part in (key.app, key.name)):
            raise SpawnFailed(f"the log files of {key} cannot be opened")
        streams = [Stream.STDOUT] if logs.stderr is Stderr.JOIN else list(Stream)
        descriptors = [self._open(key, stream) for stream in streams]
        try:
            yield descriptors[0], descriptors[-1]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def watch(self, key: Key, logs: Logs, pid: int, on_lost: Callable[[], None]) -> None:
        self.watched[key] = logs
        self._on_lost[key] = pid, on_lost
        if key in self._lost and self._lost[key][0] != pid:
            del self._lost[key]

    def lost(self, key: Key) -> Mapping[Stream, str]:
        return self._lost[key][1] if key in self._lost else {}

    def lose(self, key: Key, stream: Stream, where: str) -> None:
        """As if somebody took it away."""
        pid, on_lost = self._on_lost[key]
        self._lost[key] = pid, {**self.lost(key), stream: where}
        on_lost()

    def forget(self, key: Key) -> None:
        self.watched.pop(key, None)
        self._lost.pop(key, None)

    async def remove(self, key: Key) -> None:
        self.forget(key)
        for stream in Stream:
            self._base.pop((key, stream), None)
            memory = self._memory.pop((key, stream), None)
            if memory is not None:
                os.close(memory)

    async def clear(self, key: Key) -> None:
        for stream in Stream:
            if (memory := self._memory.get((key, stream))) is not None:
                self._base[key, stream] = self._base.get((key, stream), 0) + os.fstat(memory).st_size
                os.ftruncate(memory, 0)

    def path(self, key: Key, stream: Stream) -> str:
        return f"/logs/{key.app}/{key.name}/{stream}.log"

    async def tail(self, key: Key, stream: Stream, lines: int) -> bytes:
        self._check(key, stream)
        return self._tail(self._content(key, stream)[0], lines)

    async def read(self, key: Key, stream: Stream, offset: int, length: int) -> tuple[bytes, int, int]:
        self._check(key, stream)
        content, base = self._content(key, stream)
        end = base + len(content)
        found = min(max(end + offset if offset < 0 else offset, base), end)
        return content[found - base :][:length], found, end

    async def select(
        self, key: Key, stream: Stream, lines: Lines, *, follow: bool = False
    ) -> AsyncGenerator[Piece, None]:
        self._check(key, stream)
        content, base = self._content(key, stream)
        end = base + len(content)
        asked = base if lines.offset is None else lines.offset
        start = min(max(asked, base), end)
        data = self._matching(lines, content[start - base :])
        if lines.tail is not None:
            data = self._tail(data, lines.tail)
        if not lines.grep and lines.tail is not None:
            start = end - len(data)
        gap = max(base - asked, 0)
        yield Piece(data, start, end, gap, coarse=lines.since is not None)
        while follow and stream not in self.lost(key):
            content, base = self._content(key, stream)
            end = end if end <= base + len(content) else base
            if new := content[end - base :]:
                yield Piece(self._matching(lines, new), end, end + len(new))
                end += len(new)
            else:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for key, _ in list(self._memory):
            await self.remove(key)

    def _open(self, key: Key, stream: Stream) -> int:
        if (key, stream) not in self._memory:
            self._memory[key, stream] = os.memfd_create(f"{key}.{stream}")
        return os.open(f"/proc/self/fd/{self._memory[key, stream]}", os.O_WRONLY | os.O_APPEND)

    def _check(self, key: Key, stream: Stream) -> None:
        if where := self.lost(key).get(stream):
            raise taken_away(key, stream, where)

    def _content(self, key: Key, stream: Stream) -> tuple[bytes, int]:
        memory = self._memory.get((key, stream))
        found = b"" if memory is None else os.pread(memory, os.fstat(memory).st_size, 0)
        return found, self._base.get((key, stream), 0)

    @staticmethod
    def _matching(lines: Lines, content: bytes) -> bytes:
        text = lines.grep.lower() if lines.ignore_case else lines.grep
        found = content.splitlines(keepends=True)
        return b"".join(line for line in found if text.encode() in (line.lower() if lines.ignore_case else line))

    @staticmethod
    def _tail(content: bytes, lines: int) -> bytes:
        return b"".join(content.splitlines(keepends=True)[-lines:]) if lines > 0 else b""
