"""What is asked of a log, piece by piece: its last lines, those with a text, those since a time, those to come.

Archives and live file are one stream of bytes. All of it blocks, a slice of work at a time: it runs in threads of
logs.py's. How a time is found stands in log_times.py.
"""

import time
from collections.abc import Callable, Generator
from enum import Enum, auto

from branchd.adapters import log_times
from branchd.adapters.rotation import RotatedLog
from branchd.branch.ports import Lines, Piece

#: lines from the end of a log that are looked for at most
MOST_LINES = 100_000

#: bytes that an answer has at most: a program that never ends its line must not fill the daemon's memory
MOST_BYTES = 16 << 20

#: seconds that are spent on looking for lines that are there
MOST_SECONDS = 10.0

#: bytes read at a time, and handed on at a time to who follows
CHUNK = 256 << 10

#: bytes that are looked through at a time; then it is somebody else's turn
SLICE = 4 << 20

#: bytes after which a line counts as one, though its end has not come
LONGEST_LINE = 64 << 10

#: which whole lines are asked for, of some; None: all, and bytes need not be lines
Filter = Callable[[bytes], list[bytes]] | None


class Progress(Enum):
    """What a reader says when it has nothing to tell."""

    WORKING = auto()  #: it has done a slice of its work
    WAITING = auto()  #: there is nothing more to read yet


Reading = Generator[Piece | Progress, None, None]


def read_range(log: RotatedLog, offset: int, length: int) -> tuple[bytes, int, int]:
    """What LogFiles.read() gives; OSError."""
    try:
        with log.layout() as layout:
            begin = min(max(layout.end + offset if offset < 0 else offset, layout.first), layout.end)
            blocks: list[bytes] = []
            position, left = begin, min(length, MOST_BYTES)
            while left > 0:
                data, found = layout.read(position, min(left, CHUNK))
                if not data or (blocks and found != position):
                    break
                begin = begin if blocks else found
                blocks.append(data)
                position, left = found + len(data), left - len(data)
            return b"".join(blocks), begin, layout.end
    except FileNotFoundError:
        return b"", 0, 0


def select(log: RotatedLog, lines: Lines, *, follow: bool) -> Reading:
    """What LogFiles.select() gives. OSError.

    A program that truncates its log is read from its new beginning. A last piece tells how far it was looked.
    """
    deadline = time.monotonic() + MOST_SECONDS
    begin, end, gap = _bounds(log, lines.offset)
    coarse = False
    if lines.since is not None:
        begin, coarse = log_times.first_since(log, begin, end, lines.since)
    wanted = _filter(lines)
    if lines.tail is None:
        yield Piece(b"", begin, begin, gap, coarse)
        position = begin
    else:
        tail = min(lines.tail, MOST_LINES)
        if wanted is None:
            found = yield from _last_bytes(log, begin, end, tail)
        else:
            found = yield from _last_matching(log, begin, end, tail, wanted, deadline, follow)
        yield Piece(found.data, found.start, found.end, gap, coarse, found.cut)
        position = found.end
    if follow:
        yield from _follow(log, position, wanted)
    elif lines.tail is None:
        yield from _forward(log, position, end, wanted, deadline)


def _bounds(log: RotatedLog, offset: int | None) -> tuple[int, int, int]:
    """Where to begin and to end, and how much of what was asked for is gone."""
    try:
        with log.layout() as layout:
            if offset is None:
                return layout.first, layout.end, 0
            if offset > layout.end:
                return layout.base, layout.end, 0
            return max(offset, layout.first), layout.end, max(layout.first - offset, 0)
    except FileNotFoundError:
        return 0, 0, 0


def _filter(lines: Lines) -> Filter:
    text = lines.grep.encode()
    if not text:
        return None
    if not lines.ignore_case:
        return lambda data: [line for line in _split(data) if text in line] if text in data else []
    small = text.lower()  # of ASCII letters alone, as those of the lines
    return lambda data: [line for line in _split(data) if small in line.lower()] if small in data.lower() else []


