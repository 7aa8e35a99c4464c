"""Where the bytes of one log lie: its folder, its live file, its archives, and one count of bytes over all of them.

root/<app>/<name>/stdout.log                         the live file, which the program appends to
root/<app>/<name>/stdout.log.00000000000000040960    an archive, named by the logical offset of its first byte
root/<app>/<name>/stdout.log.<offset>.<until>.<phase>    one in the making; rotation.py tells what the phases mean

Logical offsets count the bytes of a log from its first one on, whatever was cut off since. They need no record:
archives follow each other, and the first byte of data in the live file follows the last archive. Nothing here changes
a file, except that folders are made. No link is followed below the root, and what is not a regular file with one link
is never opened as a log.
"""

import errno
import os
import re
import stat
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

FOLDER_MODE = 0o750
FILE_MODE = 0o640

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ARCHIVE = re.compile(r"\.(\d{20})(?:\.(\d+)\.(copying|cut|punched|truncate))?", re.ASCII)


class NotPlain(OSError):
    """Something else than a regular file with one link stands where a log should be."""


class Phase(StrEnum):
    """How far the making of an archive has come."""

    COPYING = "copying"
    CUT = "cut"
    PUNCHED = "punched"
    TRUNCATE = "truncate"
    DONE = ""


@dataclass(frozen=True, slots=True)
class Archive:
    start: int  #: logical offset of its first byte
    until: int = 0  #: the live file is to be cut before this physical offset; 0 when done
    phase: Phase = Phase.DONE

    def name(self, live: str) -> str:
        done = f"{live}.{self.start:020d}"
        return done if self.phase is Phase.DONE else f"{done}.{self.until}.{self.phase}"

    @classmethod
    def parse(cls, live: str, name: str) -> "Archive | None":
        """None when it is no archive of that live file."""
        found = _ARCHIVE.fullmatch(name.removeprefix(live)) if name.startswith(live) else None
        return found and cls(int(found[1]), int(found[2] or 0), Phase(found[3] or ""))


@contextmanager
def inner_folder(root: Path, *parts: str, create: bool = False) -> Iterator[int]:
    """A descriptor of root/part/part. ValueError for parts that are no names; OSError, also for links on the way."""
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\0" in part:
            raise ValueError(f"{part!r} cannot be the name of a folder")
    if create:
        root.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # may be a link: it is the operator's
    try:
        for part in parts:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, FOLDER_MODE, dir_fd=folder)
            inner = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def open_plain(folder: int, name: str, flags: int) -> int:
    """Opens a file of that folder; NotPlain unless it is a regular file with one link; other OSErrors as they come."""
    try:
        # O_NONBLOCK, or a named pipe put there would hold the caller up for good.
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise NotPlain(error.errno, "not a regular file", name) from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise NotPlain(errno.EMLINK, "not a regular file with one link", name)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def opened(folder: int, name: str, flags: int) -> Iterator[int]:
    descriptor = open_plain(folder, name, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def first_data(live: int) -> int:
    """Where a file's data begins (bytes): what was punched out of its head lies before; its size when there is none."""
    try:
        return os.lseek(live, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(live).st_size


def archives(folder: int, live: str) -> list[Archive]:
    """Oldest first; those in the making too."""
    found = (Archive.parse(live, name) for name in os.listdir(folder))
    return sorted((archive for archive in found if archive), key=lambda archive: archive.start)


@dataclass(frozen=True, slots=True)
class Layout:
    """One look at a log; good for as long as nobody rotates."""

    folder: int  #: descriptor
    name: str  #: of the live file
    live: int | None  #: descriptor; None where there is no live file
    starts: tuple[int, ...]  #: of the finished archives, oldest first
    base: int  #: logical offset of the live file's first byte of data
    head: int  #: physical offset of that byte
    size: int  #: of the live file, with the hole at its head

    @property
    def end(self) -> int:
        """The logical offset that the next byte will have."""
        return self.base + self.size - self.head

    def archive_size(self, index: int) -> int:
        """Bytes; 0 when it has vanished meanwhile."""
        try:
            name = Archive(self.starts[index]).name(self.name)
            return os.stat(name, dir_fd=self.folder, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def read(self, position: int, count: int) -> tuple[bytes, int]:
        """Up to count bytes of one file from a logical offset, or from behind a gap there; and where they stand.

        No bytes at the end of the log. An offset past the end is that of a program that truncated its log: answered
        from where its live file begins.
        """
        index = bisect_right(self.starts, position) - 1
        if index >= 0 and (rest := self.starts[index] + self.archive_size(index) - position) > 0:
            return self._read_archive(index, position - self.starts[index], min(count, rest)), position
        if index + 1 < len(self.starts):  # in no archive, but a later one exists: what lay between was rotated away
            return self._read_archive(index + 1, 0, count), self.starts[index + 1]
        if not self.base <= position <= self.end:
            position = self.base
        if self.live is None:
            return b"", position
        start = self.head + position - self.base
        return os.pread(self.live, min(count, self.size - start), start), position

    def blocks_backwards(self, count: int) -> Iterator[bytes]:
        """Blocks of up to count bytes from the end of the log to its beginning, or to where something was taken out."""
        if self.live is not None:
            for start, stop in _cut_backwards(self.head, self.size, count):
                yield os.pread(self.live, stop - start, start)
        follows = self.base
        for index in reversed(range(len(self.starts))):
            size = self.archive_size(index)
            if self.starts[index] + size != follows:
                return
            for start, stop in _cut_backwards(0, size, count):
                yield self._read_archive(index, start, stop - start)
            follows = self.starts[index]

    def _read_archive(self, index: int, start: int, count: int) -> bytes:
        with opened(self.folder, Archive(self.starts[index]).name(self.name), os.O_RDONLY) as archive:
            return os.pread(archive, count, start)


def survey(folder: int, name: str, live: int | None) -> Layout:
    """Looks; only where no archive is in the making does it tell the truth about the live file."""
    starts = tuple(archive.start for archive in archives(folder, name) if archive.phase is Phase.DONE)
    head, size = (0, 0) if live is None else (first_data(live), os.fstat(live).st_size)
    layout = Layout(folder, name, live, starts, 0, head, max(head, size))
    if not starts:
        return layout
    base = starts[-1] + layout.archive_size(-1)
    return Layout(folder, name, live, starts, base, head, max(head, size))


def _cut_backwards(start: int, stop: int, count: int) -> Iterator[tuple[int, int]]:
    while stop > start:
        begin = max(start, stop - count)
        yield begin, stop
        stop = begin
