"""Cgroups on the real cgroup2 mount, and how it is found on hosts of other makes."""

import errno
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from branchd.adapters import cgroup, limits, proc
from branchd.adapters.cgroup import Cgroup, CgroupRoot
from branchd.adapters.instance_cgroups import InstanceCgroups
from branchd.core.spec import Limits
from branchd.core.values import Key
from tests.waiting import until_sync

KEY = Key("shop", "worker-1")


@pytest.fixture
def branch_id() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def root(branch_id: str) -> Iterator[CgroupRoot]:
    found = CgroupRoot.discover(branch_id)
    assert found is not None, "these tests want a cgroup2 mount in which they may make folders"
    yield found
    for folder in [*found.folder.iterdir(), found.folder]:
        if folder.is_dir():
            folder.rmdir()


def test_it_is_made_below_the_daemons_own_with_no_controller(root: CgroupRoot, branch_id: str) -> None:
    own = proc.cgroup("self")
    assert own is not None
    assert root.folder == root.mount / PurePosixPath(own).relative_to(root.top) / f"branchd-{branch_id}"
    assert (root.folder / "cgroup.subtree_control").read_text().strip() == ""


def removed(mine: Cgroup) -> bool:
    mine.remove()
    return not mine.folder.exists()


def test_a_member_is_known_killed_and_its_folder_removed(root: CgroupRoot, branch_id: str) -> None:
    mine = root.of(KEY)
    os.close(mine.open())
    with subprocess.Popen(["/bin/sleep", "1000"]) as sleeper:
        (mine.folder / "cgroup.procs").write_text(str(sleeper.pid))
        until_sync(lambda: root.holding(sleeper.pid, branch_id, KEY) == mine)
        assert root.holding(sleeper.pid, branch_id, Key("shop", "other")) is None
        assert root.holding(sleeper.pid, "other", KEY) is None
        mine.remove()
        assert mine.folder.exists()  # it is in use
        assert mine.kill()
        assert sleeper.wait() == -9
    until_sync(lambda: removed(mine))
    assert mine.kill()  # there is nothing to kill


def test_empty_folders_of_earlier_daemons_are_removed(root: CgroupRoot, branch_id: str) -> None:
    os.close(root.of(KEY).open())
    assert CgroupRoot.discover(branch_id) == root
    assert not root.of(KEY).folder.exists()


