"""The state folder: whose it is, that one daemon at a time uses it, and the first administrator's token.

Everything in it is opened below the folder's descriptor and never through a link. The database is store.py's.
"""

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from branchd.core.errors import Fatal

_LOCK = "lock"
_TOKEN = "admin.token"  # noqa: S105 - the file's name
_NEW_TOKEN = "admin.token.new"  # noqa: S105 - the file's name

#: bytes; a longer file is not a token
_LONGEST_TOKEN = 4096

_ADVICE = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space in its quota",
    errno.EROFS: "make its file system writable, or choose another state folder",
    errno.EACCES: "choose a state folder that this user can write to",
    errno.ENOENT: "choose a state folder where folders can be made",
    errno.ENOTDIR: "choose a state folder that is a folder",
    errno.EEXIST: "choose a state folder that is a folder",
    errno.ELOOP: "replace the symbolic link by what it points to",
}


class StateFolder:
    """`path` may itself be a link to a folder elsewhere; nothing in the folder may."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder: int | None = None
        self._lock: int | None = None

    @property
    def lock(self) -> int | None:
        """The descriptor that holds the lock, which goes with it; None before acquire()."""
        return self._lock

    def acquire(self, lock: int | None = None) -> None:
        """Makes the folder with mode 0700 where there is none, and keeps every other daemon out until release().

        `lock`: the descriptor by which the image before this one held it; there is no moment at which nobody does.

        Fatal where another daemon holds it, where it is another user's, and where it cannot be made or written to.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._own(self._folder, self.path, 0o700)
            self._take_lock(self._folder, lock)
        except OSError as error:
            self.release()
            raise self._failed(error) from error
        except Fatal:
            self.release()
            raise

    def release(self) -> None:
        # The lock goes with its descriptor; the file stays, since removing it would let two daemons lock two files.
        for descriptor in (self._lock, self._folder):
            if descriptor is not None:
                os.close(descriptor)
        self._lock = self._folder = None

    def admin_token(self) -> str:
        """The administrator's token: what the file says, or 256 new random bits where there is none. After acquire().

        Fatal where the file is a link, another user's, or holds no token.
        """
        if self._folder is None:
            raise RuntimeError("the state folder is not acquired")
        try:
            try:
                return self._read_token(self._folder)
            except FileNotFoundError:
                return self._make_token(self._folder)
        except OSError as error:
            raise self._failed(error) from error

    def _take_lock(self, folder: int, held: int | None) -> None:
        self._lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        if held is not None and os.path.sameopenfile(held, self._lock):
            os.close(self._lock)
            self._lock = held
        elif held is not None:
            os.close(held)  # another folder's
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Empty for the moment between another's lock and its pid.
            pid = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip() or "not told yet"
            raise Fatal(
                f"another branchd (pid {pid}) uses the state folder {self.path}",
                "stop that one, or give this one a state folder of its own",
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode("ascii"), 0)

    def _read_token(self, folder: int) -> str:
        path = self.path / _TOKEN
        # Without O_NONBLOCK a pipe in its place would keep the daemon waiting.
        descriptor = os.open(_TOKEN, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Fatal(f"{path} is not a regular file", "remove it; the next start writes a new one")
            self._own(descriptor, path, 0o600)
            token = file.read(_LONGEST_TOKEN).strip()
        if not token or not token.isascii() or len(token.split()) != 1:
            raise Fatal(f"{path} holds no token", "remove it; the next start writes a new one")
        return token.decode("ascii")

    def _make_token(self, folder: int) -> str:
        """Written beside its place and moved there, so that whoever finds it finds all of it."""
        token = os.urandom(32).hex()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NEW_TOKEN, dir_fd=folder)  # of a daemon that died here
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(_NEW_TOKEN, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(f"{token}\n".encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        os.rename(_NEW_TOKEN, _TOKEN, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
        return token

    def _own(self, descriptor: int, path: Path, mode: int) -> None:
        """Fatal when it is another user's; takes every other right away when it is ours."""
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise Fatal(
                f"{path} belongs to uid {found.st_uid}, and this branchd runs as uid {os.geteuid()}",
                "start branchd as that user, or choose another state folder",
            )
        if stat.S_IMODE(found.st_mode) & ~mode:
            os.fchmod(descriptor, mode)

    def _failed(self, error: OSError) -> Fatal:
        name = f" ({error.filename})" if error.filename not in (None, str(self.path)) else ""
        return Fatal(
            f"the state folder {self.path} cannot be used{name}: {error.strerror}",
            _ADVICE.get(error.errno or 0, "look for the cause in the kernel's log"),
        )
