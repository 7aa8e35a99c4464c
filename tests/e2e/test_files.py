"""Definitions in the files of a real daemon: reread, update, refusals, and what the next daemon makes of them."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from branchd.cli.control import main
from branchd.cli.daemon import main as daemon
from branchd.client import ApiProblem
from tests.e2e.branch import RunningBranch

SHOP = """
[apps.shop]
kind = "command"
command = ["sleep", "1000"]

[apps.shop.instances.web]
[apps.shop.instances.mail]
"""


class Configured:
    """A branch with a configuration file and a conf.d."""

    def __init__(self, folder: Path, make_branch) -> None:
        self.main = folder / "branchd.toml"
        self.main.write_text('[branch]\nlog_level = "info"\n')
        (folder / "conf.d").mkdir()
        self.shop = folder / "conf.d" / "shop.toml"
        self.shop.write_text(SHOP)
        self.branch: RunningBranch = make_branch("--config", str(self.main))

    def control(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["--url", f"unix:{self.branch.socket}", *arguments])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
        return result

    async def both(self) -> dict[str, int]:
        await self.branch.ready("shop", "web")
        await self.branch.ready("shop", "mail")
        return await self.branch.pids()


@pytest.fixture
def configured(folder: Path, make_branch) -> Configured:
    return Configured(folder, make_branch)


async def in_thread(work, *arguments, **more):
    """A command has a loop of its own."""
    return await asyncio.to_thread(work, *arguments, **more)


async def test_a_changed_file_is_shown_and_applied_and_restarts_one_of_two(configured: Configured) -> None:
    await configured.branch.start()
    before = await configured.both()
    assert "nothing to do" in (await in_thread(configured.control, "reread")).stdout
    configured.shop.write_text(
        SHOP.replace("instances.web]", 'instances.web]\ndirectory = "/tmp"') + '[apps.shop.queues.q]\nexchange = "x"\n'
    )
    shown = (await in_thread(configured.control, "reread")).stdout
    assert "~ shop:web  (restarts)" in shown
    assert '    directory: not set -> "/tmp"' in shown
    assert await configured.branch.pids() == before
    done = (await in_thread(configured.control, "update")).stdout
    assert "shop:web: done, restarted" in done
    after = await configured.both()
    assert (after["shop:web"] != before["shop:web"], after["shop:mail"]) == (True, before["shop:mail"])
    document = json.loads((await in_thread(configured.control, "reread", "-o", "json")).stdout)
    assert (document["items"], document["files"]) == ([], [str(configured.main), str(configured.shop)])


async def test_the_api_refuses_to_change_what_a_file_defines_and_names_it(configured: Configured) -> None:
    branch = await configured.branch.start()
    await configured.both()
    for attempt in (
        branch.client.put_app("shop", {}),
        branch.client.put_queue("shop", "q", {}),
        branch.client.patch_instance("shop", "web", {"priority": 1}),
        branch.client.delete_instance("shop", "web"),
    ):
        with pytest.raises(ApiProblem) as caught:
            await attempt
        told = caught.value
        assert (told.status, told.type) == (409, "urn:branchd:problem:file-owned")
        assert str(configured.shop) in told.detail
    assert "file-owned" not in (await in_thread(configured.control, "stop", "shop:web")).output
    shown = (await in_thread(configured.control, "show", "shop:web", code=3)).stdout
    assert str(configured.shop) in shown


async def test_a_stop_survives_the_daemon_and_a_removal_is_noticed_by_the_next_one(configured: Configured) -> None:
    branch = await configured.branch.start()
    before = await configured.both()
    await branch.client.stop("shop", "web", wait=20)
    branch.kill()
    configured.shop.write_text(SHOP.replace("1000", "2000"))
    await branch.start()
    assert (await branch.state("shop", "web", "STOPPED"))["wanted"] == "down"
    status = await branch.ready("shop", "mail")
    assert status["pid"] == before["shop:mail"]
    assert {one["type"]: one["status"] for one in status["conditions"]}["ConfigCurrent"] == "False"
    assert "! shop:mail" in (await in_thread(configured.control, "reread")).stdout
    branch.kill()
    configured.shop.unlink()
    await branch.start()
    assert (await branch.ready("shop", "mail"))["pid"] == before["shop:mail"]
    assert "left as it is: app shop, " in (await in_thread(configured.control, "doctor")).stdout
    await in_thread(configured.control, "update")
    assert not (await branch.client.apps())["items"]
    assert not (await branch.client.instances())["items"]


async def test_a_faulty_file_keeps_nobody_from_starting_and_is_told_everywhere(configured: Configured) -> None:
    branch = await configured.branch.start()
    before = await configured.both()
    branch.kill()
    configured.shop.write_text(SHOP + "\n[apps.x]\nuser = 3\n[http]\n")
    configured.main.write_text("[apps.shop]\n")
    await branch.start()
    assert await configured.both() == before
    refused = (await in_thread(configured.control, "reread", code=1)).stderr
    for told in (".user: ", "[http]: is no definition", f"is defined in {configured.main} too"):
        assert told in refused
    assert "definition files" in (await in_thread(configured.control, "doctor", code=1)).stdout
    assert "definitions in files not applied" in branch.log
    assert "warning: definition files: nothing of them" in (await in_thread(configured.control, "reload")).stderr
    (await in_thread(configured.control, "update", code=1))
    checked = await in_thread(CliRunner().invoke, daemon, ["check", "--config", str(configured.main)])
    assert checked.exit_code == 1
    for told in ("[http]: is no definition", f"is defined in {configured.main} too"):
        assert told in checked.stderr
    configured.main.write_text("[branch]\nslots = -1\n")
    checked = await in_thread(CliRunner().invoke, daemon, ["check", "--config", str(configured.main)])
    assert "[branch].slots" in checked.stderr
    assert "[apps.x].user" in checked.stderr


async def test_a_folder_that_cannot_be_read_is_not_an_empty_one(configured: Configured, folder: Path) -> None:
    branch = await configured.branch.start()
    before = await configured.both()
    configured.shop.parent.rename(folder / "elsewhere")
    (folder / "conf.d").touch()  # as root every folder can be read
    assert "conf.d: cannot be read" in (await in_thread(configured.control, "update", code=1)).stderr
    branch.kill()
    await branch.start()
    assert await configured.both() == before


@pytest.mark.parametrize("kind", ["pipe", "device", "deep", "name"])
async def test_a_file_that_cannot_be_taken_as_one_holds_nobody_up(
    configured: Configured, folder: Path, kind: str
) -> None:
    strange = folder / "conf.d" / "strange.toml"
    match kind:
        case "pipe":
            os.mkfifo(strange)
        case "device":
            strange.symlink_to("/dev/zero")
        case "deep":
            strange.write_text("x = " + "[" * 20_000)
        case "name":
            strange = folder / "conf.d" / os.fsdecode(b"caf\xe9.toml")
            strange.write_text(SHOP.replace("shop", "cafe"))
    branch = await configured.branch.start()
    refused = (await in_thread(configured.control, "reread", code=1)).stderr
    assert f"{str(strange).encode(errors='surrogateescape').decode(errors='backslashreplace')}: " in refused
    assert any(why in refused for why in ("is not a regular file", "is nested too deeply", "is not UTF-8"))
    strange.unlink()
    (folder / "conf.d" / ".#shop.toml").symlink_to("nobody@here")  # an editor's
    await in_thread(configured.control, "update")
    assert await configured.both()
    assert branch.running


async def test_a_secret_comes_from_a_file_and_a_missing_one_is_told(configured: Configured, folder: Path) -> None:
    configured.shop.write_text(
        f'[apps.shop]\nkind = "command"\ncommand = ["sleep", "1000"]\nenv_file = "{folder}/env"\n'
        "restart = {max_restarts = 0}\n[apps.shop.instances.web]\n"
    )
    branch = await configured.branch.start()
    status = await branch.state("shop", "web", "FATAL")
    assert f"{folder}/env cannot be read" in status["reason"]
    (folder / "env").write_text("# a comment\nPASSWORD='s3cret word'\n")
    await branch.client.start("shop", "web", wait=20)
    pid = (await branch.ready("shop", "web"))["pid"]
    environment = await in_thread(Path(f"/proc/{pid}/environ").read_bytes)
    assert b"PASSWORD=s3cret word" in environment.split(b"\0")
    assert "s3cret" not in json.dumps(await branch.client.instance("shop", "web"))
    assert "s3cret" not in branch.log