class OwnCgroup:
    """As the kernel has it: a cgroup with members hands no controllers down, and moving is writing."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = CgroupRoot(folder, PurePosixPath("/"), folder / "branchd-x")
        self.moved: list[int] = []
        self.members = [os.getpid()]
        self._folder = folder
        for name, text in {"cgroup.controllers": "cpu memory", "cgroup.subtree_control": "", "cgroup.type": ""}.items():
            (folder / name).write_text(text)
        monkeypatch.setattr(cgroup, "_members", lambda folder: self.members)
        monkeypatch.setattr(cgroup, "_write", self._write)

    def _write(self, file: Path, text: str) -> None:
        if file == self._folder / cgroup.LEAF / "cgroup.procs":
            self.moved.append(int(text))
            self.members = [pid for pid in self.members if pid != int(text)]
        elif file.parent == self._folder and self.members:
            raise OSError(errno.EBUSY, "busy")


def test_to_hand_controllers_down_the_daemon_leaves_its_cgroup_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnCgroup(tmp_path, monkeypatch)
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        own.members = [os.getpid(), child.pid, 2**22 - 1]  # one of them is gone
        assert own.root.available == {"cpu", "memory"}
        own.root.enable(["memory"])
        child.kill()
    assert own.moved[:2] == [os.getpid(), child.pid]


@pytest.mark.parametrize("other", [os.getppid(), 0], ids=["the shell it came from", "out of sight"])
def test_others_are_not_moved_and_limits_cannot_be_had_where_they_are(
    other: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnCgroup(tmp_path, monkeypatch)
    own.members = [os.getpid(), other]
    assert own.root.shared
    assert own.root.available == frozenset()
    with pytest.raises(OSError, match="busy"):
        own.root.enable(["memory"])
    assert own.moved == []
    found = limits.unenforceable(Limits(memory=1 << 30), own.root.available, (1024, 1024), "others are there")
    assert found == {"memory": "the controller 'memory' is not to be had: others are there"}
    (tmp_path / "cgroup.type").unlink()  # the root of all
    assert own.root.available == {"cpu", "memory"}


HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
)
CONTAINER = "41 31 0:38 /system.slice/box /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate\n"
LEGACY = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"


@pytest.mark.parametrize(
    ("mounts", "own", "inside"),
    [
        (HYBRID, "/", "/sys/fs/cgroup/unified"),
        (HYBRID, "/system.slice/branchd.service", "/sys/fs/cgroup/unified/system.slice/branchd.service"),
        (CONTAINER, "/system.slice/box/inner", "/sys/fs/cgroup/inner"),
        (CONTAINER, "/system.slice/other", None),
        (CONTAINER, "/system.slice/box/../other", None),
    ],
)
def test_where_a_cgroup_is_seen(mounts: str, own: str, inside: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_magic", lambda path: cgroup.CGROUP2_MAGIC)
    found = cgroup._mounted(mounts.splitlines())
    assert found is not None
    assert cgroup._inside(*found, own) == (inside and Path(inside))


def test_a_mount_that_only_says_that_it_is_one_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cgroup._mounted(LEGACY.splitlines()) is None
    monkeypatch.setattr(cgroup, "_magic", lambda path: 0x01021994)
    assert cgroup._mounted(HYBRID.splitlines()) is None


def test_the_kernel_tells_a_cgroup2_from_a_tmpfs(root: CgroupRoot, tmp_path: Path) -> None:
    assert cgroup._magic(str(root.mount)) == cgroup.CGROUP2_MAGIC
    assert cgroup._magic(str(tmp_path)) != cgroup.CGROUP2_MAGIC
    assert cgroup._magic("/no/such/folder") == 0


@pytest.mark.parametrize("own", [None, "/../elsewhere", "/no/such/cgroup"])
def test_without_a_place_for_them_there_are_none(
    own: str | None, branch_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "cgroup", lambda pid: own)
    assert CgroupRoot.discover(branch_id) is None


def test_limits_are_written_where_their_controller_is_on_and_figures_read(tmp_path: Path) -> None:
    mine = Cgroup(tmp_path)
    for name in ("memory.max", "pids.max"):
        (tmp_path / name).write_text("max\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\n")
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\n")
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    mine.limit(limits.of_tree(Limits(memory="1MiB", cpu=0.5)))
    assert (tmp_path / "memory.max").read_text() == "1048576"
    assert (tmp_path / "pids.max").read_text().strip() == "max"
    assert not (tmp_path / "cpu.max").exists()  # its controller is off
    assert mine.oom_kills() == 2
    assert mine.usage() == {"memory": 4096, "cpu_seconds": 2.5}
    assert not mine.known_empty


def test_shares_of_cpu_time_are_those_of_the_kernel() -> None:
    asked = Limits(cpu=1.5, tasks=20)
    assert limits.of_tree(asked) == {
        "memory.max": "max", "memory.swap.max": "max", "cpu.max": "150000 100000", "pids.max": "20"
    }  # fmt: skip
    assert limits.of_tree(Limits(memory="1MiB"))["memory.swap.max"] == "0"
    assert limits.controllers(asked) == {"cpu", "pids"}


@pytest.mark.parametrize(("left_on", "limit"), [("", "1048576"), ("memory", "2097152")])
def test_limits_are_set_again_that_were_lost_with_their_controllers(left_on: str, limit: str, tmp_path: Path) -> None:
    root = CgroupRoot(tmp_path, PurePosixPath("/"), tmp_path / "branchd-1")
    mine = root.of(KEY)
    mine.folder.mkdir(parents=True)
    for folder in (tmp_path, root.folder):
        (folder / "cgroup.controllers").write_text("memory pids\n")
        (folder / "cgroup.subtree_control").write_text(left_on)
    (mine.folder / "memory.max").write_text("2097152" if left_on else "max")
    InstanceCgroups(root).limit_again(mine, Limits(memory="1MiB"))
    assert (mine.folder / "memory.max").read_text() == limit
    assert (root.folder / "cgroup.subtree_control").read_text() == (left_on or "+memory")


def test_a_daemon_that_has_moved_to_its_leaf_finds_the_same_place(
    root: CgroupRoot, branch_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = proc.cgroup("self")
    monkeypatch.setattr(proc, "cgroup", lambda pid: f"{own}/{cgroup.LEAF}".replace("//", "/"))
    assert CgroupRoot.discover(branch_id) == root


def test_why_there_are_none_is_told(branch_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cgroup.why_none(branch_id)[0] == "they were not to be had when the daemon started"
    monkeypatch.setattr(proc, "cgroup", lambda pid: "/../elsewhere")
    assert "is not to be seen here" in cgroup.why_none(branch_id)[0]
    monkeypatch.setattr(proc, "cgroup", lambda pid: "/no/such")
    assert "no cgroup may be made in" in cgroup.why_none(branch_id)[0]
    monkeypatch.setattr(proc, "cgroup", lambda pid: None)
    assert cgroup.why_none(branch_id)[0] == "no cgroup v2 is mounted"
