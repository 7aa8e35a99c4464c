"""Environment files: read anew each time, from a path or from the credentials; refusals say the file and no value."""

import os
from pathlib import Path

import pytest

from branchd.adapters.environment_file import LONGEST, read
from branchd.core.errors import SpawnFailed


def refused(path: Path | str, credentials: str | None = None) -> str:
    with pytest.raises(SpawnFailed) as caught:
        read(str(path), credentials)
    assert not caught.value.ours
    assert "s3cret" not in f"{caught.value.detail} {caught.value.hint}"
    return caught.value.detail


def test_it_says_what_stands_in_it_now(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("A=1\n")
    assert read(str(file), None) == {"A": "1"}
    file.write_text("A=2\n")
    assert read(str(file), None) == {"A": "2"}


def test_a_name_is_that_of_a_credential(tmp_path: Path) -> None:
    (tmp_path / "shop.env").write_text("A=1\n")
    assert read("shop.env", str(tmp_path)) == {"A": "1"}
    assert "the daemon has none" in refused("shop.env")


def test_what_cannot_be_read_is_told_with_the_path_and_no_value(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent") == f"env_file {tmp_path}/absent cannot be read: No such file or directory"
    assert "cannot be read" in refused(tmp_path) or "regular" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")
    file = tmp_path / "env"
    for content, told in (
        (b"A=s3cret\nB s3cret\n", "line 2"),
        (b"A=\xff", "not UTF-8"),
        (b"A=s3cret\0", "A has a NUL"),
        (b"BRANCHD_SPAWN=s3cret", "BRANCHD_SPAWN"),
        (b"A=" + b"x" * LONGEST, "longer than"),
    ):
        file.write_bytes(content)
        assert told in refused(file)
