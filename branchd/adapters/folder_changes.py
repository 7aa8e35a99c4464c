"""Which folders something was written in since somebody last asked: inotify(7), read when somebody wants to know.

It wakes nobody. When to ask, and what to do then, is log_watching.py's.
"""

import ctypes
import os
import struct

import structlog

_log = structlog.get_logger(__name__)

# linux/inotify.h
MODIFY, MOVED, CREATE, DELETE = 0x02, 0xC0, 0x100, 0x200
DELETE_SELF, MOVE_SELF = 0x400, 0x800
OVERFLOW = 0x4000
ONLYDIR, DONT_FOLLOW, MASK_CREATE, ONESHOT = 0x01000000, 0x02000000, 0x10000000, 0x80000000

#: tells once, of whatever comes first: a log that is written to all the time costs one event
_MASK = MODIFY | MOVED | CREATE | DELETE | DELETE_SELF | MOVE_SELF
_MASK |= ONLYDIR | DONT_FOLLOW | MASK_CREATE | ONESHOT

#: watch, mask, cookie, and the length of the name that follows
_EVENT = struct.Struct("=iIII")

#: bytes read at a time; an event with the longest name takes 272
_BUFFER = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]


class FolderChanges:
    """Its calls may come from any thread. Close it."""

    def __init__(self) -> None:
        self._descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:  # of these a user has 128
            _log.info("logs-are-polled", reason=os.strerror(ctypes.get_errno()))

    def watch(self, folder: str) -> int | None:
        """What happens in there from now on is told once, under this number.

        None where the kernel has no room for it, or tells of that folder already.
        """
        if self._descriptor < 0:
            return None
        number: int = _libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _MASK)
        return None if number < 0 else number

    def forget(self, number: int) -> None:
        """It is not told any more. One that was told needs none of this."""
        _libc.inotify_rm_watch(self._descriptor, number)

    def changed(self) -> set[int] | None:
        """Where something happened since the last call; None: it may have happened anywhere."""
        found: set[int] = set()
        while True:
            try:
                events = os.read(self._descriptor, _BUFFER)
            except BlockingIOError:
                return found
            offset = 0
            while offset < len(events):
                number, mask, _, length = _EVENT.unpack_from(events, offset)
                if mask & OVERFLOW:
                    return None
                found.add(number)
                offset += _EVENT.size + length

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
