"""Key files: reading one safely, and the steps by which a neighbourhood changes its key.

The file is text: a line for each key, "ROLE ID SECRET". The id follows from the secret, so that a damaged copy is told.
Roles:
- seals: messages are sealed with it, and opened;
- next: it is accepted, and will seal;
- former: it is accepted, and did seal.
A key must be accepted by every branch before the first one seals with it, so a change takes three files, each of which
is copied to every branch before the next one is made: rotate (seals, next), rotate again (seals, former), retire
(seals). Branches with two neighbouring files of these understand each other, so the order of copying does not matter.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

from branchd.core.errors import Conflict, Fatal
from branchd.core.value import Value
from branchd.wire.sealing import KEY_SIZE, KeyRing, NeighbourhoodKey

#: seconds between two looks at whether the file was changed
LOOK_EVERY = 5.0

#: bytes; a longer file is no key file
_LONGEST = 4096

_HEADING = """\
# The key of a neighbourhood of branchd: whoever has it is an administrator there. Every branch has the same file.
# It is changed by `branchd key rotate` and `branchd key retire`.
"""

_RENEW = "copy the file again from another branch, or make one with `branchd key new FILE`"


class Keys(Value):
    """What a key file says. At most one of `next` and `former`."""

    seals: NeighbourhoodKey
    next: NeighbourhoodKey | None = None
    former: NeighbourhoodKey | None = None

    @property
    def ring(self) -> KeyRing:
        return KeyRing(tuple(key for key in (self.seals, self.next, self.former) if key))


class KeyFile:
    """The key file of a running daemon, which takes up its changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()

    def changed(self) -> KeyRing | None:
        """The ring where the file was changed since it was asked last, and at first; None otherwise.

        Fatal where it was changed and cannot be used, once for each change: who has a ring goes on with it.
        """
        try:
            found = self._path.lstat()
        except OSError:
            seen: tuple[int, ...] = (0,)
        else:
            # Its owner and mode too: the time of change (ctime) tells.
            seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if seen == self._seen:
            return None
        self._seen = seen
        return read(self._path).ring


def read(path: Path) -> Keys:
    """Fatal, with the cure, unless it is a regular file that only its owner can read, and the owner is us or root."""
    try:
        with open(path, "rb", opener=_open) as file:
            _judge(path, os.fstat(file.fileno()))
            content = file.read(_LONGEST + 1)
    except OSError as error:
        raise _failed(path, "read", error) from error
    return _parse(path, content)


def new(path: Path) -> Keys:
    """A file with a new key. Conflict where there is a file already, Fatal where none can be written."""
    keys = Keys(_draw())
    if path.is_symlink() or path.exists():
        raise Conflict(f"{path} is there already", "`branchd key rotate` changes the key that it holds")
    _write(path, keys)
    return keys


def rotate(path: Path) -> Keys:
    """The first call adds the next key, the second one makes it the key that seals. Conflict before a retire; Fatal."""
    keys = read(path)
    if keys.former:
        raise Conflict(
            f"{path} still accepts the former key {keys.former.id}",
            "when every branch has this file: `branchd key retire FILE`; then rotate again",
        )
    changed = Keys(keys.next, former=keys.seals) if keys.next else Keys(keys.seals, next=_draw(keys.seals))
    _write(path, changed)
    return changed


def retire(path: Path) -> Keys:
    """Drops the former key. Conflict where there is none; Fatal."""
    keys = read(path)
    if not keys.former:
        hint = "when every branch has this file: `branchd key rotate FILE` again" if keys.next else ""
        raise Conflict(f"{path} holds no former key", hint or "`branchd key rotate FILE` begins to change the key")
    changed = Keys(keys.seals)
    _write(path, changed)
    return changed


def _draw(other: NeighbourhoodKey | None = None) -> NeighbourhoodKey:
    """Random, and with another id than `other`."""
    while (key := NeighbourhoodKey(os.urandom(KEY_SIZE))).id == (other.id if other else ""):
        pass
    return key


def _open(path: str, flags: int) -> int:
    """Without O_NONBLOCK a pipe in the file's place would keep the daemon waiting."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _judge(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Fatal(f"{path} is not a regular file", _RENEW)
    if found.st_uid not in (os.geteuid(), 0):
        raise Fatal(
            f"{path} belongs to uid {found.st_uid}, who can change it; this branchd runs as uid {os.geteuid()}",
            f"run it as that user, or `chown {os.geteuid()} {path}`",
        )
    # systemd lends a credential to a unit's user by an access list, which shows as the group's right to read.
    lent = stat.S_IMODE(found.st_mode) == 0o440 and found.st_uid == found.st_gid == 0
    if stat.S_IMODE(found.st_mode) & 0o077 and not lent:
        raise Fatal(
            f"{path} can be used by others than its owner: its mode is {stat.S_IMODE(found.st_mode):04o}",
            f"`chmod 600 {path}`; where others may have read it, change the key: `branchd key rotate {path}`",
        )


def _parse(path: Path, content: bytes) -> Keys:
    """Fatal, without a word of what stands there."""
    found: dict[str, NeighbourhoodKey] = {}
    if len(content) > _LONGEST:
        raise Fatal(f"{path} is no key file: it has more than {_LONGEST} bytes", _RENEW)
    for number, line in enumerate(content.decode("ascii", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            role, identifier, secret = line.split()
            key = NeighbourhoodKey(bytes.fromhex(secret))
        except ValueError:
            raise Fatal(f"{path} is no key file: line {number} is not a role, an id and a key", _RENEW) from None
        if role not in ("seals", "next", "former") or role in found:
            raise Fatal(f"{path}: line {number} has a wrong role, or one that stands there twice", _RENEW)
        if key.id != identifier:
            raise Fatal(f"{path}: line {number} is damaged: its id is not that of its key", _RENEW)
        found[role] = key
    if "seals" not in found or len(found) > 2 or len({key.id for key in found.values()}) < len(found):
        raise Fatal(f"{path} is no key file: it needs one key that seals, and may have one other", _RENEW)
    return Keys(**found)


def _write(path: Path, keys: Keys) -> None:
    """Beside its place and moved there, so that a reader finds all of it."""
    roles = {"seals": keys.seals, "next": keys.next, "former": keys.former}
    lines = [f"{role} {key.id} {key.secret.hex()}\n" for role, key in roles.items() if key]
    beside = path.with_name(f"{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()  # of a command that died here
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(beside, flags, 0o600), "w", encoding="ascii") as file:
            file.write(_HEADING + "".join(lines))
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _failed(path, "written", error) from error


def _failed(path: Path, what: str, error: OSError) -> Fatal:
    cures = {
        errno.ENOENT: "make one with `branchd key new FILE`, or copy that of another branch; its folder must exist",
        errno.EACCES: f"make uid {os.geteuid()} its owner, and let that user pass the folders above it",
        errno.ELOOP: "put the file itself in the place of the symbolic link",
        errno.ENOSPC: "free space on its disk",
        errno.EROFS: "make its file system writable, or choose another place",
    }
    return Fatal(f"{path} cannot be {what}: {error.strerror}", cures.get(error.errno or 0, _RENEW))
