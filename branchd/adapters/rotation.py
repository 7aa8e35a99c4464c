"""Rotation of a log that a program appends to, without asking it: not a byte is lost or doubled, whoever dies when.

The head of the live file is copied to an archive, then cut off under the program's hands. The name of the archive is
the journal: a rename is atomic, and puts into one step what a journal beside it would need two for. Each phase can be
begun again:

    .copying    the copy grows                     a crash undoes it: the copy is deleted, the live file is whole
    .cut        the copy is on disk                PUNCH_HOLE makes a hole of the live file's head; twice does no harm
    .punched    the head is a hole                 COLLAPSE_RANGE takes the hole out; if data stands there, it was done
    .truncate   (no hole can be made here) the copy is on disk: the live file is truncated
    (nothing)   finished

COLLAPSE_RANGE exists on ext4 and xfs. Elsewhere (tmpfs, btrfs) the hole stays: the apparent size grows, the blocks
are free. A filesystem without holes gets copy and truncate: an archive of any size, and what is written between the
two calls is lost. A program that truncates its own log while its head is being cut may lose what it writes at that
moment.

A finished archive is compressed beside it (`.packing`), gets its name (`.gz`) when that is on disk, and then goes away;
where a crash leaves both, it counts and the compressed one is deleted.

When to rotate is decided in log_watching.py; reading is log_reading.py's.
"""

import ctypes
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from threading import Lock

import structlog
from msgspec.structs import replace

from branchd.adapters import log_packing
from branchd.adapters.log_layout import (
    Archive,
    Layout,
    Phase,
    archives,
    first_data,
    inner_folder,
    open_plain,
    opened,
    survey,
)
from branchd.core.value import Value

_log = structlog.get_logger(__name__)

# linux/falloc.h
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
COLLAPSE_RANGE = 0x08

#: what fallocate says where it cannot do it; EINVAL where the filesystem allocates more than a block at a time
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

#: bytes compared at a time
_BLOCK = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> bool:
    """fallocate(2), which the standard library lacks; False where it is not supported, OSError when it fails."""
    if _libc.fallocate(descriptor, mode, offset, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code))


class Cut(StrEnum):
    """How a file system lets the head of a log be cut off."""

    COLLAPSE = "collapse"  #: the file gets shorter
    PUNCH = "punch"  #: its blocks are freed, its apparent size grows
    TRUNCATE = "truncate"  #: not at all: what is written while it is copied and truncated is lost


def cut_in(root: Path) -> Cut:
    """Tried out with a file without a name. OSError."""
    with tempfile.TemporaryFile(dir=root) as file:
        block = os.fstat(file.fileno()).st_blksize
        file.write(bytes(2 * block))
        file.flush()
        if not fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 0, block):
            return Cut.TRUNCATE
        return Cut.COLLAPSE if fallocate(file.fileno(), COLLAPSE_RANGE, 0, block) else Cut.PUNCH


class Turn(Value):
    """What one call of rotate() did."""

    archived: int  #: bytes that went into an archive
    left: int  #: bytes that the live file holds now


