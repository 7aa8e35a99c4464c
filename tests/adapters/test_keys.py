"""Key files: what is read, what is refused and how it is cured, and the steps by which a key is changed."""

import os
import re
import stat
from pathlib import Path

import pytest

from branchd.adapters import keys
from branchd.adapters.keys import KeyFile, Keys
from branchd.core.errors import Conflict, Fatal
from tests.adapters.small_disk import fill, small_disk

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    keys.new(tmp_path / "key")
    return tmp_path / "key"


def refusal(path: Path) -> str:
    with pytest.raises(Fatal) as caught:
        keys.read(path)
    return f"{caught.value.detail}; {caught.value.hint}"


def ids(found: Keys) -> list[str]:
    return [key.id for key in found.ring.keys]


def test_a_new_file_is_its_owners_alone_and_holds_a_key_of_its_own(tmp_path: Path) -> None:
    made = [keys.new(tmp_path / name) for name in "ab"]
    assert made[0].seals.secret != made[1].seals.secret
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert keys.read(tmp_path / "a") == made[0]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_file_that_is_there_is_never_written_over_by_new(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Conflict, match="there already"):
        keys.new(path)
    assert path.read_bytes() == before
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(Conflict, match="there already"):
        keys.new(path)


def test_a_key_is_changed_in_three_steps_and_no_step_can_be_left_out(path: Path) -> None:
    old = keys.read(path).seals
    with pytest.raises(Conflict, match="no former key"):
        keys.retire(path)

    first = keys.rotate(path)
    assert first.next is not None
    assert ids(keys.read(path)) == [old.id, first.next.id]
    with pytest.raises(Conflict, match="no former key") as early:
        keys.retire(path)
    assert "rotate" in early.value.hint

    keys.rotate(path)
    assert ids(keys.read(path)) == [first.next.id, old.id]
    with pytest.raises(Conflict, match="still accepts") as again:
        keys.rotate(path)
    assert "retire" in again.value.hint

    keys.retire(path)
    assert ids(keys.read(path)) == [first.next.id]
    assert old.secret.hex() not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_may_use_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert f"chmod 600 {path}" in refusal(path)


def test_a_credential_that_systemd_lends_is_taken(path: Path) -> None:
    path.chmod(0o440)
    os.chown(path, 0, 0)
    assert keys.read(path)
    os.chown(path, 0, NOBODY)
    assert "can be used by others" in refusal(path)


def test_a_file_of_another_user_is_refused(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)
    assert f"belongs to uid {NOBODY}" in refusal(path)
    assert f"chown {os.geteuid()}" in refusal(path)


def test_a_file_of_roots_is_taken_by_a_daemon_that_is_not_root(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert keys.read(path).seals


def test_what_is_no_regular_file_is_refused_and_keeps_nobody_waiting(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    assert "symbolic link" in refusal(link)
    before = set(os.listdir("/proc/self/fd"))
    assert "Is a directory" in refusal(path.parent)
    assert set(os.listdir("/proc/self/fd")) == before
    pipe = path.with_name("pipe")
    os.mkfifo(pipe, 0o600)
    assert "not a regular file" in refusal(pipe)
    assert "branchd key new FILE" in refusal(path.with_name("absent"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seals", "next", "one key that seals"),
        ("seals", "sells", "wrong role"),
        (r"(?s)^.*$", "", "one key that seals"),
        (r"seals (.*)\n", r"seals \1\nseals \1\n", "wrong role"),
        (r"seals (.*)\n", r"seals \1\nnext \1\n", "one other"),
        (r"seals \w+ ", "seals ", "line 3 is not"),
        (r"\w\w\n$", "\n", "line 3 is not"),
        (r"\w{32}\n$", "0" * 32 + "\n", "line 3 is damaged"),
        (r"seals \w+", "seals 00000000", "line 3 is damaged"),
        (r"\n$", "\n" + "#" * 5000, "more than"),
        (r"\n$", "\n\u00e9\n", "line 4 is not"),
    ],
)
def test_a_damaged_file_is_refused_without_a_word_of_its_key(path: Path, old: str, new: str, words: str) -> None:
    secret = keys.read(path).seals.secret.hex()
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    said = refusal(path)
    assert words in said
    assert secret[:16] not in said


def test_a_third_key_is_refused(path: Path) -> None:
    keys.rotate(path)
    other = keys.new(path.with_name("other")).seals
    with path.open("a") as file:
        file.write(f"former {other.id} {other.secret.hex()}\n")
    assert "one other" in refusal(path)


def test_what_a_command_left_that_died_is_in_nobodys_way(path: Path) -> None:
    precious = path.with_name("precious")
    precious.write_text("precious")
    path.with_name("key.new").symlink_to(precious)
    keys.rotate(path)
    assert precious.read_text() == "precious"
    assert not path.with_name("key.new").is_symlink()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        keys.new(disk / "key")
        before = (disk / "key").read_bytes()
        fill(disk)
        with pytest.raises(Fatal, match="cannot be written"):
            keys.rotate(disk / "key")
        assert (disk / "key").read_bytes() == before


def test_a_running_daemon_is_told_of_each_change_once(path: Path) -> None:
    file = KeyFile(path)
    assert file.changed() == keys.read(path).ring
    assert file.changed() is None
    keys.rotate(path)
    assert file.changed() == keys.read(path).ring
    assert file.changed() is None


def test_a_change_that_cannot_be_used_is_told_once_and_its_cure_is_seen(path: Path) -> None:
    file = KeyFile(path)
    ring = file.changed()
    path.chmod(0o644)
    with pytest.raises(Fatal, match="others than its owner"):
        file.changed()
    assert file.changed() is None
    path.chmod(0o600)
    assert file.changed() == ring
    moved = path.rename(path.with_name("moved"))
    with pytest.raises(Fatal, match="cannot be read"):
        file.changed()
    assert file.changed() is None
    moved.rename(path)
    assert file.changed() == ring
