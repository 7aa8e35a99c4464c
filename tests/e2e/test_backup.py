"""branchd backup and restore: of a branch that runs, back into a folder, and what is refused with nothing changed."""

import asyncio
import io
import os
import shutil
import sqlite3
import stat
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from branchd.adapters.identity import marks
from branchd.branch.identity import Mark
from branchd.cli.daemon import main
from branchd.client import ApiProblem
from tests.e2e.branch import RunningBranch

APP = {"kind": "command", "command": ["sleep", "1000"], "env": {"P": {"secret": "s3cret"}}}


async def branchd(branch: RunningBranch, *arguments: str, code: int = 0) -> Result:
    def call() -> Result:
        return CliRunner().invoke(main, [arguments[0], "--state", str(branch.folder / "state"), *arguments[1:]])

    result = await asyncio.to_thread(call)
    assert result.exit_code == code, f"{result.exit_code}: {result.output} {result.exception!r}"
    return result


@pytest.fixture
async def shop(branch: RunningBranch) -> RunningBranch:
    await branch.client.put_app("shop", APP)
    await branch.client.create_instance("shop", {"name": "web"}, wait=20)
    return branch


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {one.name: archive.extractfile(one) for one in archive}
        return {name: file.read() for name, file in found.items() if file is not None}


async def test_a_running_branch_is_backed_up_whole_and_for_its_owner_alone(shop: RunningBranch) -> None:
    file = shop.folder / "b.tar.gz"

    async def writing() -> None:
        for number in range(40):
            await shop.client.put_app(f"app-{number}", APP)

    writer = asyncio.create_task(writing())
    told = await branchd(shop, "backup", str(file))
    await writer
    assert "branch" in told.stderr
    assert "the logs in" in told.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = members(file)
    assert set(content) == {"manifest.json", "branchd.db", "admin.token"}
    assert content["admin.token"] == (shop.folder / "state" / "admin.token").read_bytes()
    (shop.folder / "copy.db").write_bytes(content["branchd.db"])
    store = sqlite3.connect(shop.folder / "copy.db")
    assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert store.execute("SELECT count(*) FROM instances").fetchone() == (1,)
    store.close()
    assert not [one for one in (shop.folder / "state").iterdir() if one.name.startswith(".backup")]


async def test_no_device_and_no_pipe_is_replaced_by_a_backup_and_a_link_stays(shop: RunningBranch) -> None:
    pipe, link, file = (shop.folder / name for name in ("pipe", "link", "b.tar.gz"))
    os.mkfifo(pipe)
    assert "is no regular file" in (await branchd(shop, "backup", str(pipe), code=1)).stderr
    assert pipe.is_fifo()
    link.symlink_to(file)
    await branchd(shop, "backup", str(link))
    assert link.is_symlink()
    assert set(members(file)) == {"manifest.json", "branchd.db", "admin.token"}


async def test_what_was_lost_comes_back_and_what_runs_still_is_adopted(shop: RunningBranch) -> None:
    file = shop.folder / "b.tar.gz"
    await branchd(shop, "backup", str(file))
    pid = (await shop.ready("shop", "web"))["pid"]
    token = (shop.folder / "state" / "admin.token").read_text()
    identifier = (await shop.client.branches())["items"][0]["id"]
    await shop.client.put_app("later", APP)
    refused = await branchd(shop, "restore", str(file), "--force", code=1)
    assert "another branchd" in refused.stderr
    shop.kill()
    refused = await branchd(shop, "restore", str(file), code=1)
    assert "--force puts it aside" in refused.stderr
    told = await branchd(shop, "restore", str(file), "--force")
    assert f"still running: shop:web (pid {pid})" in told.stderr
    assert "another machine" not in told.stderr
    await shop.start()
    assert (await shop.ready("shop", "web"))["pid"] == pid
    with pytest.raises(ApiProblem):
        await shop.client.app("later")
    assert (await shop.client.branches())["items"][0]["id"] == identifier
    assert (shop.folder / "state" / "admin.token").read_text() == token
    (aside,) = (shop.folder / "state").glob("before-restore-*")
    assert stat.S_IMODE(aside.stat().st_mode) == 0o700
    before = sqlite3.connect(aside / "branchd.db")
    assert before.execute("SELECT count(*) FROM apps WHERE name = 'later'").fetchone() == (1,)
    before.close()


