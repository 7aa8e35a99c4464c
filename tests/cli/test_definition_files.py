"""Files that define apps, and what is wrong with them as files: told, and never raised."""

import os
import tempfile
from pathlib import Path

from branchd.cli.definition_files import read

APP = '[apps.x]\nkind = "command"\ncommand = ["sleep", "1000"]\n'


def test_a_name_that_is_not_utf8_is_a_fault_that_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "branchd.toml").write_text(APP)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / os.fsdecode(b"caf\xe9.toml")).write_text(APP.replace("x", "y"))
    found = read(tmp_path / "branchd.toml")
    assert list(found.apps) == ["x"]
    [fault] = found.faults
    assert (fault.pointer, fault.detail) == (f"{tmp_path}/conf.d/caf\\xe9.toml", "has a name that is not UTF-8")
    assert found.files[1] == fault.pointer


def test_a_folder_that_may_be_listed_and_not_entered_is_a_fault() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "branchd.toml").write_text(APP)
        (folder / "conf.d").mkdir()
        (folder / "conf.d" / "y.toml").write_text(APP.replace("x", "y"))
        (folder / "conf.d").chmod(0o444)
        myself = os.geteuid()
        if myself == 0:
            os.seteuid(65534)  # root may enter it all the same
        try:
            found = read(folder / "branchd.toml")
        finally:
            os.seteuid(myself)
            (folder / "conf.d").chmod(0o755)
    assert list(found.apps) == ["x"]
    assert [(one.pointer, one.detail) for one in found.faults] == [
        (f"{folder}/conf.d/y.toml", "cannot be read: Permission denied")
    ]
