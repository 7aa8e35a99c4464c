"""Where the bytes of one log lie: its folder, its live file, its archives, and one count of bytes over all of them.

root/<app>/<name>/stdout.log                         the live file, which the program appends to
root/<app>/<name>/stdout.log.00000000000000040960    an archive, named by the logical offset of its first byte
root/<app>/<name>/stdout.log.00000000000000040960.gz    the same, compressed; log_packing.py tells how
root/<app>/<name>/stdout.log.<offset>.<until>.<phase>    one in the making; rotation.py tells what the phases mean
root/<app>/<name>/stdout.log.<offset>.packing    one that is being compressed; what it is made from counts

Logical offsets count the bytes of a log from its first one on, whatever was cut off since. They need no record:
archives follow each other, and the first byte of data in the live file follows the last archive; an empty archive
remembers the count of a log that was cleared. Nothing here changes a file, except that folders are made. No link is
followed below the root, and what is not a regular file with one link is never opened as a log.
"""

import errno
import os
import re
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from msgspec.structs import replace

from branchd.adapters import log_packing
from branchd.core.value import Value

FOLDER_MODE = 0o750
FILE_MODE = 0o640

_ROOT_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC  # may be a link: it is the operator's
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ARCHIVE = re.compile(r"\.(\d{20})(?:\.(\d+)\.(copying|cut|punched|truncate)|\.(packing|gz))?", re.ASCII)


class NotPlain(OSError):
    """Something else than a regular file with one link stands where a log should be."""


class Phase(StrEnum):
    """How far the making of an archive has come; it can be read when DONE or PACKED."""

    COPYING = "copying"
    CUT = "cut"
    PUNCHED = "punched"
    TRUNCATE = "truncate"
    DONE = ""
    PACKING = "packing"
    PACKED = "gz"


class Archive(Value):
    start: int  #: logical offset of its first byte
    until: int = 0  #: the live file is to be cut before this physical offset; 0 when done
    phase: Phase = Phase.DONE

    def name(self, live: str) -> str:
        done = f"{live}.{self.start:020d}"
        if self.phase in {Phase.PACKING, Phase.PACKED}:
            return f"{done}.{self.phase}"
        return done if self.phase is Phase.DONE else f"{done}.{self.until}.{self.phase}"

    @classmethod
    def parse(cls, live: str, name: str) -> "Archive | None":
        """None when it is no archive of that live file."""
        found = _ARCHIVE.fullmatch(name.removeprefix(live)) if name.startswith(live) else None
        return found and cls(int(found[1]), int(found[2] or 0), Phase(found[3] or found[4] or ""))


@contextmanager
def inner_folder(root: Path, *parts: str, create: bool = False) -> Iterator[int]:
    """A descriptor of root/part/part. ValueError for parts that are no names; OSError, also for links on the way."""
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\0" in part:
            raise ValueError(f"{part!r} cannot be the name of a folder")
    try:
        folder = os.open(root, _ROOT_FLAGS)
    except FileNotFoundError:
        if not create:
            raise
        root.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        folder = os.open(root, _ROOT_FLAGS)
    try:
        for part in parts:
            try:
                inner = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            except FileNotFoundError:
                if not create:
                    raise
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


class Layout(Value):
    """One look at a log; good for as long as nobody rotates."""

    folder: int  #: descriptor
    name: str  #: of the live file
    live: int | None  #: descriptor; None where there is no live file
    starts: tuple[int, ...]  #: of the finished archives, oldest first
    packed: frozenset[int]  #: of those, the ones that are compressed
    base: int  #: logical offset of the live file's first byte of data
    head: int  #: physical offset of that byte
    size: int  #: of the live file, with the hole at its head

    @property
    def first(self) -> int:
        """The logical offset of the first byte that is kept."""
        return self.starts[0] if self.starts else self.base

    @property
    def end(self) -> int:
        """The logical offset that the next byte will have."""
        return self.base + self.size - self.head

    def archive_size(self, index: int) -> int:
        """Bytes of what it holds; 0 when it has vanished meanwhile, or is damaged."""
        start = self.starts[index]
        try:
            if start in self.packed:
                with self._opened(index) as archive:
                    return log_packing.size(archive)
            return os.stat(Archive(start).name(self.name), dir_fd=self.folder, follow_symlinks=False).st_size
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EBADMSG):
                return 0
            raise

    def made(self, index: int) -> float:
        """When an archive was made, which is after its last byte was written; seconds since 1970. OSError."""
        with self._opened(index) as archive:
            return os.fstat(archive).st_mtime

    def read(self, position: int, count: int) -> tuple[bytes, int]:
        """Up to count bytes of one file from a logical offset, or from behind a gap there; and where they stand.

        No bytes at the end of the log. An offset past the end is that of a program that truncated its log: answered
        from where its live file begins.
        """
        index = bisect_right(self.starts, position) - 1
        if index >= 0 and (rest := self.starts[index] + self.archive_size(index) - position) > 0:
            return self._read_archive(index, position - self.starts[index], min(count, rest)), position
        while (index := index + 1) < len(self.starts):  # in no archive, but in a later one: what lay between is gone
            if self.archive_size(index) > 0:
                return self._read_archive(index, 0, count), self.starts[index]
        if not self.base <= position <= self.end:
            position = self.base
        if self.live is None:
            return b"", position
        start = self.head + position - self.base
        return os.pread(self.live, min(count, self.size - start), start), position

    def read_before(self, position: int, count: int) -> bytes:
        """Up to count bytes of one file that end at a logical offset; none at the beginning, or behind a gap."""
        if self.live is not None and self.base < position <= self.end:
            stop = self.head + position - self.base
            start = max(self.head, stop - count)
            return os.pread(self.live, stop - start, start)
        index = bisect_left(self.starts, position) - 1
        if index < 0 or self.starts[index] + self.archive_size(index) < position:
            return b""
        stop = position - self.starts[index]
        with self._opened(index) as archive:
            if self.starts[index] in self.packed:
                return log_packing.read_before(archive, stop, count)
            start = max(0, stop - count)
            return os.pread(archive, stop - start, start)

    def _read_archive(self, index: int, start: int, count: int) -> bytes:
        with self._opened(index) as archive:
            if self.starts[index] in self.packed:
                return log_packing.read(archive, start, count)
            return os.pread(archive, count, start)

    def _opened(self, index: int) -> AbstractContextManager[int]:
        start = self.starts[index]
        phase = Phase.PACKED if start in self.packed else Phase.DONE
        return opened(self.folder, Archive(start, phase=phase).name(self.name), os.O_RDONLY)


def survey(folder: int, name: str, live: int | None) -> Layout:
    """Looks; only where no archive is in the making does it tell the truth about the live file."""
    found = archives(folder, name)
    plain = {archive.start for archive in found if archive.phase is Phase.DONE}
    packed = frozenset(archive.start for archive in found if archive.phase is Phase.PACKED) - plain
    starts = tuple(sorted(plain | packed))
    head, size = (0, 0) if live is None else (first_data(live), os.fstat(live).st_size)
    layout = Layout(folder, name, live, starts, packed, 0, head, max(head, size))
    return replace(layout, base=starts[-1] + layout.archive_size(-1)) if starts else layout
