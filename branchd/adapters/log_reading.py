"""The last lines of a log, and what comes after an offset: over archives and live file as one stream of bytes.

All of it blocks: it runs in a thread of logs.py's.
"""

from branchd.adapters.log_layout import Layout
from branchd.adapters.rotation import RotatedLog

#: lines that one request gets at most
MOST_LINES = 100_000

#: bytes that the last lines may be at most: a program that never ends its line must not fill the daemon's memory
MOST_BYTES = 16 << 20

#: bytes read at a time, backwards
BLOCK = 64 << 10

#: bytes handed on at a time to who follows: what is in memory per follower
CHUNK = 256 << 10


def last_lines(log: RotatedLog, lines: int) -> tuple[bytes, int]:
    """The last lines, an unfinished one too, and the logical offset behind them; OSError.

    At most MOST_LINES and about MOST_BYTES; what is left of a line that these bounds cut is left out.
    """
    lines = min(lines, MOST_LINES)
    try:
        with log.layout() as layout:
            return (_last_lines(layout, lines) if lines > 0 else b""), layout.end
    except FileNotFoundError:
        return b"", 0


def read_on(log: RotatedLog, position: int) -> tuple[bytes, int]:
    """What was written from the logical offset on, up to CHUNK bytes, and the offset behind it; OSError.

    Where archives were deleted unread, a line that says so comes alone. A program that truncates its log is read from
    its new beginning; no bytes means that there are none yet.
    """
    try:
        with log.layout() as layout:
            data, found = layout.read(position, CHUNK)
    except FileNotFoundError:
        return b"", 0
    if found > position:
        return b"[branchd: %d bytes were rotated away]\n" % (found - position), found
    return data, found + len(data)


def _last_lines(layout: Layout, lines: int) -> bytes:
    blocks: list[bytes] = []
    newlines = length = 0
    for block in layout.blocks_backwards(BLOCK):
        blocks.append(block)
        newlines += block.count(b"\n")
        length += len(block)
        if newlines > lines or length >= MOST_BYTES:  # one more than lines: the last one may end the data
            break
    data = b"".join(reversed(blocks))
    start = len(data) - data.endswith(b"\n")
    for _ in range(lines):
        start = data.rfind(b"\n", 0, start)
        if start < 0:
            break
    if start < 0 and length >= MOST_BYTES:
        start = data.find(b"\n")
    return data[start + 1 :]
