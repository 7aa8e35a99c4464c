"""Compressed archives: gzip that any tool reads, of which any part can be read without what comes before it.

An archive is cut into members that are compressed each by itself. The last member is empty; an extra field of its
header, which other tools skip, says where the others begin:

    offsets of the members, 8 bytes each; bytes of the whole, 8; bytes of a member but the last, 4; how many, 4

Nothing here knows of names: descriptors in, bytes out.
"""

import errno
import os
import struct
import zlib
from collections.abc import Callable

#: bytes of a member: what is in memory at a time, and what is decompressed to read one byte
MEMBER = 256 << 10

#: members; what is larger than so many of them gets larger ones. An extra field has 65535 bytes at most.
MOST_MEMBERS = 8_000

#: of 1 (fast) to 9; 6 takes a third longer, for two percent less
LEVEL = 4

_GZIP = 16 + zlib.MAX_WBITS
_FOOT = struct.Struct("<QII")
_OFFSET = struct.Struct("<Q")
_NEXT = struct.Struct("<QQ")

#: of the index: gzip, deflate, with an extra field, no time, no system; after it the field's length
_HEAD = b"\x1f\x8b\x08\x04\0\0\0\0\x00\xff"

#: of an empty member: no data, its checksum, its length
_TAIL = b"\x03\x00" + bytes(8)

#: bytes of head, length of the field, name of the subfield, its length
_BEFORE = len(_HEAD) + 6


def pack(plain: int, packed: int, go_on: Callable[[], bool]) -> bool:
    """Compresses one file into another, empty one; False when go_on(), asked after each member, said no. OSError."""
    size = os.fstat(plain).st_size
    member = -(-size // MOST_MEMBERS // MEMBER) * MEMBER or MEMBER
    offsets: list[int] = []
    at = 0
    for start in range(0, size, member):
        offsets.append(at)
        compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
        at += _write(packed, compressor.compress(_read(plain, start, min(member, size - start))) + compressor.flush())
        if not go_on():
            return False
    index = b"".join(map(_OFFSET.pack, offsets)) + _FOOT.pack(size, member, len(offsets))
    _write(packed, _HEAD + struct.pack("<H2sH", 4 + len(index), b"BR", len(index)) + index + _TAIL)
    return True


def size(packed: int) -> int:
    """Bytes of what was compressed; OSError."""
    return _foot(packed)[0]


def read(packed: int, start: int, count: int) -> bytes:
    """Up to count bytes from an offset in what was compressed: not beyond a member's end. OSError."""
    total, member, members = _foot(packed)
    if start >= total or count <= 0:
        return b""
    number = start // member
    content = _member(packed, number, members)
    return content[start - number * member :][:count]


def read_before(packed: int, stop: int, count: int) -> bytes:
    """Up to count bytes that end at an offset: not from before the beginning of a member. OSError."""
    _, member, _ = _foot(packed)
    start = max(stop - count, (stop - 1) // member * member)
    return read(packed, start, stop - start)


def _foot(packed: int) -> tuple[int, int, int]:
    place = os.fstat(packed).st_size - len(_TAIL) - _FOOT.size
    found = os.pread(packed, _FOOT.size + len(_TAIL), place) if place > 0 else b""
    if not found.endswith(_TAIL):
        raise _broken()
    total, member, members = _FOOT.unpack_from(found)
    if member == 0 or members != -(-total // member):
        raise _broken()
    return total, member, members


def _member(packed: int, number: int, members: int) -> bytes:
    index = os.fstat(packed).st_size - len(_TAIL) - _FOOT.size - members * _OFFSET.size
    found = os.pread(packed, _NEXT.size, index + number * _OFFSET.size)
    if len(found) < _NEXT.size:
        raise _broken()
    start, stop = _NEXT.unpack(found)
    if number + 1 == members:
        stop = index - _BEFORE
    if not 0 <= start < stop <= index:
        raise _broken()
    try:
        return zlib.decompress(_read(packed, start, stop - start), _GZIP)
    except zlib.error as error:
        raise _broken() from error


def _broken() -> OSError:
    return OSError(errno.EBADMSG, "not an archive that was compressed here, or damaged")


def _read(source: int, start: int, count: int) -> bytes:
    data = os.pread(source, count, start)
    while len(data) < count and (more := os.pread(source, count - len(data), start + len(data))):
        data += more
    return data


def _write(target: int, data: bytes) -> int:
    done = 0
    while done < len(data):
        done += os.write(target, data[done:])
    return done
