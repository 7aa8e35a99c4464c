"""The end of the daemon's own log, in memory, for those who ask the daemon for it.

What is written here goes to the standard error too, and is there, or in the journal, for good.
"""

import threading

#: bytes that are kept at least, once there were so many
KEPT = 128 << 10


class OwnLog:
    """Offsets count all bytes that were ever written to it. Any thread may write."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._first = 0  #: offset of the first byte that is kept
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        with self._lock:
            self._kept += text.encode(errors="replace")
            if len(self._kept) > 2 * KEPT:
                self._drop(len(self._kept) - KEPT)

    def clear(self) -> None:
        """Offsets go on counting."""
        with self._lock:
            self._drop(len(self._kept))

    def _drop(self, count: int) -> None:
        del self._kept[:count]
        self._first += count

    async def read(self, offset: int, length: int) -> tuple[bytes, int, int]:
        """As LogFiles.read()."""
        with self._lock:
            size = len(self._kept)
            start = max(size + offset if offset < 0 else min(offset - self._first, size), 0)
            return bytes(self._kept[start : start + length]), self._first + start, self._first + size
