"""branchctl apply where several branches are: what is pinned where, what is placed, and what nobody can tell."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from branchd.cli.control import main
from tests.api.neighbourhood import USER, Neighbourhood, neighbourhood

Control = Callable[..., Awaitable[Result]]


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Neighbourhood]:
    async with neighbourhood(tmp_path, "a", "b", "c") as branches:
        for member in branches.members.values():
            assert (await member.api("PUT", "/v1/apps/shop", USER)).status == 201
        yield branches


@pytest.fixture
def control(tmp_path: Path) -> Control:
    """What branchctl says that asks a."""

    async def call(*arguments: str, code: int = 0) -> Result:
        url = f"unix:{tmp_path}/a.sock"
        result = await asyncio.to_thread(CliRunner().invoke, main, ["--url", url, *arguments])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
        return result

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.toml"
    stop = '[{signal = "KILL", patience = 1}]'
    path.write_text(
        f'[apps.shop]\nkind = "command"\ncommand = ["sleep", "1000"]\nuser = "www"\nstop = {stop}\n'
        '[apps.shop.instances.nginx]\nbranch = "b"\n[apps.shop.instances.worker]\n'
    )
    return path


def rewrite(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text()))


async def test_an_instance_is_pinned_where_its_table_says_and_else_placed(
    town: Neighbourhood, control: Control, file: Path
) -> None:
    town.chosen = "c"
    done = (await control("apply", str(file))).stdout
    assert "shop:nginx: created on b" in done
    assert "shop:worker: created on c" in done
    assert "nothing to do" in (await control("apply", str(file))).stdout
    rewrite(file, lambda text: text.replace("instances.worker]", 'instances.worker]\nenv = {A = "1"}'))
    before = town["c"].service.instances.get("shop", "worker").status.pid
    assert "shop:worker: restarted" in (await control("apply", str(file))).stdout
    assert town["c"].service.instances.get("shop", "worker").status.pid != before
    rewrite(file, lambda text: text.partition("[apps.shop.instances")[0])
    await control("apply", str(file), "--prune")
    assert not any(member.service.instances.list() for member in town.members.values())


async def test_one_of_several_of_a_name_must_be_named(town: Neighbourhood, control: Control, file: Path) -> None:
    for branch in ("b", "c"):
        assert (await town[branch].api("PUT", "/v1/apps/shop/instances/worker?local=1&wait=5s", {})).status == 201
    refused = (await control("apply", str(file), code=1)).stderr
    assert "[apps.shop.instances.worker]: is on several branches: b, c" in refused
    assert not town.owners("shop", "nginx")


async def test_nothing_is_done_where_a_branch_does_not_answer(
    town: Neighbourhood, control: Control, file: Path
) -> None:
    town.silent.add("b")
    refused = (await control("apply", str(file), code=7)).stderr
    assert "b did not answer" in refused
    assert not town.owners("shop", "worker")
