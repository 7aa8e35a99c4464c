"""A cgroup v2 for each instance: the one thing that no process can escape from by forking.

Controllers are switched on when the first instance asks for a limit that needs one, and not before: one in
subtree_control of a delegated cgroup makes the unit's next start fail on systemd 252 (219/CGROUP), unless something
switches it off again after the stop, and the cgroup that hands them down may hold no process, so that the daemon has to
leave it for a leaf. Where others are in it too, such as the shell that it was started from, it stays as it is.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Self

from branchd.adapters import proc
from branchd.core.value import Value
from branchd.core.values import Key

#: what statfs(2) says of a real cgroup2. On hybrid hosts /sys/fs/cgroup is a tmpfs: mkdir works there and means nothing
CGROUP2_MAGIC = 0x63677270

#: the leaf that the daemon moves itself to, within the cgroup that was its own
LEAF = "branchd-daemon"


class Cgroup(Value):
    """One instance's folder."""

    folder: Path

    def open(self) -> int:
        """Makes it, where it is not there; a descriptor of its folder, to begin in. OSError: the kernel refuses it."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return os.open(self.folder, flags)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder)
            return os.open(self.folder, flags)

    def kill(self) -> bool:
        """KILL to all that is in it or below; False when that is not to be had, True also when the folder is gone."""
        try:
            _write(self.folder / "cgroup.kill", "1")
        except OSError:
            return not self.folder.exists()
        return True

    @property
    def known_empty(self) -> bool:
        """Nothing lives in it or below; zombies do not. False also where that cannot be told."""
        return self._figures("cgroup.events").get("populated") == 0

    def limit(self, values: Mapping[str, str]) -> None:
        """Writes each to its file, where the controller is on; OSError."""
        for name, value in values.items():
            with contextlib.suppress(FileNotFoundError):
                _write(self.folder / name, value)

    def oom_kills(self) -> int:
        """How often the kernel killed in it for its limit of memory."""
        return self._figures("memory.events").get("oom_kill", 0)

    def usage(self) -> Mapping[str, float]:
        """memory (bytes, with its cache), cpu_seconds (of ended processes too), tasks; what the kernel counts here."""
        found = {
            "memory": self._figures("memory.current").get("", None),
            "cpu_seconds": self._figures("cpu.stat").get("usage_usec", None),
            "tasks": self._figures("pids.current").get("", None),
        }
        scales = {"cpu_seconds": 1e-6}
        return {name: value * scales.get(name, 1) for name, value in found.items() if value is not None}

    def _figures(self, name: str) -> dict[str, int]:
        """Lines of a name and a number, or a number alone, whose name is empty; none where there is no such file."""
        try:
            file = os.open(f"{self.folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)  # half of the calls of open()
            try:
                lines = os.read(file, 1 << 16).decode("ascii").splitlines()
            finally:
                os.close(file)
        except OSError:
            return {}
        return {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in lines}

    def remove(self) -> bool:
        """When nothing lives in it; what was just killed may take a moment, the folder then stays for the next run."""
        try:
            self.folder.rmdir()
        except OSError:  # EBUSY mostly; nothing depends on it
            return False
        return True


class CgroupRoot(Value):
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
        inside = inside.parent if inside.name == LEAF else inside
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

    @property
    def available(self) -> frozenset[str]:
        """Controllers that are on, or may be switched on, for instances."""
        own = self.folder.parent
        return _words(own / ("cgroup.subtree_control" if self.shared else "cgroup.controllers"))

    @property
    def shared(self) -> bool:
        """Others are in the daemon's own cgroup, so that it cannot be emptied to hand controllers down."""
        own = self.folder.parent
        # The root of the machine's hierarchy has no type, and hands controllers down whatever is in it.
        return (own / "cgroup.type").exists() and not all(map(_ours, _members(own)))

    @property
    def enabled(self) -> frozenset[str]:
        """Controllers that are on for instances."""
        return _words(self.folder / "cgroup.subtree_control")

    def enable(self, controllers: Iterable[str]) -> None:
        """Switches them on; OSError where that is not granted, or the daemon's own cgroup is shared."""
        wanted = " ".join(f"+{name}" for name in controllers)
        own = self.folder.parent
        try:
            _write(own / "cgroup.subtree_control", wanted)
        except OSError as error:
            if error.errno != errno.EBUSY or self.shared:
                raise
            leaf = own / LEAF
            leaf.mkdir(exist_ok=True)
            for pid in _members(own):
                with contextlib.suppress(ProcessLookupError):
                    _write(leaf / "cgroup.procs", str(pid))
            _write(own / "cgroup.subtree_control", wanted)
        _write(self.folder / "cgroup.subtree_control", wanted)

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


def visible(path: str) -> Path | None:
    """Where the cgroup of that name, as /proc tells it, is in the file system; None where it is not."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        mounted = _mounted(mounts)
    return None if mounted is None else _inside(*mounted, path)


def why_none(branch_id: str) -> tuple[str, str]:
    """Where discover() finds nothing: why, and what to do."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        mounted = _mounted(mounts)
    own = proc.cgroup("self")
    if mounted is None or own is None:
        return "no cgroup v2 is mounted", "boot with systemd.unified_cgroup_hierarchy=1, or mount it in the container"
    inside = _inside(*mounted, own)
    if inside is None:
        return f"the daemon's own cgroup {own} is not to be seen here", "give the container a cgroup namespace"
    folder = inside / f"branchd-{branch_id}"
    try:
        folder.mkdir(exist_ok=True)
        found = (folder / "cgroup.kill").exists()
        Cgroup(folder).remove()
    except OSError as error:
        return f"no cgroup may be made in {inside}: {error.strerror}", "run as root, or with Delegate=yes in the unit"
    if not found:
        return "the kernel has no cgroup.kill", "Linux 5.14 or newer"
    return "they were not to be had when the daemon started", "restart the daemon"


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


def _members(folder: Path) -> list[int]:
    """Pids; 0 for one that this daemon's namespace does not show."""
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _ours(pid: int) -> bool:
    """The daemon itself, or what descends from it; what is gone keeps nobody from anything."""
    while pid not in (0, os.getpid()):
        stat = proc.stat(pid)
        if stat is None:
            return True
        pid = stat.parent
    return pid != 0


def _magic(path: str) -> int:
    # statfs(2), whose f_type os.statvfs leaves out: the first word, in a buffer with room to spare
    answer = (ctypes.c_long * 64)()
    return int(answer[0]) if ctypes.CDLL(None).statfs(os.fsencode(path), ctypes.byref(answer)) == 0 else 0


def _words(file: Path) -> frozenset[str]:
    try:
        return frozenset(file.read_text(encoding="ascii").split())
    except OSError:
        return frozenset()


def _write(file: Path, text: str) -> None:
    """In one call of write(2), and nothing around it."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
