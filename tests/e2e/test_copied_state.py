"""A copy of a state folder does not join a neighbourhood before somebody says whose it is."""

import shutil
from pathlib import Path

from branchd.adapters import keys
from branchd.cli import refusal
from tests.e2e.branch import RunningBranch


def branch(folder: Path, *arguments: str, joins: bool = True) -> RunningBranch:
    broker = ("--broker", f"filesystem://{folder.parent}/mesh") if joins else ()
    return RunningBranch(folder, *broker, *arguments, env={"BRANCHD_KEY_FILE": str(folder.parent / "key")})


async def started(one: RunningBranch) -> str:
    """The branch's id, of a daemon that could start, and was ended again."""
    try:
        await one.start()
        assert refusal.find(one.folder / "run") is None
        return str((await one.client.branches())["items"][0]["id"])
    finally:
        one.clean_up()


async def test_a_copy_is_refused_in_words_until_it_is_told_whose_it_is(folder: Path) -> None:
    original, copy = folder / "a", folder / "b"
    original.mkdir()
    keys.new(folder / "key")
    identifier = await started(branch(original))
    assert await started(branch(original)) == identifier
    shutil.copytree(original, copy, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))

    refused = branch(copy)
    assert refused.launch().wait(60) == 1
    assert "the state folder's inode" in refused.log
    found = refusal.find(copy / "run")
    assert found is not None
    assert "--same-machine" in found.cures[0]

    assert await started(branch(copy, joins=False)) == identifier
    assert branch(copy).launch().wait(60) == 1
    new = await started(branch(copy, "--new-id"))
    assert new != identifier
    assert await started(branch(copy)) == new
    assert await started(branch(original)) == identifier

    moved = folder / "c"
    shutil.copytree(original, moved, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    assert await started(branch(moved, "--same-machine")) == identifier
    assert await started(branch(moved)) == identifier
