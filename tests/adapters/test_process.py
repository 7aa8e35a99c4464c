"""LinuxProcesses with real processes, with cgroups and without; the conformance suite for it and for the fake."""

import asyncio
import contextlib
import errno
import fcntl
import grp
import json
import os
import pwd
import resource
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from branchd.adapters import precheck, proc, reaping
from branchd.adapters.cgroup import Cgroup, CgroupRoot
from branchd.adapters.process import LinuxProcess, LinuxProcesses
from branchd.adapters.spawning import Spawning
from branchd.branch.ports import Lost, Process
from branchd.core.errors import SpawnFailed, Unavailable
from branchd.core.spec import Limits
from branchd.core.values import Exit, Identity, Key, Launch
from tests.adapters.conformance_process import KEY, Exits, ProcessesConformance, now
from tests.fakes.process import FakeProcesses
from tests.waiting import until

PATH = "/usr/local/bin:/usr/bin:/bin"
#: exits with 7 on USR1
WAITING = "trap 'exit 7' USR1; while :; do sleep 0.02; done"
#: leaves a process two sessions away, whose parent has ended, and writes its pid to a file
ESCAPED = "setsid sh -c 'setsid sleep 1000 & echo $! >escaped.new; mv escaped.new escaped'"
ESCAPING = f"{ESCAPED}; exec sleep 1000"
#: has a child in another session and with an environment of its own
UNMARKED = "env -i PATH=/usr/bin:/bin setsid sleep 1000 & echo $! >escaped.new; mv escaped.new escaped; wait"
#: whether this kernel tells how somebody else's child ended
TELLS_FOREIGN = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)


