"""What can be told of a launch without trying it: who it runs as, and, in words that say what to do, whether its
directory and program are there for that user. The latter is looked at when the attempt has failed: its errno alone
tells less.
"""

import errno
import grp
import os
import pwd
import stat
import time
from collections.abc import Iterator

from branchd.core.errors import SpawnFailed
from branchd.core.value import Value
from branchd.core.values import Launch

#: errno of a spawn that may have words: what the checks look for
EXPLICABLE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELOOP, errno.EISDIR}
#: errno of a spawn that failed for want of something of the machine's or the daemon's
OURS = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
LIMITS = "free memory, or raise the limits of processes and open files"

#: seconds for which an account is as it was
ACCOUNT_FOR = 5.0


class Credentials(Value):
    """What a child is switched to."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]  #: supplementary ones, as initgroups(3) would set

    def may(self, status: os.stat_result, bits: int) -> bool:
        """Whether the mode grants these (4 read, 2 write, 1 execute)."""
        if self.uid == 0:
            return bits != 1 or stat.S_ISDIR(status.st_mode) or bool(status.st_mode & 0o111)
        if status.st_uid == self.uid:
            return (status.st_mode >> 6) & bits == bits
        if status.st_gid == self.gid or status.st_gid in self.groups:
            return (status.st_mode >> 3) & bits == bits
        return status.st_mode & bits == bits


def account_of(user: str | None) -> pwd.struct_passwd:
    """None means the daemon's own. SpawnFailed when there is none."""
    try:
        return pwd.getpwuid(os.geteuid()) if user is None else pwd.getpwnam(user)
    except (KeyError, ValueError):
        whose = f"user id {os.geteuid()} of the daemon" if user is None else f"user {user!r}"
        raise SpawnFailed(f"{whose} does not exist on this machine", "create it, or change `user`") from None


def credentials(user: str | None, group: str | None) -> Credentials | None:
    """Whom to switch to; None when the child stays what the daemon is. SpawnFailed when unknown, or when not root."""
    if user is None and group is None:
        return None
    account = account_of(user)
    try:
        gid = account.pw_gid if group is None else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise SpawnFailed(f"group {group!r} does not exist on this machine", "create it, or change `group`") from None
    if os.geteuid() == 0:
        return Credentials(account.pw_name, account.pw_uid, gid, tuple(os.getgrouplist(account.pw_name, gid)))
    if (account.pw_uid, gid) == (os.geteuid(), os.getegid()):
        return None
    raise SpawnFailed(
        f"cannot switch to user {account.pw_name!r}, group {group or gid}: the daemon does not run as root",
        "run the daemon as root, or leave `user` and `group` out",
    )


class Accounts:
    """What was looked up, for a moment: a mass start asks for one account hundreds of times, and who knows the accounts
    may be a server."""

    def __init__(self) -> None:
        self._accounts: dict[str | None, tuple[float, pwd.struct_passwd]] = {}
        self._known: dict[tuple[str | None, str | None], tuple[float, Credentials | None]] = {}

    def account(self, user: str | None) -> pwd.struct_passwd:
        """As account_of()."""
        until, known = self._accounts.get(user, (0.0, None))
        if known is None or until < time.monotonic():
            known = account_of(user)
            self._accounts[user] = time.monotonic() + ACCOUNT_FOR, known
        return known

    def credentials(self, user: str | None, group: str | None) -> Credentials | None:
        """As credentials()."""
        until, known = self._known.get((user, group), (0.0, None))
        if until < (now := time.monotonic()):
            known = credentials(user, group)
            self._known[user, group] = now + ACCOUNT_FOR, known
        return known


def located(launch: Launch, who: Credentials | None) -> str:
    """The full path of what to execute, looked for as little as that takes; SpawnFailed where it is in no folder."""
    if not launch.argv or not launch.argv[0]:
        raise SpawnFailed("the command is empty", "give at least the program's name")
    name = launch.argv[0]
    return os.path.join(launch.directory, name) if "/" in name else _look_up(name, launch, who)


def program(launch: Launch, who: Credentials | None) -> str:
    """The same, and SpawnFailed in words when the directory or the program is not there for that user."""
    if not launch.argv or not launch.argv[0]:
        raise SpawnFailed("the command is empty", "give at least the program's name")
    _check_directory(launch.directory, who)
    name = launch.argv[0]
    if "/" in name:
        path = os.path.join(launch.directory, name)
        _check_program(path, who)
    else:
        path = _look_up(name, launch, who)
    _check_first_line(path, who)
    return path


