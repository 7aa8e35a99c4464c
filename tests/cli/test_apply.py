"""branchctl apply against a real daemon: the difference first, done once, and nothing of others ever removed."""

import asyncio
import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from branchd.cli.applying import carry_out, plan
from branchd.cli.control import main
from branchd.client import BranchdClient
from branchd.core.file_apps import FileApp, FileDefinitions
from tests.running_daemon import RunningDaemon
from tests.waiting import until_sync

Control = Callable[..., Result]

SHOP = """
[apps.shop]
kind = "command"
command = ["sleep", "1000"]
env = {STAGE = "prod", PASSWORD = {secret = "s3cret"}}
stop = [{signal = "TERM", patience = 5.0}]

[apps.shop.instances.web]
[apps.shop.instances.mail]
wanted = "down"

[apps.shop.queues.slow]
routing_key = "s"
"""


@pytest.fixture
def control(daemon: RunningDaemon) -> Iterator[Control]:
    def call(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(main, ["--url", daemon.url, *arguments], input=stdin)
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
        return result

    yield call
    for app in call("app", "ls", "-o", "name").stdout.split():
        call("app", "rm", app, "--cascade")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.toml"
    path.write_text(SHOP)
    return path


def pids(control: Control) -> dict[str, int]:
    items = json.loads(control("ps", "-o", "json").stdout)["items"]
    return {f"{one['app']}:{one['name']}": one["status"]["pid"] for one in items if one["status"]["pid"]}


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_it_shows_what_it_would_do_and_a_second_time_there_is_nothing_to_do(control: Control, file: Path) -> None:
    shown = control("apply", str(file), "--dry-run", code=8).stdout
    assert "+ app shop" in shown
    assert "+ shop:web" in shown
    assert '"PASSWORD": {"secret": "<hidden>"}' in shown
    assert "s3cret" not in shown
    assert not control("app", "ls", "-o", "name").stdout
    done = control("apply", str(file)).stdout
    assert "shop:web: created on here" in done
    assert pids(control).keys() == {"shop:web"}
    before = pids(control)
    assert control("apply", str(file)).stdout == "nothing to do: all is as it is defined\n"
    control("apply", str(file), "--diff")
    assert pids(control) == before


def test_fields_are_told_one_by_one_and_only_what_needs_it_is_restarted(control: Control, file: Path) -> None:
    control("apply", str(file))
    control("start", "shop:mail")
    before = pids(control)
    edit(file, "[apps.shop.instances.web]", '[apps.shop.instances.web]\ndirectory = "/tmp"\npriority = 5')
    edit(file, 'routing_key = "s"', 'routing_key = "t"')
    shown = control("apply", str(file)).stdout
    assert "~ shop:web  (restarts)" in shown
    assert '    directory: not set -> "/tmp"' in shown
    assert '    routing_key: "s" -> "t"' in shown
    assert "shop:web: restarted" in shown
    after = pids(control)
    assert after["shop:web"] != before["shop:web"]
    assert after["shop:mail"] == before["shop:mail"]


def test_a_changed_app_restarts_the_instances_that_are_defined_with_it_and_no_other(
    control: Control, file: Path
) -> None:
    control("apply", str(file))
    control("create", "shop", "extra")
    before = pids(control)
    edit(file, '"prod"', '"test"')
    assert "! shop:web" in control("apply", str(file), "--dry-run", code=8).stdout
    control("apply", str(file))
    after = pids(control)
    assert (after["shop:web"] != before["shop:web"], after["shop:extra"]) == (True, before["shop:extra"])


def test_another_secret_is_written_though_it_cannot_be_compared(control: Control, file: Path) -> None:
    control("apply", str(file))
    before = pids(control)
    edit(file, "s3cret", "0ther")
    shown = control("apply", str(file), "--dry-run").stdout
    assert "0ther" not in shown
    control("app", "set", "shop", "--json", '{"priority": 3}')
    assert "0ther" not in control("apply", str(file)).stdout
    assert pids(control)["shop:web"] != before["shop:web"]
    environment = Path(f"/proc/{pids(control)['shop:web']}/environ").read_bytes()
    assert b"PASSWORD=0ther" in environment


def test_what_is_wanted_is_the_operators(control: Control, file: Path) -> None:
    control("apply", str(file))
    control("stop", "shop:web")
    assert "nothing to do" in control("apply", str(file)).stdout
    edit(file, "[apps.shop.instances.web]", "[apps.shop.instances.web]\npriority = 5")
    control("apply", str(file))
    assert not pids(control)


def test_pruning_removes_what_an_earlier_one_made_and_nothing_else(control: Control, file: Path) -> None:
    control("apply", str(file))
    control("create", "shop", "byhand")
    control("app", "set", "other", "--", "sleep", "1000")
    edit(file, '[apps.shop.instances.mail]\nwanted = "down"', "")
    edit(file, '[apps.shop.queues.slow]\nrouting_key = "s"', "")
    left = control("apply", str(file)).stdout
    assert "left: shop:mail (--prune removes it)" in left
    assert "left: queue slow of shop (--prune removes it)" in left
    assert "shop:mail" in control("ps", "-o", "name").stdout
    assert "- shop:mail" in control("apply", str(file), "--prune", "--diff", code=8).stdout
    control("apply", str(file), "--prune", "--name", "another")
    assert "shop:mail" in control("ps", "-o", "name").stdout
    control("apply", str(file), "--prune")
    assert control("ps", "-o", "name").stdout.split() == ["shop:byhand", "shop:web"]
    assert not control("queue", "ls", "shop", "-o", "name").stdout
    file.write_text("[apps]\n")
    assert "left: app shop (others made instances of it)" in control("apply", str(file), "--prune").stdout
    assert control("ps", "-o", "name").stdout.split() == ["shop:byhand"]
    control("rm", "shop:byhand")
    control("apply", str(file), "--prune")
    assert control("app", "ls", "-o", "name").stdout.split() == ["other"]


def test_what_was_there_before_is_changed_and_never_pruned(control: Control, file: Path) -> None:
    control("app", "set", "shop", "--", "sleep", "999")
    control("create", "shop", "web")
    control("apply", str(file))
    file.write_text("[apps]\n")
    control("apply", str(file), "--prune")
    assert control("ps", "-o", "name").stdout.split() == ["shop:web"]


def test_a_field_moves_from_the_app_to_its_instances_and_back(control: Control, file: Path) -> None:
    control("apply", str(file))
    moved = SHOP.replace('command = ["sleep", "1000"]\n', "")
    for name in ("web", "mail"):
        moved = moved.replace(f"instances.{name}]\n", f'instances.{name}]\ncommand = ["sleep", "1000"]\n')
    file.write_text(moved)
    before = pids(control)
    control("apply", str(file))
    assert "command" not in json.loads(control("app", "show", "shop", "-o", "json").stdout)["spec"]
    file.write_text(SHOP)
    control("apply", str(file))
    assert "nothing to do" in control("apply", str(file)).stdout
    assert pids(control) == before


def test_the_first_failure_ends_it_and_the_same_again_goes_on(control: Control, file: Path) -> None:
    edit(
        file,
        'command = ["sleep", "1000"]',
        'command = ["/bin/false"]\nrestart = {max_restarts = 0}\nready = {after = 1}',
    )
    failed = control("apply", str(file), code=1)
    assert "FATAL" in failed.stderr
    assert "done" not in failed.stdout
    edit(file, "/bin/false", "/bin/sleep")
    edit(file, '"/bin/sleep"]', '"/bin/sleep", "1000"]')
    control("apply", str(file))
    assert "nothing to do" in control("apply", str(file)).stdout


def test_every_fault_is_told_and_nothing_is_done(control: Control, file: Path, tmp_path: Path) -> None:
    edit(file, 'wanted = "down"', 'wanted = "left"\nnonsense = 1')
    (tmp_path / "zz.toml").write_text('[apps.shop]\n[branch]\nname = "x"\n[apps.x]\npool = 1979-05-27')
    refused = control("apply", str(tmp_path), code=1).stderr
    for told in (
        "[apps.shop.instances.mail].wanted", "[apps.shop.instances.mail].nonsense", "[apps.shop]: is defined in",
        "[branch]: is no definition", "[apps.x]: has a date in it",
    ):  # fmt: skip
        assert told in refused
    assert not control("app", "ls", "-o", "name").stdout


def test_definitions_come_from_the_standard_input_and_from_a_folder(
    control: Control, file: Path, tmp_path: Path
) -> None:
    control("apply", "-", stdin=SHOP)
    assert "nothing to do" in control("apply", str(tmp_path), "--name", "stdin").stdout
    control("apply", str(tmp_path / "absent.toml"), code=2)


def test_programs_get_json(control: Control, file: Path) -> None:
    document = json.loads(control("apply", str(file), "-o", "json").stdout)
    assert document["applied"] is True
    assert {(one["thing"], one["action"]) for one in document["items"]} == {
        ("app", "create"), ("instance", "create"), ("queue", "create"),
    }  # fmt: skip
    assert json.loads(control("apply", str(file), "-o", "json").stdout)["items"] == []


def test_an_app_with_replicas_is_pruned_with_them(control: Control, file: Path) -> None:
    file.write_text('[apps.many]\nkind = "command"\ncommand = ["sleep", "1000"]\nreplicas = 2\n')
    control("apply", str(file))
    until_sync(lambda: len(pids(control)) == 2, 60, "two replicas to run")
    file.write_text("[apps]\n")
    assert "app many: deleted" in control("apply", str(file), "--prune").stdout
    assert not pids(control)


async def test_a_stop_since_the_plan_was_made_stays(control: Control, file: Path, daemon: RunningDaemon) -> None:
    found = tomllib.loads(SHOP)["apps"]["shop"]
    instances, queues = found.pop("instances"), found.pop("queues")
    instances["web"] |= {"labels": {"tier": "front"}}

    def applied() -> FileDefinitions:
        return FileDefinitions({"shop": FileApp("shop", str(file), found, instances, queues)}, (), (str(file),))

    async def by_hand(*actions: str) -> None:
        for action in actions:
            await asyncio.to_thread(control, action, "shop:web")

    await asyncio.to_thread(control, "apply", str(file), "--yes")
    await by_hand("stop", "start")
    client = BranchdClient(daemon.url)
    made = await plan(client, applied(), "shop")
    await by_hand("stop")
    await carry_out(client, made, 30, lambda _item, _what: None)
    web = await client.instance("shop", "web")
    assert web["spec"]["labels"]["tier"] == "front"
    assert (web["spec"]["wanted"], web["status"]["pid"]) == ("down", None)
