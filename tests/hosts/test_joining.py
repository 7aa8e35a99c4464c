"""Hosts that ran on their own join a neighbourhood, and leave it: what was declared for one of them minds neither."""

import asyncio
import functools

import pytest

from branchd.client import ApiProblem
from tests.hosts.conftest import Maker
from tests.hosts.neighbourhood import APP, HostBranch, Neighbourhood
from tests.waiting import until


async def restarted(hosts: Neighbourhood, mesh: tuple[str, ...]) -> None:
    for branch in hosts.branches.values():
        branch.kill()
        branch.mesh = mesh
    await asyncio.gather(*(branch.start() for branch in hosts.branches.values()))


def declared(instance: dict[str, object]) -> dict[str, object]:
    """What joining must leave as it is."""
    return {key: instance[key] for key in ("branch", "placement", "generation", "effective")}


async def test_what_hosts_ran_on_their_own_is_neither_stopped_nor_changed_by_joining_or_leaving(
    neighbourhood: Maker,
) -> None:
    hosts = neighbourhood({"left": 1, "middle": 1, "right": 1})
    every = list(hosts.branches.values())
    mesh = every[0].mesh
    for branch in every:
        branch.mesh = ()
    await asyncio.gather(*(branch.start() for branch in every))
    pids, before = {}, {}
    for branch in every:
        await branch.client.put_app(APP, {"kind": "command", "labels": {"of": branch.name}})
        for name in ("web",) if branch is every[2] else ("web", "job"):
            command = hosts.programs.waiting(f"{branch.name}-{name}")
            before[branch.name, name] = declared(
                await branch.client.create_instance(APP, {"name": name, "command": command}, wait=30)
            )
            pids[f"{branch.name}-{name}"] = [hosts.programs.only(f"{branch.name}-{name}")]

    await restarted(hosts, mesh)

    async def known(branch: HostBranch) -> bool:
        return len(await branch.roster()) == 3 and not (await branch.client.instances())["partial"]

    for branch in every:
        await until(functools.partial(known, branch), 60, "all to know each other")
        told = {(item["branch"], item["name"]): declared(item) for item in (await branch.client.instances())["items"]}
        assert told == before
        for other in every:
            assert (await branch.client.at(other.name).instance(APP, "web"))["branch"] == other.name
    assert hosts.programs.running() == pids
    with pytest.raises(ApiProblem) as several:
        await every[2].client.stop(APP, "job")
    assert several.value.status == 409
    assert all(f"{other.name}/{APP}:job" in several.value.hint for other in every[:2]), "say which"
    # They have more than they have room for, which ends none of them and lets no other in.
    with pytest.raises(ApiProblem) as refused:
        await every[0].client.create_instance(APP, {"name": "placed", "command": ["true"]})
    assert refused.value.status == 409

    await restarted(hosts, ())
    for branch in every:
        told = {(item["branch"], item["name"]): declared(item) for item in (await branch.client.instances())["items"]}
        assert told == {key: value for key, value in before.items() if key[0] == branch.name}
    assert hosts.programs.running() == pids
