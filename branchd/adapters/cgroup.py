"""A cgroup v2 for each instance: the one thing that no process can escape from by forking.

Only joining and killing: no controller is ever enabled here. A controller in subtree_control of a delegated cgroup
makes the unit's next start fail on systemd 252 (219/CGROUP).
"""

import ctypes
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Self

from branchd.adapters import proc
from branchd.core.values import Key

#: what statfs(2) says of a real cgroup2. On hybrid hosts /sys/fs/cgroup is a tmpfs: mkdir works there and means nothing
CGROUP2_MAGIC = 0x63677270

SHELL = "/bin/sh"
ENV = "/usr/bin/env"
#: environment that a shell would not hand on as it got it: names that are no identifiers, and those that it sets itself
SHELL_CHANGES = re.compile(
    r"(?![A-Za-z_][A-Za-z0-9_]*\Z)|(PWD|OLDPWD|SHLVL|_|IFS|PS[1-4]|LINENO|OPTIND|OPTERR|P?PID|E?UID|GROUPS|S?RANDOM"
    r"|SECONDS|EPOCH\w+|HISTCMD|DIRSTACK|FUNCNAME|SHELLOPTS|POSIXLY_CORRECT|BASH\w*)\Z"
)


def joinable(argv: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether it would be started by `joining` just as it would be without."""
    return "=" not in argv[0] and not any(SHELL_CHANGES.match(name) for name in env)


def joining(argv: Sequence[str]) -> tuple[str, ...]:
    """The same program, started with Cgroup.open() as its standard input, as a member of the cgroup."""
    return (SHELL, "-c", _script(SHELL), "sh", *argv)


@cache
def _script(shell: str) -> str:
    """Joins the cgroup whose cgroup.procs is standard input, then becomes the program.

    Not by preexec_fn, which costs ten times as much, and more with every MB of the daemon. A join that fails changes
    nothing else, and shows in /proc/PID/cgroup. What the shell itself adds to the environment goes: dash can do that,
    which saves an exec (0.7 of 2.8 ms, measured); others set some of it again at the exec, so there env does it.
    """
    dash = os.path.realpath(shell).endswith("/dash")
    become = "unset PWD OLDPWD; exec" if dash else f"exec {ENV} -u PWD -u OLDPWD -u SHLVL -u _"
    return f'echo 0 2>/dev/null >&0; {become} "$@" </dev/null'


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One instance's folder."""

    folder: Path

    def open(self) -> int:
        """Makes it; a descriptor by which one joins. OSError when the kernel does not let us.

        The kernel asks for the rights of who opened it, not of who writes, so a child of another user may join.
        """
        self.folder.mkdir(exist_ok=True)
        return os.open(self.folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def kill(self) -> bool:
        """KILL to all that is in it or below; False when that is not to be had, True also when the folder is gone."""
        try:
            (self.folder / "cgroup.kill").write_bytes(b"1")
        except OSError:
            return not self.folder.exists()
        return True

    def remove(self) -> None:
        """When nothing lives in it; what was just killed may take a moment, the folder then stays for the next run."""
        try:
            self.folder.rmdir()
        except OSError:  # EBUSY mostly; nothing depends on it
            return


@dataclass(frozen=True, slots=True)
class CgroupRoot:
    """Where this daemon keeps its instances' cgroups: `<the daemon's own>/branchd-<branch id>`."""

    mount: Path
    top: PurePosixPath  #: which cgroup is seen at the mount point
    folder: Path

    @classmethod
    def discover(cls, branch_id: str) -> Self | None:
        """None without cgroup2, where the daemon may make none in its own, and without cgroup.kill (Linux 5.14)."""
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            mounted = _mounted(mounts)
        own = proc.cgroup("self")
        if mounted is None or own is None or (inside := _inside(*mounted, own)) is None:
            return None
        if not (os.access(SHELL, os.X_OK) and os.access(ENV, os.X_OK)):
            return None
        root = cls(*mounted, inside / f"branchd-{branch_id}")
        try:
            root.folder.mkdir(exist_ok=True)
            for left in root.folder.iterdir():
                if left.is_dir():
                    Cgroup(left).remove()
            with open(root.folder / "cgroup.procs", "wb"), open(root.folder / "cgroup.kill", "wb"):
                return root
        except OSError:
            return None

    def remove(self) -> None:
        """At the daemon's end, where nothing runs any more."""
        Cgroup(self.folder).remove()

    def of(self, key: Key) -> Cgroup:
        return Cgroup(self.folder / str(key))

    def holding(self, pid: int, branch_id: str, key: Key) -> Cgroup | None:
        """The cgroup that the process is in, if it is one that a daemon of this branch made for this instance.

        It need not be below this daemon's own: another session may have started the daemon that made it.
        """
        path = proc.cgroup(pid)
        if path is None or PurePosixPath(path).parts[-2:] != (f"branchd-{branch_id}", str(key)):
            return None
        folder = _inside(self.mount, self.top, path)
        return Cgroup(folder) if folder is not None and folder.is_dir() else None


def _mounted(mounts: Iterable[str]) -> tuple[Path, PurePosixPath] | None:
    """The mount point of the first real cgroup2, and which cgroup is seen there; from the lines of mountinfo."""
    for line in mounts:
        # 31 23 0:28 ROOT POINT options [optional fields] - TYPE source options
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            top, point = before.split()[3:5]
            if _magic(point) == CGROUP2_MAGIC:
                return Path(point), PurePosixPath(top)
    return None


def _inside(mount: Path, top: PurePosixPath, path: str) -> Path | None:
    """Where a cgroup is in the file system; None for one that the mount or the namespace does not show."""
    within = PurePosixPath(path)
    if ".." in within.parts or not within.is_relative_to(top):
        return None
    return mount / within.relative_to(top)


def _magic(path: str) -> int:
    # statfs(2), whose f_type os.statvfs leaves out: the first word, in a buffer with room to spare
    answer = (ctypes.c_long * 64)()
    return int(answer[0]) if ctypes.CDLL(None).statfs(os.fsencode(path), ctypes.byref(answer)) == 0 else 0