def _split(data: bytes) -> list[bytes]:
    """Lines with their ends; the last one may have none."""
    *whole, rest = data.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _last_bytes(log: RotatedLog, begin: int, end: int, tail: int) -> Generator[Progress, None, Piece]:
    """The last lines, an unfinished one too: at most about MOST_BYTES; of a line that this cuts nothing is told."""
    blocks: list[bytes] = []
    newlines = length = 0
    position = end
    while tail > 0 and newlines <= tail and length < MOST_BYTES:  # one more than tail: the last one may end the data
        block = _before(log, position, begin)
        if not block:
            break
        blocks.append(block)
        newlines += block.count(b"\n")
        length += len(block)
        position -= len(block)
        if length % SLICE < len(block):
            yield Progress.WORKING
    data = b"".join(reversed(blocks))
    start = len(data) - data.endswith(b"\n")
    for _ in range(tail):
        start = data.rfind(b"\n", 0, start)
        if start < 0:
            break
    bounded = start < 0 and length >= MOST_BYTES
    if bounded:
        start = data.find(b"\n")
    data = data[start + 1 :]
    return Piece(data, end - len(data), end, cut=bounded)


def _last_matching(
    log: RotatedLog, begin: int, end: int, tail: int, wanted: Callable[[bytes], list[bytes]], deadline: float,
    whole: bool,
) -> Generator[Progress, None, Piece]:  # fmt: skip
    """The last lines that are wanted; `whole`: an unfinished one is left to who follows."""
    found: list[list[bytes]] = []
    count = length = 0
    position, rest = end, b""  # rest: from position on, the end of a line that begins before it
    told = end
    bounded = False
    while count < tail and not bounded:
        block = _before(log, position, begin)
        position -= len(block)
        data = block + rest
        if whole and told == end and block:  # what follows the last newline
            unfinished = len(data) - data.rfind(b"\n") - 1
            if unfinished < len(data) and unfinished <= LONGEST_LINE:
                told = end - unfinished
                data = data[: len(data) - unfinished]
        cut = data.find(b"\n") + 1 if block else 0
        if block and cut == 0 and len(data) <= LONGEST_LINE:
            rest = data
            continue
        rest = data[:cut]
        matches = wanted(data[cut:])[-(tail - count) :]
        found.append(matches)
        count += len(matches)
        length += sum(map(len, matches))
        if not block:
            break
        bounded = length >= MOST_BYTES or time.monotonic() > deadline
        if (end - position) % SLICE < len(block):
            yield Progress.WORKING
    lines = b"".join(line for matches in reversed(found) for line in matches)
    return Piece(lines, position, told, cut=bounded and count < tail)


def _forward(log: RotatedLog, position: int, end: int, wanted: Filter, deadline: float) -> Reading:
    """What lies up to an offset, within the bounds of an answer."""
    told = looked = 0
    rest = b""
    while position < end and told < MOST_BYTES and time.monotonic() <= deadline:
        data, found = _next(log, position, min(CHUNK, end - position, MOST_BYTES - told))
        gap = max(found - position, 0)
        if not data or found < position:
            break
        position = found + len(data)
        if wanted is not None:
            data, rest = _whole(rest + data if not gap else data, position >= end)
            data = b"".join(wanted(data))
        told += len(data)
        looked += CHUNK
        if data or gap:
            yield Piece(data, found, position - len(rest), gap)
        elif looked % SLICE == 0:
            yield Progress.WORKING
    position -= len(rest)
    yield Piece(b"", position, position, cut=position < end)


def _follow(log: RotatedLog, position: int, wanted: Filter) -> Reading:
    rest = b""
    while True:
        data, found = _next(log, position, CHUNK)
        if found != position:
            rest = b""
        gap = max(found - position, 0)
        position = found + len(data)
        if wanted is not None:
            data, rest = _whole(rest + data, last=False)
            data = b"".join(wanted(data))
        if data or gap:
            yield Piece(data, found, position - len(rest), gap)
        else:
            yield Progress.WORKING if position > found else Progress.WAITING


def _whole(data: bytes, last: bool) -> tuple[bytes, bytes]:
    """Lines, and what is left of one that has not ended."""
    lines = len(data) if last else data.rfind(b"\n") + 1
    if len(data) - lines > LONGEST_LINE:
        lines = len(data)
    return data[:lines], data[lines:]


def _before(log: RotatedLog, position: int, begin: int) -> bytes:
    try:
        with log.layout() as layout:
            return layout.read_before(position, min(CHUNK, position - begin)) if position > begin else b""
    except FileNotFoundError:
        return b""


def _next(log: RotatedLog, position: int, count: int) -> tuple[bytes, int]:
    try:
        with log.layout() as layout:
            return layout.read(position, count)
    except FileNotFoundError:
        return b"", 0
