"""`branchd check` and what `branchd run` refuses before it begins."""

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


def test_the_configuration_may_be_named_by_a_variable(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("[branch]\nslots = 77")
    result = CliRunner().invoke(main, ["check"], env={"BRANCHD_CONFIG": str(tmp_path / "b.toml")})
    assert "slots = 77" in result.stdout