class RotatedLog:
    """One log. Any thread may read it, append to it and pack it, one may rotate and clear it; there must not be two
    objects for one file at a time.

    root/app/instance/name is the path of the live file.
    """

    def __init__(self, root: Path, app: str, instance: str, name: str) -> None:
        self.root = root
        self._folder = root, app, instance
        self._name = name
        self._lock = Lock()
        self.packing = Lock()  #: held while archives are compressed
        #: no archive is in the making, except the one that this object copies
        self._settled = False

    @property
    def folder(self) -> str:
        return "{}/{}/{}".format(*self._folder)

    @property
    def file(self) -> str:
        return f"{self.folder}/{self._name}"

    @property
    def path(self) -> Path:
        return Path(self.file)

    @contextmanager
    def layout(self) -> Iterator[Layout]:
        """The log as it lies, held still till the end of the block; what a crash left is finished or undone first.

        OSError; FileNotFoundError when the instance has no folder.
        """
        with inner_folder(*self._folder) as folder, self._lock, self._live(folder) as live:
            self._settle(folder, live)
            yield survey(folder, self._name, live)

    def rotate(self, rotate_at: int, keep: int) -> Turn:
        """Moves up to rotate_at bytes into an archive when there are more, and keeps only the newest `keep` archives.

        rotate_at counts in whole blocks, one at least. The newest archive always stays: the count of bytes hangs on
        it. OSError when it cannot be done now; the log is whole then, and the next call sets right what was begun.
        """
        with inner_folder(*self._folder) as folder, self._live(folder) as live:
            if live is None:
                return Turn(0, 0)
            with self._lock:
                self._settle(folder, live)
                layout = survey(folder, self._name, live)
            block = os.fstat(live).st_blksize
            limit = max(rotate_at // block, 1) * block
            if layout.size - layout.head <= limit:
                return Turn(0, layout.size - layout.head)
            # Only the copy is made without the lock: it takes long, and no reader can see it.
            archive = self._copy(folder, live, layout, limit, block)
            if archive is not None:
                with self._lock:
                    self._settled = False  # stays so when something fails on the way
                    self._carry_through(folder, live, archive)
                    self._settled = True
                    self._prune(folder, max(keep, 1))
            left = os.fstat(live).st_size - first_data(live)
            return Turn(0 if archive is None else archive.until - layout.head, max(left, 0))

    def end(self) -> int:
        """The offset that the next byte will have; OSError."""
        with self.layout() as layout:
            return layout.end

    def append(self, data: bytes, written: Callable[[int], None]) -> None:
        """Writes to its end, and calls written() with the offset behind it before anybody else sees it.

        OSError of either, and then nothing was written.
        """
        with (
            inner_folder(*self._folder) as folder,
            self._lock,
            opened(folder, self._name, os.O_RDWR | os.O_APPEND | os.O_CREAT) as live,
        ):
            self._settle(folder, live)
            before, done = os.fstat(live).st_size, 0
            try:
                while done < len(data):
                    done += os.write(live, data[done:])
                written(survey(folder, self._name, live).end)
            except OSError:
                os.ftruncate(live, before)
                raise

    def undo(self, end: int) -> int:
        """Takes away what was appended beyond an offset, where it is all in the live file; the end now. OSError."""
        with inner_folder(*self._folder) as folder, self._lock, self._live(folder) as live:
            self._settle(folder, live)
            layout = survey(folder, self._name, live)
            if live is None or not layout.base <= end < layout.end:
                return layout.end
            os.ftruncate(live, layout.size - (layout.end - end))
            return end

    def clear(self) -> None:
        """Empties it and deletes its archives; offsets go on counting. In the thread that rotates. OSError."""
        with inner_folder(*self._folder) as folder, self._lock, self._live(folder) as live:
            self._settle(folder, live)
            end = survey(folder, self._name, live).end
            if live is not None:
                os.ftruncate(live, 0)
            if end == 0:
                return
            count = Archive(end).name(self._name)  # an empty one
            with opened(folder, count, os.O_WRONLY | os.O_CREAT):
                pass
            for archive in archives(folder, self._name):
                if archive.name(self._name) != count:
                    os.unlink(archive.name(self._name), dir_fd=folder)

    def pack(self, before: float, go_on: Callable[[], bool]) -> bool:
        """Compresses the archives that were made before that time (seconds since 1970), the newest first.

        False when some were made later. go_on() is asked often; when it says no, nothing more is done. OSError.
        """
        later = False
        with self.packing, inner_folder(*self._folder) as folder:
            with self._lock:
                found = [one for one in archives(folder, self._name) if one.phase is Phase.DONE]
            for archive in reversed(found):
                try:
                    with opened(folder, archive.name(self._name), os.O_RDONLY) as plain:
                        facts = os.fstat(plain)
                        if facts.st_mtime > before:
                            later = True
                        elif facts.st_size > 0 and go_on() and not self._pack(folder, archive, plain, go_on):
                            return True
                except FileNotFoundError:
                    pass  # deleted meanwhile
        return not later

    def _pack(self, folder: int, archive: Archive, plain: int, go_on: Callable[[], bool]) -> bool:
        name, packing = (replace(archive, phase=phase).name(self._name) for phase in (Phase.DONE, Phase.PACKING))
        facts = os.fstat(plain)
        try:
            with suppress(FileNotFoundError):
                os.unlink(packing, dir_fd=folder)
            with opened(folder, packing, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as packed:
                done = log_packing.pack(plain, packed, go_on)
                os.fdatasync(packed)
                os.utime(packed, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # tells what time its lines are of
            with self._lock:
                # An archive that was deleted meanwhile must not come back, nor its place be another one's.
                if done and os.path.samestat(facts, os.stat(name, dir_fd=folder, follow_symlinks=False)):
                    self._rename(folder, replace(archive, phase=Phase.PACKING), replace(archive, phase=Phase.PACKED))
                    os.fsync(folder)  # it has its name before the other one is gone
                    os.unlink(name, dir_fd=folder)
                    return True
        finally:
            with suppress(OSError):
                os.unlink(packing, dir_fd=folder)
        return False

    @contextmanager
    def _live(self, folder: int) -> Iterator[int | None]:
        try:
            live = open_plain(folder, self._name, os.O_RDWR)
        except FileNotFoundError:
            yield None
            return
        try:
            yield live
        finally:
            os.close(live)

    def _copy(self, folder: int, live: int, layout: Layout, limit: int, block: int) -> Archive | None:
        """Copies the head to disk and says what is to be cut; None when there is nothing that can be taken."""
        copying = Archive(layout.base, 0, Phase.COPYING)
        try:
            with opened(folder, copying.name(self._name), os.O_RDWR | os.O_CREAT | os.O_EXCL) as copy:
                if fallocate(copy, PUNCH_HOLE | KEEP_SIZE, 0, block):
                    phase, until = Phase.CUT, _cut_before(live, layout, limit, block)
                else:
                    phase, until = Phase.TRUNCATE, layout.size
                    _log.warning("log-rotation-may-lose-bytes", file=self.file, reason="no holes here")
                copied = _copy_range(live, layout.head, until, copy)
                os.fdatasync(copy)
            if copied and copied == until - layout.head:
                return self._rename(folder, copying, replace(copying, until=until, phase=phase))
        except BaseException:
            self._settled = False
            with suppress(OSError):
                os.unlink(copying.name(self._name), dir_fd=folder)
            raise
        # The program truncated its log meanwhile, or there are only holes.
        os.unlink(copying.name(self._name), dir_fd=folder)
        return None

    def _settle(self, folder: int, live: int | None) -> None:
        """Finishes or undoes what a killed daemon, or a failure, left behind."""
        if self._settled:
            return
        for archive in archives(folder, self._name):
            match archive.phase:
                case Phase.COPYING | Phase.PACKING:
                    os.unlink(archive.name(self._name), dir_fd=folder)
                case Phase.CUT | Phase.PUNCHED | Phase.TRUNCATE:
                    self._carry_through(folder, live, archive)
                case Phase.PACKED:
                    with suppress(FileNotFoundError):
                        os.stat(Archive(archive.start).name(self._name), dir_fd=folder, follow_symlinks=False)
                        os.unlink(archive.name(self._name), dir_fd=folder)
        self._settled = True

    def _carry_through(self, folder: int, live: int | None, archive: Archive) -> None:
        """From any phase after the copy to the end."""
        until = archive.until
        if live is None or os.fstat(live).st_size < until:
            pass  # the file was taken away or truncated by somebody else: what is there now is not in the archive
        elif archive.phase is Phase.TRUNCATE:
            with opened(folder, archive.name(self._name), os.O_RDWR) as copy:
                if _begins_with(live, copy):  # else a crash came after truncating
                    copied = os.fstat(copy).st_size
                    _copy_range(live, copied, os.fstat(live).st_size, copy, copied)
                    os.ftruncate(live, 0)
        else:
            if archive.phase is Phase.CUT:
                os.fsync(folder)  # the archive has its name before the bytes are gone
                if not fallocate(live, PUNCH_HOLE | KEEP_SIZE, 0, until):
                    raise OSError(errno.EOPNOTSUPP, "the filesystem made holes before and refuses now", self.file)
                archive = self._rename(folder, archive, replace(archive, phase=Phase.PUNCHED))
            if first_data(live) >= until:
                fallocate(live, COLLAPSE_RANGE, 0, until)  # where it cannot be, the hole stays
        self._rename(folder, archive, Archive(archive.start))

    def _rename(self, folder: int, old: Archive, new: Archive) -> Archive:
        os.rename(old.name(self._name), new.name(self._name), src_dir_fd=folder, dst_dir_fd=folder)
        return new

    def _prune(self, folder: int, keep: int) -> None:
        found = [one for one in archives(folder, self._name) if one.phase in {Phase.DONE, Phase.PACKED}]
        kept = sorted({one.start for one in found})[-keep:]
        for archive in found:
            if archive.start not in kept:
                os.unlink(archive.name(self._name), dir_fd=folder)


def _cut_before(live: int, layout: Layout, limit: int, block: int) -> int:
    """Where to cut (physical, whole blocks): up to limit bytes of data without a hole; the last byte always stays.

    A program can make its log terabytes long with a single byte: only data is copied, and holes are never filled.
    """
    if layout.head >= layout.size:
        return layout.head
    hole = os.lseek(live, layout.head, os.SEEK_HOLE)
    until = min(layout.head + limit, hole, layout.size - 1)
    return max(until // block * block, layout.head)


def _copy_range(source: int, start: int, stop: int, target: int, at: int = 0) -> int:
    """Bytes copied: fewer when the source ends before."""
    copied = 0
    while (count := stop - start - copied) > 0:
        done = os.copy_file_range(source, target, count, start + copied, at + copied)
        if done == 0:
            break
        copied += done
    return copied


def _begins_with(live: int, copy: int) -> bool:
    offset = 0
    while expected := os.pread(copy, _BLOCK, offset):
        if os.pread(live, len(expected), offset) != expected:
            return False
        offset += len(expected)
    return True
