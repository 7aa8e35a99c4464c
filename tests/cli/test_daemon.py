"""`branchd check` and what `branchd run` refuses before it begins."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from branchd.cli import places
from branchd.cli.daemon import main


@pytest.fixture(autouse=True)
def _no_machine_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "CONFIG", tmp_path / "absent.toml")


def test_check_prints_what_would_be_used_and_from_where(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text('[branch]\nlabels = {zone = "a"}\nslots = 3')
    result = CliRunner().invoke(main, ["check", "--config", str(file), "--name", "web9", "--listen", ":99"])
    assert result.exit_code == 0
    assert 'name = "web9"  # --name' in result.stdout
    assert f"slots = 3  # {file}" in result.stdout
    assert 'listen = [":99"]  # --listen' in result.stdout


def test_what_check_prints_is_a_configuration_itself(tmp_path: Path) -> None:
    first = CliRunner().invoke(main, ["check", "--name", "web9", "--state", str(tmp_path)])
    (tmp_path / "again.toml").write_text(first.stdout)
    second = CliRunner().invoke(main, ["check", "--config", str(tmp_path / "again.toml")])
    assert second.exit_code == 0
    assert 'name = "web9"' in second.stdout


@pytest.mark.parametrize("command", ["check", "run"])
def test_every_fault_is_told_and_the_exit_code_is_1(command: str, tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text("[branch]\nslots = -1\n[http]\nlsiten = 3")
    result = CliRunner().invoke(main, [command, "--config", str(file), "--broker", "amqp://h"])
    assert result.exit_code == 1
    assert "the configuration has 3 faults" in result.stderr
    assert f"{file}: [branch].slots: -1 is out of range" in result.stderr
    assert "did you mean listen?" in result.stderr
    assert "--broker: this version cannot join a neighbourhood" in result.stderr


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("key", ["state", "run"])
def test_an_empty_path_is_one_fault(command: str, key: str) -> None:
    result = CliRunner().invoke(main, [command, f"--{key}", ""])
    assert result.exit_code == 1
    assert "the configuration has 1 fault\n" in result.stderr
    assert f"--{key}: is empty" in result.stderr


def test_what_is_probably_not_meant_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text('[auth]\nallow_users = ["root", "nosuchuser", "nosuchuser2"]\ndefault_user = "nosuchuser"')
    result = CliRunner().invoke(
        main, ["check", "--config", str(file)], env={"BRANCHD_SLOT": "1", "BRANCHD_TOKEN": "x", "BRANCHD_URL": "x"}
    )
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "branchd: warning: the variable BRANCHD_SLOT means nothing; did you mean BRANCHD_SLOTS?",
        "branchd: warning: [auth].default_user: there is no user nosuchuser on this machine",
        "branchd: warning: [auth].allow_users: there is no user nosuchuser on this machine",
        "branchd: warning: [auth].allow_users: there is no user nosuchuser2 on this machine",
    ]


def test_run_warns_too_and_a_state_that_cannot_be_made_is_told_with_what_to_do() -> None:
    result = CliRunner().invoke(main, ["run"], env={"BRANCHD_STATE": "/proc/x", "BRANCHD_TYPO": "1"})
    assert result.exit_code == 1
    assert "warning: the variable BRANCHD_TYPO means nothing" in result.stderr
    assert "choose a state folder where folders can be made" in result.stderr


def test_check_says_that_its_output_could_not_be_written() -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "branchd.cli.daemon", "check"], check=False, stdout=full, stderr=subprocess.PIPE
        )
    assert result.returncode == 1
    assert b"No space left on device" in result.stderr
    assert b"Traceback" not in result.stderr


def test_the_configuration_may_be_named_by_a_variable(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("[branch]\nslots = 77")
    result = CliRunner().invoke(main, ["check"], env={"BRANCHD_CONFIG": str(tmp_path / "b.toml")})
    assert "slots = 77" in result.stdout
