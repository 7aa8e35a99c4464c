"""Programs that do not begin, such as wait for a file server: they keep nothing waiting, and nothing of them stays."""

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from branchd.adapters import proc, process, reaping, spawner, spawning, trees
from branchd.core.errors import SpawnFailed
from branchd.core.values import Key, Launch
from tests.adapters.conformance_process import Exits
from tests.adapters.test_process import PATH, Machine, gone, machine
from tests.waiting import until

__all__ = ["machine"]  # a fixture

#: what has this among its arguments is never executed
HUNG = "hung"

Hang = Callable[..., None]


def helper(path: Path, *lines: str) -> str:
    """The process that forks, after these were carried out in it."""
    folder = str(Path(spawner.__file__).parent)
    begin = f"import os, sys, time; sys.path.insert(0, {folder!r}); import spawner"
    path.write_text("\n".join([begin, *lines, "spawner.main(int(sys.argv[1]), int(sys.argv[2]))\n"]))
    return str(path)


@pytest.fixture
def hang(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Hang:
    def begin(patience: float, *further: str) -> None:
        lines = (
            f"spawner.PATIENCE = {patience}",
            "execve = os.execve",
            f"os.execve = lambda *told: time.sleep(1000) if {HUNG.encode()!r} in told[1] else execve(*told)",
        )
        monkeypatch.setattr(spawning, "PROGRAM", helper(machine.folder / "helper.py", *lines, *further))
        machine.restart_daemon()

    return begin


def hung(machine: Machine, number: int) -> list[asyncio.Task[object]]:
    launch = Launch(("sh", "-c", "sleep 1000", HUNG), "/", {"PATH": PATH})
    keys = (Key("shop", f"hung-{each}") for each in range(number))
    return [asyncio.create_task(machine.spawn(launch, Exits(), key=key)) for key in keys]


def clones(machine: Machine) -> set[proc.Stat]:
    """What is there of programs that have not been executed."""
    assert machine.processes.spawner is not None
    command = proc.command_line(machine.processes.spawner)
    children = set(proc.children(os.getpid())) - {machine.processes.spawner}
    found = {proc.stat(pid) for pid in children if proc.command_line(pid) == command}
    return {stat for stat in found if stat is not None}


async def cancelled(tasks: Iterable[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_one_that_does_not_begin_in_time_takes_no_other_with_it(machine: Machine, hang: Hang) -> None:
    hang(0.1)
    pid = machine.processes.spawner
    for failure in await asyncio.gather(*hung(machine, 3), return_exceptions=True):
        assert isinstance(failure, SpawnFailed)
        assert "did not begin in time" in failure.detail
    assert machine.processes.spawner == pid


async def test_one_that_does_not_even_end_keeps_nothing_waiting(
    machine: Machine, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaping, "ORPHAN_PATIENCE", 0.05)
    hang(0.1, "spawner._SIGKILL = 0")  # so does the kernel's, where a process hangs in there
    [failure] = await asyncio.gather(*hung(machine, 1), return_exceptions=True)
    assert isinstance(failure, SpawnFailed)
    [left] = clones(machine)
    assert await machine.output(machine.shell("echo well")) == "well\n"
    trees.kill(left)
    await until(machine.childless)


async def test_others_begin_however_many_do_not(machine: Machine, hang: Hang) -> None:
    hang(1000)
    waiting = hung(machine, 2 * process.STARTS_AT_ONCE)
    assert await machine.output(machine.shell("echo well")) == "well\n"
    await until(lambda: len(clones(machine)) == len(waiting))
    await cancelled(waiting)


async def test_what_has_not_begun_does_not_when_the_daemon_ends(machine: Machine, hang: Hang) -> None:
    hang(1000)
    waiting = hung(machine, 2)
    await until(lambda: len(clones(machine)) == 2)
    left = clones(machine)
    machine.processes.close()
    await until(lambda: all(gone(stat) for stat in left))
    await cancelled(waiting)


async def test_where_no_system_call_is_known_to_do_it_that_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("spawner._SYS_CLONE3 = 100000", "spawner._SYS_CLONE = None")
    monkeypatch.setattr(spawning, "PROGRAM", helper(machine.folder / "helper.py", *lines))
    machine.restart_daemon()
    with pytest.raises(SpawnFailed, match="clone3"):
        await machine.output(machine.shell("true"))


def test_it_says_nothing_when_the_daemon_hangs_up_with_words_unread() -> None:
    line, theirs = spawning.socket.socketpair()
    with theirs:
        command = [sys.executable, "-I", "-S", "-B", spawning.PROGRAM, str(theirs.fileno()), str(os.getpid())]
        helper = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE)
    with helper:
        order = spawning.marshal.dumps((b"", [], {}, b"/", -1, None, [], None, None, b"", False))
        line.sendall(spawner.LENGTH.pack(len(order)) + order)  # without descriptors: it is refused
        assert select.select([line], [], [], 10)[0]
        line.close()  # with its answer unread, which is a reset
        assert helper.stderr is not None
        assert helper.stderr.read() == b""


def test_what_was_compiled_from_another_source_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "spawner.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(spawning, "PROGRAM", str(source))
    assert spawning.program() == str(source)
    compiled = Path(spawning.cache_from_source(str(source)))
    subprocess.run([sys.executable, "-m", "py_compile", source], check=True)
    assert spawning.program() == str(compiled)
    source.write_text("x = 1, 2\n")
    assert spawning.program() == str(source)