async def test_a_lost_folder_is_made_anew_and_is_no_copy_for_a_branch_with_a_broker(shop: RunningBranch) -> None:
    file = shop.folder / "b.tar.gz"
    file.write_bytes((await branchd(shop, "backup", "-")).stdout_bytes)
    shop.kill()
    shutil.rmtree(shop.folder / "state")
    assert "still run: shop:web (pid " in (await branchd(shop, "restore", str(file), code=1)).stderr
    assert not (shop.folder / "state" / "branchd.db").exists()
    told = await branchd(shop, "restore", str(file), "--force")
    known = {Mark.MACHINE, Mark.HARDWARE} & marks(shop.folder / "state").keys()
    assert ("another machine" in told.stderr) is not bool(known)
    await shop.start()
    await shop.ready("shop", "web")
    assert ("copied state" in shop.log) is not bool(known)


async def test_a_second_folder_beside_the_original_is_told_to_be_a_copy(shop: RunningBranch, folder: Path) -> None:
    file = shop.folder / "b.tar.gz"
    await branchd(shop, "backup", str(file))
    shop.stop()
    other = RunningBranch(folder / "other")
    assert "--new-id" in (await branchd(other, "restore", str(file))).stderr


@pytest.mark.parametrize(
    "what", ["cut", "not tar", "alien", "broken store", "newer", "other store", "empty", "doubled"]
)
async def test_a_bad_archive_changes_nothing(shop: RunningBranch, what: str) -> None:
    file = shop.folder / "b.tar.gz"
    await branchd(shop, "backup", str(file))
    shop.kill()
    content = members(file)
    match what:
        case "cut":
            file.write_bytes(file.read_bytes()[:-2000])
        case "not tar":
            file.write_bytes(b"hello")
        case "alien":
            content["../evil"] = b"x"
        case "broken store":
            page = content["branchd.db"]
            content["branchd.db"] = page[:5000] + b"\xff" * 9000 + page[14000:]
        case "newer" | "other store":
            path = shop.folder / "newer.db"
            path.write_bytes(content["branchd.db"])
            store = sqlite3.connect(path, isolation_level=None)
            store.execute("PRAGMA user_version = 999" if what == "newer" else "UPDATE meta SET value = 'x'")
            store.close()
            content["branchd.db"] = path.read_bytes()
        case "empty":
            content = {}
    if what not in {"cut", "not tar"}:
        with tarfile.open(file, "w:gz") as archive:
            for name, data in [*content.items()] * (2 if what == "doubled" else 1):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    before = {one.name: one.read_bytes() for one in (shop.folder / "state").iterdir() if one.is_file()}
    refused = await branchd(shop, "restore", str(file), "--force", code=1)
    assert ("twice" in refused.stderr) is (what == "doubled")
    after = {one.name: one.read_bytes() for one in (shop.folder / "state").iterdir() if one.is_file()}
    assert after.keys() - {"lock"} == before.keys() - {"lock"}
    assert after["branchd.db"] == before["branchd.db"]
    assert not (shop.folder / "evil").exists()
    await shop.start()
    await shop.ready("shop", "web")


async def test_nothing_is_backed_up_where_there_is_nothing_and_no_half_file_is_left(folder: Path) -> None:
    branch = RunningBranch(folder)
    assert "there is no branch" in (await branchd(branch, "backup", str(folder / "b.tar.gz"), code=1)).stderr
    assert "cannot be written" in (await branchd(branch, "backup", str(folder / "no" / "b"), code=1)).stderr
    assert "cannot be read" in (await branchd(branch, "restore", str(folder / "absent"), code=1)).stderr
    assert os.listdir(folder) in ([], ["state"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into the folders of others")
async def test_nobody_backs_up_the_folder_of_another_and_nothing_is_written_in_it(shop: RunningBranch) -> None:
    shop.stop()
    state, file = shop.folder / "state", shop.folder / "b.tar.gz"
    victim = shop.folder / "victim"
    victim.write_text("mine")
    (state / "admin.token").unlink()
    (state / "admin.token").symlink_to(victim)
    os.chown(state, 65534, 65534)
    before = sorted(state.iterdir())
    assert "belongs to uid 65534" in (await branchd(shop, "backup", str(file), code=1)).stderr
    assert sorted(state.iterdir()) == before
    assert not file.exists()
