"""`branchd check` and what `branchd run` refuses before it begins."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from branchd.adapters.held_signals import HELD
from branchd.cli import places, refusal
from branchd.cli.daemon import main


@pytest.fixture(autouse=True)
def _no_machine_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "CONFIG", tmp_path / "absent.toml")
    monkeypatch.setenv("BRANCHD_RUN", str(tmp_path / "run"))  # a refused start leaves word there


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
    assert "--broker: needs key_file beside it" in result.stderr
    assert "branchd key new FILE" in result.stderr


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


@pytest.mark.parametrize(
    "broker",
    ["amqp://u:pa55word@h/v", "amqp://u:pa55word@h;amqps://u:pa55word@h2/v", "amqp://u:pa55w/@:pa55@h//",
     "amqp://u:w;pa55@h", "amqp:/u:pa55word@h", ["amqp://u:pa55word@h"], "redis://:pa55word@h"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_brokers_password_is_never_told(command: str, broker: object, tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    CliRunner().invoke(main, ["key", "new", str(tmp_path / "key")])
    # Slots that are out of range, so that nothing is run.
    file.write_text(f"[mesh]\nbroker = {broker!r}\nkey_file = 'key'\n" + "[branch]\nslots = -1\n" * (command == "run"))
    result = CliRunner().invoke(main, [command, "--config", str(file)])
    assert "pa55" not in result.output
    assert "pa55" not in (tmp_path / "run" / refusal.FILE).read_text() if command == "run" else True
    if command == "check" and result.exit_code == 0:
        assert ":<hidden>@h" in result.stdout


def test_why_a_start_was_refused_is_left_in_the_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = CliRunner().invoke(main, ["run", "--state", str(tmp_path), "--broker", "amqp://h", "--name", "a/b"])
    assert result.exit_code == 1
    found = refusal.find(folder)
    assert found is not None
    assert found.detail == "the configuration has 2 faults"
    assert any("branchd key new FILE" in cure for cure in found.cures)
    assert (folder / refusal.FILE).stat().st_mode & 0o777 == 0o644
    assert folder.stat().st_mode & 0o777 == 0o755

    (tmp_path / "file").touch()
    CliRunner().invoke(main, ["run", "--state", "/proc/x"])
    found = refusal.find(folder)
    assert found is not None
    assert "/proc/x cannot be used" in found.detail
    assert found.cures == ("choose a state folder where folders can be made",)
    refusal.clear(folder)
    refusal.clear(folder)
    assert refusal.find(folder) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"at": "x", "detail": "", "cures": []}', b"\xff"])
def test_what_is_no_word_of_a_refusal_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / refusal.FILE).write_bytes(content)
    assert refusal.find(tmp_path) is None


def test_one_answer_alone_is_taken() -> None:
    result = CliRunner().invoke(main, ["run", "--new-id", "--same-machine"])
    assert result.exit_code == 2
    assert "two answers" in result.stderr


def test_a_branch_that_is_alone_loads_nothing_of_the_mesh() -> None:
    heavy = {"branchd.branch.mesh.mesh", "branchd.wire.mesh", "cryptography", "kombu", "amqp", "celery"}
    code = f"import sys, branchd.cli.daemon, branchd.cli.compose; print(*{heavy!r} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert loaded.stdout.split() == []


def test_check_tells_of_what_would_wait_for_itself(tmp_path: Path) -> None:
    file = tmp_path / "branchd.toml"
    file.write_text(
        '[apps.web]\nkind = "command"\ncommand = ["sleep"]\ndepends_on = ["db:*"]\n[apps.web.instances.a]\n'
        '[apps.db]\nkind = "command"\ncommand = ["sleep"]\n[apps.db.instances.b]\ndepends_on = ["web:a"]\n'
    )
    result = CliRunner().invoke(main, ["check", "--config", str(file)])
    assert result.exit_code == 1
    assert "[apps.web.instances.a].depends_on: web:a depends on db:b, which depends on web:a" in result.stderr
    file.write_text(file.read_text().replace("web:a", "db:c"))
    assert CliRunner().invoke(main, ["check", "--config", str(file)]).exit_code == 0


def test_a_refusal_with_a_path_that_is_not_utf8_is_left_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    state = tmp_path / "file" / os.fsdecode(b"caf\xe9")
    result = CliRunner().invoke(main, ["run", "--state", str(state)])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    left = refusal.find(tmp_path / "run")
    assert left is not None
    assert "caf\\xe9" in left.detail


def test_a_start_that_is_refused_leaves_no_signal_held() -> None:
    assert CliRunner().invoke(main, ["run"], env={"BRANCHD_STATE": "/proc/x"}).exit_code == 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & HELD