class Machine:
    """LinuxProcesses in one of its two ways of working, in a scratch folder."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode = mode
        self.folder = folder
        self.branch_id = uuid.uuid4().hex
        self.launch = self.shell(WAITING)
        self.missing = Launch(("/missing/program",), str(folder), {"PATH": PATH})
        self.spawned: list[LinuxProcess] = []
        self._others = set(proc.children(os.getpid()))  #: servers and daemons of other tests of this run
        self.processes = self._new()

    def _new(self) -> LinuxProcesses:
        cgroups = None
        if self.mode == "cgroups":
            cgroups = CgroupRoot.discover(self.branch_id)
            assert cgroups is not None, "these tests want a cgroup2 mount in which they may make folders"
        processes = LinuxProcesses(self.branch_id, cgroups)
        processes.begin()
        return processes

    def shell(self, script: str, **more: str) -> Launch:
        return Launch(("sh", "-c", script), str(self.folder), {"PATH": PATH, **more})

    async def spawn(
        self,
        launch: Launch,
        exits: Callable[[Exit], None],
        nonce: str = "",
        key: Key = KEY,
        sure: asyncio.Future[None] | None = None,
    ) -> LinuxProcess:
        with (self.folder / "output").open("ab") as file:
            output = contextlib.nullcontext((file.fileno(), file.fileno()))
            process = await self.processes.spawn(key, nonce or uuid.uuid4().hex, launch, output, exits, sure)
        self.spawned.append(process)
        return process

    async def output(self, launch: Launch) -> str:
        """Of a program that ends well."""
        exits = Exits()
        await self.spawn(launch, exits)
        how = await exits.one()
        text = (self.folder / "output").read_text()
        assert how == Exit(code=0), text
        return text

    def childless(self) -> bool:
        """No child and no zombie is left but the process that forks."""
        return set(proc.children(os.getpid())) <= {self.processes.spawner} | self._others

    async def end_with_seven(self, process: Process) -> None:
        await until(lambda: catches(process.identity.pid, signal.SIGUSR1), what="the trap")
        process.signal(signal.SIGUSR1)

    def restart_daemon(self) -> None:
        self.processes.close()
        self.processes = self._new()

    async def escaped(self) -> proc.Stat:
        """The process that ESCAPING left behind."""
        path = self.folder / "escaped"
        await until(path.exists)
        pid = int(path.read_text())
        await until(lambda: (stat := proc.stat(pid)) is not None and stat.session == pid)
        stat = proc.stat(pid)
        assert stat is not None
        return stat


def catches(pid: int, number: int) -> bool:
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def gone(target: proc.Stat | Identity) -> bool:
    stat = proc.stat(target.pid)
    return stat is None or stat.ended or stat.started != target.started


@pytest.fixture(params=["cgroups", "session"])
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Machine]:
    before = {stat.pid for stat in proc.descendants(os.getpid())}
    machine = Machine(request.param, tmp_path)
    yield machine
    machine.processes.close()
    await until(lambda: nothing_runs(but=before))
    root = CgroupRoot.discover(machine.branch_id)
    if root is not None:
        await until(lambda: removed(root))


def nothing_runs(but: set[int]) -> bool:
    """Ends and reaps what tests have left: this process is the subreaper of it all."""
    left = [stat for stat in proc.descendants(os.getpid()) if stat.pid not in but]
    for stat in left:
        if not stat.ended:
            with contextlib.suppress(ProcessLookupError):  # a parent of its own was quicker
                os.kill(stat.pid, signal.SIGKILL)
        elif stat.parent == os.getpid():
            os.waitpid(stat.pid, os.WNOHANG)
    return not left


def removed(root: CgroupRoot) -> bool:
    try:
        for folder in root.folder.iterdir():
            if folder.is_dir():
                folder.rmdir()
        root.folder.rmdir()
    except OSError:
        return False
    return True


class TestLinuxProcesses(ProcessesConformance):
    @pytest.fixture
    def world(self, machine: Machine) -> Machine:
        return machine


class FakeWorld:
    launch = Launch(("program",), "/")
    missing = Launch(("/missing/program",), "/")

    def __init__(self) -> None:
        self.processes = FakeProcesses()
        self.processes.missing.add("/missing/program")

    async def end_with_seven(self, process: Process) -> None:
        self.processes.end(process.identity.pid, Exit(code=7))

    def restart_daemon(self) -> None:
        self.processes.crash()


class TestFakeProcesses(ProcessesConformance):
    @pytest.fixture
    def world(self) -> FakeWorld:
        return FakeWorld()


# How it is started


async def test_the_environment_is_what_was_given_and_the_mark(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/leak")
    given = {"PATH": PATH, "EMPTY": "", "LINES": "a\nb", "UNICODE": "ä", "_UNDER": "_"}
    exits = Exits()
    await machine.spawn(Launch(("env", "-0"), str(machine.folder), given), exits, nonce="fedcba98")
    assert await exits.one() == Exit(code=0)
    entries = (machine.folder / "output").read_text().rstrip("\0").split("\0")
    assert dict(entry.split("=", 1) for entry in entries) == {**given, "BRANCHD_SPAWN": "fedcba98"}
    assert len(entries) == len(given) + 1


@pytest.mark.parametrize(
    "name", ["PWD", "SHLVL", "_", "IFS", "PPID", "OPTIND", "PS1", "PS4", "with.dot", "BASH_FUNC_a%%"]
)
async def test_environment_that_a_shell_would_change_arrives(machine: Machine, name: str) -> None:
    given = {"PATH": PATH, name: "value"}
    exits = Exits()
    await machine.spawn(Launch(("env", "-0"), str(machine.folder), given), exits, nonce="fedcba98")
    assert await exits.one() == Exit(code=0)
    assert f"{name}=value\0" in (machine.folder / "output").read_text()


async def test_arguments_arrive_as_they_are(machine: Machine) -> None:
    arguments = ("", "two words", "$HOME", "-n", "a'b\"c", "*", "--")
    text = await machine.output(Launch(("printf", "[%s]", *arguments), str(machine.folder), {"PATH": PATH}))
    assert text == "".join(f"[{argument}]" for argument in arguments)


async def test_it_has_no_descriptors_but_its_three(machine: Machine) -> None:
    text = await machine.output(machine.shell("readlink /proc/$$/fd/0; ls /proc/$$/fd"))
    assert text.split() == ["/dev/null", "0", "1", "2"]


async def test_it_leads_a_session_of_its_own_in_its_directory_with_its_umask(machine: Machine) -> None:
    launch = Launch(("sh", "-c", "pwd; umask; echo $$"), str(machine.folder), {"PATH": PATH}, umask=0o027)
    exits = Exits()
    process = await machine.spawn(launch, exits)
    stat = proc.stat(process.identity.pid)
    assert stat is not None
    assert stat.session == process.identity.pid
    assert await exits.one() == Exit(code=0)
    lines = (machine.folder / "output").read_text().split()
    assert lines == [str(machine.folder), "0027", str(process.identity.pid)]


async def test_a_user_comes_with_all_groups_and_joins_the_cgroup_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.geteuid() == 0, "switching the user wants root"
    nobody = pwd.getpwnam("nobody")
    extra = [grp.getgrnam(name).gr_gid for name in ("users", "audio")]
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, *extra] if name == "nobody" else [])
    launch = Launch(
        ("sh", "-c", "id -u; id -g; id -G; cat /proc/$$/cgroup; grep Cap /proc/$$/status"), "/", {"PATH": PATH}
    )
    text = await machine.output(Launch(launch.argv, "/", launch.env, user="nobody"))
    uid, gid, groups, *rest = text.splitlines()
    assert (int(uid), int(gid)) == (nobody.pw_uid, nobody.pw_gid)
    assert {int(each) for each in groups.split()} == {nobody.pw_gid, *extra}
    capabilities = dict(line.split(":\t") for line in rest if line.startswith("Cap"))
    assert int(capabilities["CapEff"], 16) == int(capabilities["CapPrm"], 16) == int(capabilities["CapInh"], 16) == 0
    joined = any(line.startswith("0::") and line.endswith(f"/branchd-{machine.branch_id}/{KEY}") for line in rest)
    assert joined == (machine.mode == "cgroups")


async def test_a_group_may_be_another_than_the_users(machine: Machine) -> None:
    launch = Launch(("sh", "-c", "id -un; id -gn"), "/", {"PATH": PATH}, user="nobody", group="users")
    assert (await machine.output(launch)).split() == ["nobody", "users"]


@pytest.fixture
def less_spared() -> Iterator[None]:
    """This process has an oom_score_adj that is not 0; a negative one would want a capability."""
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("200")
    yield
    own.write_text(before)


def oom_score_adjustment(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_what_the_kernel_was_told_of_the_daemon_is_not_handed_on(less_spared: None, machine: Machine) -> None:
    process = await machine.spawn(machine.launch, Exits())
    assert oom_score_adjustment(process.identity.pid) == 0
    assert oom_score_adjustment(os.getpid()) == 200


@pytest.mark.parametrize("machine", ["cgroups"], indirect=True)
async def test_a_join_that_fails_is_noticed_and_changes_nothing_else(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cgroup, "open", lambda cgroup: os.open("/proc", os.O_RDONLY))
    exits = Exits()
    process = await machine.spawn(machine.shell(ESCAPING), exits)
    escaped = await machine.escaped()
    process.signal(signal.SIGKILL)
    assert await exits.one() == Exit(signal=signal.SIGKILL)
    assert process.cgroup is None
    assert (machine.folder / "output").read_text() == ""
    machine.processes.sweep(process.key, process.nonce)
    await until(lambda: gone(escaped))


@pytest.mark.parametrize("machine", ["cgroups"], indirect=True)
async def test_a_tree_whose_join_failed_is_killed_without_its_cgroup(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cgroup, "open", lambda cgroup: os.open("/proc", os.O_RDONLY))
    exits = Exits()
    process = await machine.spawn(machine.shell(ESCAPING), exits)
    escaped = await machine.escaped()
    process.kill_tree()
    await exits.one()
    await until(lambda: gone(escaped))


@pytest.mark.parametrize("machine", ["cgroups"], indirect=True)
async def test_without_leave_to_make_a_cgroup_it_runs_without_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cgroup: Cgroup) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Cgroup, "open", fail)
    exits = Exits()
    process = await machine.spawn(machine.shell("exit 3"), exits)
    assert process.cgroup is None
    assert await exits.one() == Exit(code=3)


# What cannot be started


def failure(launch: Launch) -> SpawnFailed:
    with pytest.raises(SpawnFailed) as caught:
        precheck.program(launch, precheck.credentials(launch.user, launch.group))
    assert not caught.value.ours
    assert caught.value.hint
    return caught.value


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (Launch((), "/"), "the command is empty"),
        (Launch(("sh",), "{here}/none"), "directory {here}/none does not exist"),
        (Launch(("sh",), "{here}/file"), "{here}/file is not a directory"),
        (Launch(("sh",), "{here}/file/under"), "directory {here}/file/under does not exist"),
        (
            Launch(("nonesuch",), "/", {"PATH": "/bin:/usr"}),
            "program 'nonesuch' is in no folder of its PATH (/bin:/usr)",
        ),
        (Launch(("sh",), "/"), "program 'sh' cannot be looked up: its environment has no PATH"),
        (Launch(("{here}/none",), "/"), "program {here}/none does not exist"),
        (Launch(("./none",), "{here}"), "program {here}/./none does not exist"),
        (Launch(("{here}",), "/"), "program {here} is a directory"),
        (Launch(("{here}/file",), "/"), "program {here}/file may not be executed by the daemon's user"),
        (Launch(("file",), "/", {"PATH": "{here}"}), "program {here}/file may not be executed by the daemon's user"),
        (
            Launch(("{here}/orphan",), "/"),
            "program {here}/orphan asks on its first line for the interpreter /no/such/python, which does not exist",
        ),
        (Launch(("{here}/windows",), "/"), "program {here}/windows has lines that end in CR LF, its '#!' line too"),
        (Launch(("{here}/unnamed",), "/"), "program {here}/unnamed begins with '#!' and names no interpreter"),
        (Launch(("{here}/text",), "/"), "{here}/text is neither a program nor a script"),
        (Launch(("/bin/sh",), "/", user="nonesuch"), "user 'nonesuch' does not exist on this machine"),
        (Launch(("/bin/sh",), "/", group="nonesuch"), "group 'nonesuch' does not exist on this machine"),
        (
            Launch(("/bin/sh",), "{here}/closed/inner", user="nobody"),
            "directory {here}/closed/inner cannot be reached by user 'nobody': it may not enter {here}/closed",
        ),
        (
            Launch(("{here}/closed/script",), "/", user="nobody"),
            "program {here}/closed/script cannot be reached by user 'nobody': it may not enter {here}/closed",
        ),
        (Launch(("{here}/ours",), "/", user="nobody"), "program {here}/ours may not be executed by user 'nobody'"),
    ],
)
def test_a_launch_that_cannot_work_is_refused_in_words(launch: Launch, words: str, open_folder: Path) -> None:
    here = str(open_folder)
    (open_folder / "file").touch()
    (open_folder / "closed" / "inner").mkdir(parents=True)
    script(open_folder / "closed" / "script", "#!/bin/sh\n")
    (open_folder / "closed").chmod(0o700)
    script(open_folder / "ours", "#!/bin/sh\n", 0o700)
    script(open_folder / "orphan", "#! /no/such/python -u\n")
    script(open_folder / "windows", "#!/bin/sh\r\necho\r\n")
    script(open_folder / "unnamed", "#!\n")
    script(open_folder / "text", "echo\n")
    filled = Launch(
        tuple(word.format(here=here) for word in launch.argv),
        launch.directory.format(here=here),
        {name: value.format(here=here) for name, value in launch.env.items()},
        launch.user,
        launch.group,
    )
    assert failure(filled).detail == words.format(here=here)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user can reach, which pytest's are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_an_access_list_gets_the_benefit_of_the_doubt(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (open_folder / "closed").mkdir(mode=0o700)
    launch = Launch(("/bin/sh",), str(open_folder / "closed"), user="nobody")
    assert "cannot be reached" in failure(launch).detail
    monkeypatch.setattr(os, "listxattr", lambda path: ["system.posix_acl_access"])
    assert precheck.program(launch, precheck.credentials("nobody", None)) == "/bin/sh"


def test_only_root_can_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(os, "getegid", lambda: 65534)
    assert failure(Launch(("/bin/sh",), "/", user="daemon")).detail == (
        "cannot switch to user 'daemon', group 1: the daemon does not run as root"
    )
    assert precheck.credentials("nobody", None) is None
    assert precheck.credentials("nobody", "nogroup") is None


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
async def test_want_of_resources_is_not_the_instances_fault(
    machine: Machine, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number), "clone")

    monkeypatch.setattr(Spawning, "spawn", fail)
    with pytest.raises(SpawnFailed) as caught:
        await machine.spawn(machine.launch, Exits())
    assert caught.value.ours
    assert os.strerror(number) in caught.value.detail


async def test_without_a_descriptor_to_watch_it_by_nothing_is_left_running(machine: Machine) -> None:
    launch = Launch(("sleep", "1000"), "/", {"PATH": PATH})
    (await machine.spawn(launch, Exits())).signal(signal.SIGKILL)  # everything is loaded and begun
    await until(machine.childless)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (machine.folder / "output").open("ab") as file:
        output = contextlib.nullcontext((file.fileno(), file.fileno()))
        os.close(first_free := os.dup(file.fileno()))
        # there is room for the descriptor of the cgroup's folder and no more
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + (machine.mode == "cgroups"), limits[1]))
        try:
            with pytest.raises(SpawnFailed) as caught:
                await machine.processes.spawn(KEY, uuid.uuid4().hex, launch, output, Exits())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.ours
    await until(machine.childless)


def broken_program(folder: Path) -> str:
    return script(folder / "broken", "\x7fELF and nothing more")


async def test_what_the_checks_cannot_see_fails_in_words_too(machine: Machine) -> None:
    with pytest.raises(SpawnFailed, match="could not be started: Exec format error"):
        await machine.spawn(Launch((broken_program(machine.folder),), "/"), Exits())


async def test_what_cannot_be_handed_over_fails_in_words(machine: Machine) -> None:
    with pytest.raises(SpawnFailed, match="too long for the kernel"):
        await machine.spawn(Launch(("/bin/true", "x" * 4_000_000), "/"), Exits())
    with pytest.raises(SpawnFailed, match="cannot be handed over"):
        await machine.spawn(Launch(("/bin/true", "\0"), "/"), Exits())
    assert machine.childless()


# How it ends


async def test_many_that_are_killed_at_once_are_each_told_once_and_drown_no_signal_to_the_daemon(
    machine: Machine,
) -> None:
    exits = [Exits() for _ in range(400)]
    launch = Launch(("sleep", "1000"), "/", {"PATH": PATH})
    spawned = [await machine.spawn(launch, each, key=Key("shop", f"w-{number}")) for number, each in enumerate(exits)]
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, told.set)
    for process in spawned:
        kill_and_await(process)  # one by one: no two of them in one SIGCHLD
    os.kill(os.getpid(), signal.SIGUSR2)
    async with asyncio.timeout(30):
        await told.wait()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR2)
    await until(lambda: all(each.seen for each in exits))
    for process in spawned:
        machine.processes.sweep(process.key, process.nonce)
    assert all(each.seen == [Exit(signal=signal.SIGKILL)] for each in exits)
    assert machine.childless()


async def test_killing_the_tree_reaches_one_that_left_its_session_twice(machine: Machine) -> None:
    exits = Exits()
    process = await machine.spawn(machine.shell(ESCAPING), exits)
    escaped = await machine.escaped()
    process.kill_tree()
    assert await exits.one() == Exit(signal=signal.SIGKILL)
    await until(lambda: gone(escaped))


async def test_killing_the_tree_reaches_descendants_without_the_mark(machine: Machine) -> None:
    exits = Exits()
    process = await machine.spawn(machine.shell(UNMARKED), exits)
    escaped = await machine.escaped()
    assert proc.mark(escaped.pid) is None
    process.kill_tree()
    await exits.one()
    await until(lambda: gone(escaped))


async def test_a_sweep_ends_one_that_left_its_session_twice(machine: Machine) -> None:
    exits = Exits()
    process = await machine.spawn(machine.shell(ESCAPING), exits)
    escaped = await machine.escaped()
    process.signal(signal.SIGKILL)
    await exits.one()
    assert not gone(escaped)
    machine.processes.sweep(process.key, process.nonce)
    await until(lambda: gone(escaped))


async def test_a_sweep_ends_what_was_left_by_one_that_ended_without_a_daemon(machine: Machine) -> None:
    process = await machine.spawn(machine.shell(ESCAPING), Exits())
    escaped = await machine.escaped()
    machine.restart_daemon()
    kill_and_reap(process.identity.pid)
    assert machine.processes.adopt(KEY, process.nonce, process.identity, Limits(), Exits()) is None
    machine.processes.sweep(KEY, process.nonce)
    await until(lambda: gone(escaped))


def kill_and_await(process: LinuxProcess) -> None:
    process.signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.identity.pid, os.WEXITED | os.WNOWAIT)


def kill_and_reap(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def test_orphans_are_reaped(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaping, "ORPHAN_PATIENCE", 0.05)
    exits = Exits()
    process = await machine.spawn(
        machine.shell("for i in 1 2 3 4 5; do (sleep 0.05 &) ; done; (setsid sleep 1000 &)"), exits
    )
    await exits.one()
    machine.processes.sweep(process.key, process.nonce)
    await until(machine.childless, what="no child and no zombie left")


async def test_the_status_of_others_children_is_left_to_them(machine: Machine) -> None:
    other = await asyncio.create_subprocess_exec("sh", "-c", "exit 5")
    (await machine.spawn(machine.launch, Exits())).signal(signal.SIGKILL)
    assert await other.wait() == 5


async def test_closing_leaves_everything_running(machine: Machine) -> None:
    exits = Exits()
    process = await machine.spawn(machine.launch, exits)
    descriptors = len(os.listdir("/proc/self/fd"))
    machine.processes.close()
    # Its own, and the line to the process that forks; what other tests left is collected whenever it is.
    assert len(os.listdir("/proc/self/fd")) <= descriptors - 2
    assert not gone(process.identity)
    assert exits.seen == []


# Adoption


class Daemon:
    """Another process that spawned through LinuxProcesses, and is killed without warning."""

    def __init__(self, machine: Machine, argv: Sequence[str], *, kept: bool) -> None:
        command = [sys.executable, "-m", "tests.adapters.process_daemon", *(["keep"] if kept else [])]
        self.nonce = uuid.uuid4().hex
        self.outer = subprocess.Popen(
            [*command, machine.branch_id, machine.mode, self.nonce, *argv],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert self.outer.stdout is not None
        self.pid, boot, pid, started = json.loads(self.outer.stdout.readline())
        self.outer.stdout.close()
        self.identity = Identity(boot, pid, started)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        if self.pid == self.outer.pid:
            self.outer.wait()

    def end(self) -> None:
        self.outer.kill()
        self.outer.wait()


@pytest.fixture(params=[False, True], ids=["ours", "not-ours"])
def daemon(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Callable[[str], Daemon]]:
    """Starts one; the orphans that it leaves go to this process, or to another one that reaps them."""
    daemons: list[Daemon] = []

    def start(text: str) -> Daemon:
        daemons.append(Daemon(machine, ("sh", "-c", f"cd {machine.folder}; {text}"), kept=request.param))
        return daemons[-1]

    yield start
    for each in daemons:
        each.end()
        for pid in proc.pids():
            if proc.mark(pid) == each.nonce:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def adopted(machine: Machine, daemon: Daemon, exits: Exits) -> LinuxProcess:
    await until(lambda: catches(daemon.identity.pid, signal.SIGUSR1), what="the trap")
    daemon.kill()
    await until(lambda: (stat := proc.stat(daemon.identity.pid)) is not None and stat.parent != daemon.pid)
    process = machine.processes.adopt(KEY, daemon.nonce, daemon.identity, Limits(), exits)
    assert process is not None
    assert process.identity == daemon.identity
    assert (process.cgroup is not None) == (machine.mode == "cgroups")
    return process


async def test_what_a_killed_daemon_left_is_signalled_and_its_exit_told(
    machine: Machine, daemon: Callable[[str], Daemon]
) -> None:
    exits = Exits()
    process = await adopted(machine, daemon(WAITING), exits)
    assert process.cpu_seconds() is not None
    process.signal(signal.SIGUSR1)
    assert await exits.one() == (Exit(code=7) if TELLS_FOREIGN or ours(process) else Exit())


async def test_the_tree_of_an_adopted_one_is_killed(machine: Machine, daemon: Callable[[str], Daemon]) -> None:
    exits = Exits()
    process = await adopted(machine, daemon(f"trap 'exit 7' USR1; {ESCAPED}; {WAITING}"), exits)
    escaped = await machine.escaped()
    process.kill_tree()
    await exits.one()
    await until(lambda: gone(escaped))


async def test_what_an_adopted_one_left_is_swept(machine: Machine, daemon: Callable[[str], Daemon]) -> None:
    exits = Exits()
    process = await adopted(machine, daemon(f"trap 'exit 7' USR1; {ESCAPED}; {WAITING}"), exits)
    escaped = await machine.escaped()
    process.signal(signal.SIGKILL)
    await exits.one()
    assert not gone(escaped)
    machine.processes.sweep(KEY, process.nonce)
    await until(lambda: gone(escaped))


async def test_a_zombie_of_ours_is_adopted_with_its_status(machine: Machine) -> None:
    process = await machine.spawn(machine.shell("exit 3"), Exits())
    machine.processes.close()
    await until(lambda: (stat := proc.stat(process.identity.pid)) is not None and stat.ended)
    machine.restart_daemon()
    exits = Exits()
    assert machine.processes.adopt(KEY, process.nonce, process.identity, Limits(), exits) is not None
    assert await exits.one() == Exit(code=3)


async def test_what_ended_is_not_reaped_before_all_is_adopted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await machine.spawn(machine.shell("exit 3"), Exits())
    machine.processes.close()
    monkeypatch.setattr(reaping, "ORPHAN_PATIENCE", 0.02)
    machine.processes = LinuxProcesses(machine.branch_id, None)
    looks = asyncio.get_running_loop().time() + 10 * reaping.ORPHAN_PATIENCE
    await until(lambda: asyncio.get_running_loop().time() > looks)
    exits = Exits()
    assert machine.processes.adopt(KEY, process.nonce, process.identity, Limits(), exits) is not None
    assert await exits.one() == Exit(code=3)
    machine.processes.begin()
    orphan = await machine.spawn(machine.shell("setsid sh -c 'exit 0' & echo $! >left; exec sleep 1000"), Exits())
    orphan.kill_tree()
    await until(machine.childless)


@pytest.fixture
async def neglected(machine: Machine) -> proc.Stat:
    """A running process whose parent never reaps it."""
    await machine.spawn(
        machine.shell("sleep 1000 & echo $! >escaped.new; mv escaped.new escaped; exec sleep 1000"), Exits()
    )
    path = machine.folder / "escaped"
    await until(path.exists)
    stat = proc.stat(int(path.read_text()))
    assert stat is not None
    return stat


async def test_a_zombie_of_somebody_else_is_gone(machine: Machine, neglected: proc.Stat) -> None:
    os.kill(neglected.pid, signal.SIGKILL)
    await until(lambda: (stat := proc.stat(neglected.pid)) is not None and stat.state == "Z")
    identity = Identity(proc.boot_id(), neglected.pid, neglected.started)
    assert machine.processes.adopt(KEY, "neglected", identity, Limits(), Exits()) is None


async def test_the_status_of_one_that_its_parent_never_reaps_is_unknown_in_the_end(
    machine: Machine, neglected: proc.Stat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaping, "STATUS_PATIENCE", 0.05)
    exits = Exits()
    identity = Identity(proc.boot_id(), neglected.pid, neglected.started)
    process = machine.processes.adopt(KEY, "neglected", identity, Limits(), exits)
    assert process is not None
    process.signal(signal.SIGKILL)
    assert await exits.one() == Exit()


async def test_a_kernel_that_does_not_tell_means_unknown(
    machine: Machine, daemon: Callable[[str], Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, request: int, buffer: bytearray) -> int:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    exits = Exits()
    process = await adopted(machine, daemon(WAITING), exits)
    monkeypatch.setattr(fcntl, "ioctl", fail)
    expected = Exit(signal=signal.SIGKILL) if ours(process) else Exit()
    process.signal(signal.SIGKILL)
    assert await exits.one() == expected


def ours(process: LinuxProcess) -> bool:
    stat = process.stat()
    return stat is not None and stat.parent == os.getpid()


async def test_want_of_descriptors_is_not_taken_for_a_process_that_is_gone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    process = await machine.spawn(machine.launch, Exits())
    machine.restart_daemon()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", fail)
        with pytest.raises(Unavailable):
            machine.processes.adopt(KEY, process.nonce, process.identity, Limits(), Exits())
    with monkeypatch.context() as patched:
        patched.setattr(proc, "stat", lambda pid: None)
        with pytest.raises(Unavailable):
            machine.processes.adopt(KEY, process.nonce, process.identity, Limits(), Exits())
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", fail)
        with pytest.raises(Unavailable):
            machine.processes.find({process.nonce: Lost(KEY, 0.0, None)})


# Finding


async def test_the_spawned_process_is_found_and_not_what_descends_from_it(machine: Machine) -> None:
    before = now()
    # what starts in the same clock tick as its ancestor is, to the kernel, as old
    process = await machine.spawn(machine.shell(f"sleep 0.05; {ESCAPING}"), Exits())
    await machine.escaped()
    assert machine.processes.find({process.nonce: Lost(KEY, before, None)}) == {process.nonce: process.identity}


async def test_what_merely_descends_from_one_that_ended_is_not_taken_for_it(machine: Machine) -> None:
    before = now()
    exits = Exits()
    process = await machine.spawn(machine.shell("sleep 1000 & exit 0"), exits)
    await exits.one()
    assert any(proc.mark(pid) == process.nonce for pid in proc.pids())
    assert machine.processes.find({process.nonce: Lost(KEY, before, None)}) == {}


async def test_nor_is_another_users_or_another_instances(machine: Machine) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    launch = Launch(("sleep", "1000"), "/", {"PATH": PATH}, user="nobody")
    process = await machine.spawn(launch, Exits())
    for uid, found in ((nobody, True), (0, True), (None, True), (nobody + 1, False)):
        answer = machine.processes.find({process.nonce: Lost(KEY, 0.0, uid)})
        assert answer == ({process.nonce: process.identity} if found else {})
    other = machine.processes.find({process.nonce: Lost(Key("shop", "other"), 0.0, nobody)})
    assert bool(other) == (machine.mode == "session")


async def test_a_mark_that_somebody_made_up_stops_no_search(machine: Machine) -> None:
    before = now()
    process = await machine.spawn(machine.shell("sleep 1000"), Exits())
    liar = await machine.spawn(machine.shell(f"{proc.MARK}=$(printf '\\377') exec sleep 1000"), Exits())
    await until(lambda: proc.mark(liar.identity.pid) == "\N{REPLACEMENT CHARACTER}")
    assert machine.processes.find({process.nonce: Lost(KEY, before, None)}) == {process.nonce: process.identity}


async def test_a_pipe_that_took_the_place_of_a_program_keeps_nobody_waiting(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = machine.folder / "program"
    os.mkfifo(pipe, 0o777)
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "isfile", lambda path: True)  # it was one when it was looked at
        with pytest.raises(SpawnFailed):
            await machine.spawn(Launch((str(pipe),), "/", {"PATH": PATH}), Exits())


def carrier(pid: int, started: int, parent: int = 1) -> proc.Stat:
    return proc.Stat(pid=pid, state="S", parent=parent, session=pid, cpu=0, started=started)


@pytest.mark.parametrize(
    ("carriers", "found"),
    [
        ([carrier(20, 100), carrier(10, 101)], 20),
        ([carrier(10, 100, parent=20), carrier(20, 100)], 20),
        ([carrier(10, 100), carrier(20, 100)], None),
        ([carrier(10, 98, parent=5), carrier(20, 100)], 20),
    ],
    ids=["earliest", "parent", "ambiguous", "too-early"],
)
async def test_which_of_several_is_found(
    carriers: list[proc.Stat], found: int | None, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_pid = {stat.pid: stat for stat in carriers}
    with monkeypatch.context() as patched:
        patched.setattr(proc, "pids", lambda: iter(by_pid))
        patched.setattr(proc, "mark", lambda pid: "nonce")
        patched.setattr(proc, "stat", by_pid.get)
        answer = machine.processes.find({"nonce": Lost(KEY, 104 / proc.TICKS, None)})
    identity = answer["nonce"]
    assert (identity and identity.pid) == found
