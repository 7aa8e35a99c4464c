"""What the unit's commands do to the daemon; what they ask of a real systemd is tested in tests/systemd."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from branchd.adapters import service_manager
from branchd.adapters.service_manager import let_go, restarting, turn_controllers_off


def sleeper(handler: str) -> subprocess.Popen[str]:
    script = f"import signal, time; signal.signal(signal.SIGQUIT, {handler}); print('up', flush=True); time.sleep(1000)"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    return child


def test_a_daemon_that_lets_go_is_waited_for() -> None:
    with sleeper("lambda *_: exit(0)") as child:
        assert let_go(child.pid) is False
        assert child.wait(10) == 0


def test_one_that_does_not_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_manager, "LET_GO", 0.2)
    with sleeper("signal.SIG_IGN") as child:
        assert let_go(child.pid) is True
        assert child.wait(10) == -signal.SIGKILL


def test_one_that_is_gone_is_no_error() -> None:
    with sleeper("signal.SIG_DFL") as child:
        child.kill()
    assert let_go(child.pid) is False


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ("12 branchd.service restart running\n", True),
        ("12 branchd.service stop running\n13 other.service restart waiting\n", False),
        ("", False),
    ],
)
def test_a_restart_is_told_by_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str, expected: bool
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\nprintf %s '{jobs}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert restarting("branchd.service", of_user=False) is expected


def test_without_systemd_it_is_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert restarting("branchd.service", of_user=False) is False


def test_controllers_are_turned_off_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = tmp_path / "branchd.service"
    for folder in (unit, unit / "branchd-1", unit / ".control"):
        folder.mkdir()
        (folder / "cgroup.subtree_control").write_text("" if folder.name == ".control" else "memory")
    written: list[str] = []
    plain = Path.write_text

    def write(path: Path, text: str, *rest: str) -> int:
        written.append(f"{path.parent.name}:{text}")
        return plain(path, text)

    monkeypatch.setattr(service_manager, "visible", lambda _: unit / ".control")
    monkeypatch.setattr(Path, "write_text", write)
    turn_controllers_off()
    assert written == ["branchd-1:-memory", "branchd.service:-memory"]
