"""Where in a log a time begins: exact where its lines have their times, else by when archives were made.

The times are those that log_stamping.py writes; a clock that was set back makes of them what it makes of any log.
"""

import json
import os
import re
from datetime import UTC, datetime

from branchd.adapters.log_layout import Layout
from branchd.adapters.rotation import RotatedLog

#: bytes in which a line must begin that has a time: longer than the longest one that is written
WINDOW = 128 << 10

#: seconds by which the time of a file may lie before that of its last write: a tick of the kernel, or all that some
#: file systems can tell apart
GRAIN = 2.0

_STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"

#: the beginning of a line with a time, behind the end of another one or of the file
_LINE = re.compile(rb"(?:^|\n)((?:\{\"at\":\")?(" + _STAMP.encode() + rb")[ \"])", re.ASCII)


def stamp(now: float) -> bytes:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()


def stamped(line: bytes, at: bytes) -> bytes:
    return at + b" " + line + b"\n"


def as_json(line: bytes, at: bytes, stream: str, partial: bool) -> bytes:
    """What is not UTF-8 stands there as \\xNN."""
    text = json.dumps(line.decode(errors="backslashreplace"), ensure_ascii=False).encode()
    return b'{"at":"%s","stream":"%s","line":%s%s}\n' % (at, stream.encode(), text, b',"partial":true' * partial)


def first_since(log: RotatedLog, begin: int, end: int, since: float) -> tuple[int, bool]:
    """The offset of the first line written at or after a time, and whether lines before it may be among what follows.

    OSError.
    """
    try:
        with log.layout() as layout:
            return _first_since(layout, begin, end, since)
    except FileNotFoundError:
        return begin, False


def _first_since(layout: Layout, begin: int, end: int, since: float) -> tuple[int, bool]:
    low = max([begin, *(start for start in _ends_before(layout, since) if start <= end)])
    if low >= end:
        return end, False
    asked = stamp(since)
    first, high = low, end
    while high - low > WINDOW:
        middle = (low + high) // 2
        times = _times(layout, middle, min(middle + WINDOW, high))
        if not times:
            return first, True
        place, at = times[0]
        if at < asked:
            low = place
        else:
            high = middle
    times = _times(layout, low, min(high + WINDOW, end))
    return next((place for place, at in times if at >= asked), end if times else first), not times


def _ends_before(layout: Layout, since: float) -> list[int]:
    """Where archives end that were made before, and the log when nothing was written since."""
    ends = [
        layout.starts[index] + layout.archive_size(index)
        for index in range(len(layout.starts))
        if layout.made(index) < since - GRAIN
    ]
    if layout.live is not None and os.fstat(layout.live).st_mtime < since - GRAIN:
        ends.append(layout.end)
    return ends


def _times(layout: Layout, start: int, stop: int) -> list[tuple[int, bytes]]:
    """Offsets and times of the lines with a time that begin between two offsets."""
    data, found = layout.read(start, stop - start)
    while data and found + len(data) < stop:
        more, at = layout.read(found + len(data), stop - found - len(data))
        if not more or at != found + len(data):
            break
        data += more
    return [(found + match.start(1), match[2]) for match in _LINE.finditer(data)]