def explained(error: OSError, program: str) -> SpawnFailed:
    """By its errno alone."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in OURS:
        return SpawnFailed(f"the machine starts no further process: {reason}", LIMITS, ours=True)
    if error.errno == errno.ENOENT:
        return SpawnFailed(f"program {program} is there, its loader is not", "was it built for this system?")
    if error.errno == errno.ETIMEDOUT:
        return SpawnFailed(f"program {program} did not begin in time", "is its file server there?", ours=True)
    if error.errno == errno.ECANCELED:
        return SpawnFailed("it was killed before it came to its program", "is its limit of memory too low?", ours=True)
    if error.errno == errno.ENOSYS:
        return SpawnFailed(
            "clone3(2) is not to be had, and on this machine nothing takes its place",
            "allow it in the container's filter of system calls (seccomp)",
            ours=True,
        )
    if error.errno == errno.E2BIG:
        return SpawnFailed("arguments and environment together are too long for the kernel", "shorten them")
    return SpawnFailed(
        f"program {program} could not be started: {reason} ({error.filename})", "try it by hand, as the same user"
    )


def _check_directory(directory: str, who: Credentials | None) -> None:
    try:
        if not stat.S_ISDIR(os.stat(directory).st_mode):
            raise SpawnFailed(f"{directory} is not a directory", "change `directory`")
    except (FileNotFoundError, NotADirectoryError):
        raise SpawnFailed(f"directory {directory} does not exist", "create it, or change `directory`") from None
    except OSError:  # it may not be looked at: what follows says where the way ends
        pass
    if (closed := _closed(directory, who)) is not None:
        raise SpawnFailed(
            f"directory {directory} cannot be reached by {_whom(who)}: it may not enter {closed}",
            f"give it the x permission on {closed}, or change `directory` or `user`",
        )


def _look_up(name: str, launch: Launch, who: Credentials | None) -> str:
    search = launch.env.get("PATH", "")
    # an empty or relative entry means the directory that the program is started in
    found = [os.path.join(launch.directory, entry, name) for entry in search.split(os.pathsep)] if search else []
    existing = [path for path in found if os.path.isfile(path)]
    if not existing:
        where = (
            f"is in no folder of its PATH ({search})" if search else "cannot be looked up: its environment has no PATH"
        )
        raise SpawnFailed(f"program {name!r} {where}", "install it, give its full path, or set PATH in `env`")
    for path in existing:
        if _executable(path, who):
            return path
    _check_program(existing[0], who)
    return existing[0]


def _check_program(path: str, who: Credentials | None) -> None:
    if (closed := _closed(os.path.dirname(path), who)) is not None:
        raise SpawnFailed(
            f"program {path} cannot be reached by {_whom(who)}: it may not enter {closed}",
            f"give it the x permission on {closed}, or install the program elsewhere",
        )
    if not os.path.exists(path):
        raise SpawnFailed(f"program {path} does not exist", "install it, or correct the path")
    if os.path.isdir(path):
        raise SpawnFailed(f"program {path} is a directory", "name a file in it")
    if not _executable(path, who):
        raise SpawnFailed(f"program {path} may not be executed by {_whom(who)}", f"chmod +x {path}, or change `user`")


def _check_first_line(path: str, who: Credentials | None) -> None:
    """A missing interpreter would give ENOENT, as if the script were not there; without '#!' some shells run it."""
    try:
        # It was a regular file just now; a pipe that its owner has put there since would keep the daemon waiting.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            start = file.read(256)
    except OSError:  # may be executed but not read
        return
    if not start.startswith(b"#!"):
        if not start.startswith(b"\x7fELF") and not _other_formats():
            raise SpawnFailed(f"{path} is neither a program nor a script", "begin a script with a '#!' line")
        return
    line = start[2:].partition(b"\n")[0]
    if line.endswith(b"\r"):
        raise SpawnFailed(f"program {path} has lines that end in CR LF, its '#!' line too", "save it with LF only")
    words = line.split(None, 1)
    if not words:
        raise SpawnFailed(f"program {path} begins with '#!' and names no interpreter", "write one after the '#!'")
    interpreter = os.fsdecode(words[0])
    if not os.path.exists(interpreter):
        raise SpawnFailed(
            f"program {path} asks on its first line for the interpreter {interpreter}, which does not exist",
            "install the interpreter, or correct the '#!' line",
        )
    if not _executable(interpreter, who):
        raise SpawnFailed(
            f"program {path} asks on its first line for the interpreter {interpreter}, "
            f"which may not be executed by {_whom(who)}",
            "correct the '#!' line, or the interpreter's permissions",
        )


def _whom(who: Credentials | None) -> str:
    return f"user {who.name!r}" if who is not None else "the daemon's user"


def _other_formats() -> bool:
    """Whether binfmt_misc has the kernel execute more than ELF and '#!'."""
    try:
        return bool(set(os.listdir("/proc/sys/fs/binfmt_misc")) - {"register", "status"})
    except OSError:
        return False


def _executable(path: str, who: Credentials | None) -> bool:
    return os.path.isfile(path) and _closed(os.path.dirname(path), who) is None and _granted(path, who)


def _closed(directory: str, who: Credentials | None) -> str | None:
    """The first folder on the way to the directory, itself included, that may not be entered; links are followed."""
    for way in dict.fromkeys((os.path.abspath(directory), os.path.realpath(directory))):
        for folder in _way(way):
            if not _granted(folder, who):
                return folder
    return None


def _way(path: str) -> Iterator[str]:
    steps = path.split(os.sep)
    return (os.sep.join(steps[:count]) or os.sep for count in range(1, len(steps) + 1))


def _granted(path: str, who: Credentials | None) -> bool:
    """Whether it may be entered or executed. In doubt yes: refusing what would have worked is the worse mistake."""
    if who is None:
        return os.access(path, os.X_OK, effective_ids=True) or not os.path.lexists(path)
    try:
        if who.may(os.stat(path), 1):
            return True
        return "system.posix_acl_access" in os.listxattr(path)  # an access list may grant what the mode does not
    except OSError:  # not there, or a network file system that keeps it from root
        return True
