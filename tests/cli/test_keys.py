"""`branchd key`: it says what to do next, and never what the key is."""

from pathlib import Path

from click.testing import CliRunner, Result

from branchd.adapters import keys
from branchd.cli.daemon import main


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["key", *arguments])


def test_each_step_names_the_next_one_and_no_key_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    said = []
    for command, then in (
        ("new", "key_file ="),
        ("rotate", "key rotate"),
        ("rotate", "key retire"),
        ("retire", "Copy"),
    ):
        result = call(command, str(file))
        assert result.exit_code == 0, result.output
        assert then in result.stdout
        assert f"Copy {file} to every branch" in result.stdout
        found = keys.read(file)
        assert all(key.id in result.stdout for key in found.ring.keys)
        said.append(result.output)
        assert not any(key.secret.hex()[:12] in "".join(said) for key in found.ring.keys)


def test_what_cannot_be_done_is_told_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "key"
    absent = call("rotate", str(file))
    assert absent.exit_code == 1
    assert "branchd key new FILE" in absent.stderr
    call("new", str(file))
    again = call("new", str(file))
    assert again.exit_code == 1
    assert "branchd key rotate" in again.stderr
    early = call("retire", str(file))
    assert early.exit_code == 1
    assert "no former key" in early.stderr


def test_the_help_tells_in_which_order() -> None:
    said = call("--help").stdout
    assert said.index("a new key is accepted") < said.index("the new key seals") < said.index("the old key is dropped")
