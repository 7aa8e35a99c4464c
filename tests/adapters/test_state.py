"""The state folder, with a real second process, real other users and a really full disk."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from branchd.adapters.state import StateFolder
from branchd.core.errors import Fatal
from tests.adapters.small_disk import fill, small_disk

#: of somebody else
NOBODY = 65534

HOLDER = """
import sys
from pathlib import Path
from branchd.adapters.state import StateFolder
StateFolder(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def acquired(path: Path) -> Iterator[StateFolder]:
    state = StateFolder(path)
    state.acquire()
    try:
        yield state
    finally:
        state.release()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def refusal(path: Path) -> Fatal:
    """What acquire() says; it must leave nothing open."""
    before = descriptors()
    with pytest.raises(Fatal) as caught:
        StateFolder(path).acquire()
    assert descriptors() == before
    return caught.value


def token_refusal(path: Path) -> str:
    with acquired(path) as state, pytest.raises(Fatal) as caught:
        state.admin_token()
    return f"{caught.value.detail} {caught.value.hint}"


def test_the_folder_is_made_with_its_parents_for_its_owner_alone(tmp_path: Path) -> None:
    before = descriptors()
    path = tmp_path / "lib" / "branchd"
    with acquired(path):
        assert mode(path) == 0o700
        assert mode(path / "lock") == 0o600
    assert descriptors() == before


def test_an_open_folder_of_ours_is_tightened(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(0o2775)
    with acquired(path):
        assert mode(path) == 0o700


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    assert f"belongs to uid {NOBODY}" in refusal(path).detail
    assert list(path.iterdir()) == []


def test_the_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").symlink_to("elsewhere")
    with acquired(tmp_path / "state"):
        assert (tmp_path / "elsewhere" / "lock").is_file()


def test_a_second_daemon_is_told_the_pid_of_the_first_and_may_follow_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            error = refusal(tmp_path)
        finally:
            holder.kill()
    assert f"pid {holder.pid}" in error.detail
    assert str(tmp_path) in error.detail
    assert "stop that one" in error.hint
    with acquired(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    with acquired(tmp_path):
        pass


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.acquire()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        state.release()
        with acquired(tmp_path):
            pass


def test_a_lock_that_is_a_link_is_refused_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    state = tmp_path / "state"
    state.mkdir()
    (state / "lock").symlink_to(target)
    error = refusal(state)
    assert "lock" in error.detail
    assert "symbolic link" in error.hint
    assert target.read_text() == "precious"


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert "a folder" in refusal(tmp_path / "state").hint
    assert "a folder" in refusal(tmp_path / "state" / "below").hint


def test_a_full_disk_is_put_into_words(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        filler = fill(disk)
        assert "free space" in refusal(disk).hint
        filler.unlink()
        with acquired(disk) as state:
            filler = fill(disk)
            with pytest.raises(Fatal, match="cannot be used") as caught:
                state.admin_token()
            assert "free space" in caught.value.hint
            filler.unlink()
            # What the failed attempt left is not taken for a token.
            assert len(bytes.fromhex(state.admin_token())) == 32


def test_the_token_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    with acquired(tmp_path) as state:
        token = state.admin_token()
        assert len(bytes.fromhex(token)) == 32
        assert (tmp_path / "admin.token").read_text() == f"{token}\n"
        assert mode(tmp_path / "admin.token") == 0o600
        assert {file.name for file in tmp_path.iterdir()} == {"admin.token", "lock"}
        (tmp_path / "admin.token").chmod(0o644)
    with acquired(tmp_path) as state:
        assert state.admin_token() == token
        assert mode(tmp_path / "admin.token") == 0o600


def test_a_token_of_ones_own_is_taken(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("  my-own-token\n")
    with acquired(tmp_path) as state:
        assert state.admin_token() == "my-own-token"


@pytest.mark.parametrize("content", [b"", b" \n", b"two words\n", "gehe\u00ed\u1e63".encode()])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "admin.token").write_bytes(content)
    assert "admin.token holds no token remove it" in token_refusal(tmp_path)


def test_a_token_file_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("planted\n")
    os.chown(tmp_path / "admin.token", NOBODY, NOBODY)
    assert f"belongs to uid {NOBODY}" in token_refusal(tmp_path)


@pytest.mark.parametrize("name", ["admin.token", "admin.token.new"])
def test_a_link_in_the_tokens_place_is_never_followed(tmp_path: Path, name: str) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    state = tmp_path / "state"
    state.mkdir()
    (state / name).symlink_to(target)
    if name == "admin.token":
        assert "symbolic link" in token_refusal(state)
    else:
        with acquired(state) as folder:
            assert folder.admin_token() != "precious"
    assert target.read_text() == "precious"


def test_a_pipe_in_the_tokens_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "admin.token")
    assert "not a regular file" in token_refusal(tmp_path)
