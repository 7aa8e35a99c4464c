"""Imported definitions at a daemon: what is there already, what differs, and the making of the rest.

Instances are pinned to the branch that is asked. An app or an instance that differs is never changed unasked.
"""

from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

from branchd.cli.importing.notes import Imported
from branchd.client import ApiProblem, BranchdClient, Object
from branchd.core.errors import BranchdError
from branchd.core.merge import hide
from branchd.core.value import Value

#: seconds for one that never ran to be deleted
_GONE = 10.0


class Plan(Value):
    branch: str
    apps: frozenset[str]  #: those that are there
    new: tuple[str, ...]  #: APP:NAME
    same: tuple[str, ...]
    different: Mapping[str, tuple[str, ...]]  #: APP or APP:NAME -> the fields that differ
    wanted: Mapping[str, str]  #: of those that are there


async def plan(client: BranchdClient, imported: Imported) -> Plan:
    """Asks, and changes nothing."""
    here = client.alone()
    branch = (await here.doctor())["branch"]
    apps: set[str] = set()
    new: list[str] = []
    same: list[str] = []
    different: dict[str, tuple[str, ...]] = {}
    wanted: dict[str, str] = {}
    for name, app in imported.apps.items():
        own, instances = parts(app)
        found = await _there(here.app(name))
        if found is not None:
            apps.add(name)
            if found["source"]:
                different[name] = (f"that {found['source']} defines it",)
            elif fields := _difference(own, found["spec"]):
                different[name] = fields
        for instance, spec in instances.items():
            title = f"{name}:{instance}"
            there = await _there(here.at(branch).instance(name, instance)) if found is not None else None
            if there is None:
                new.append(title)
                continue
            wanted[title] = there["status"]["wanted"]
            if fields := _difference(spec, there["spec"]):
                different[title] = fields
            else:
                same.append(title)
    return Plan(branch, frozenset(apps), tuple(new), tuple(same), different, wanted)


class Done(Value):
    made: tuple[str, ...]  #: APP:NAME of what was created or replaced
    refused: Mapping[str, BranchdError]  #: APP or APP:NAME -> why the branch does not take it


async def create(client: BranchdClient, imported: Imported, planned: Plan, *, partial: bool, replace: bool) -> Done:
    """Without `replace` what differs is left alone, and what its app has. New ones are made stopped.

    One that is replaced stays up or down as it is. Without `partial` one that is refused takes back all new ones.
    """
    here = client.alone()
    made: list[str] = []
    refused: dict[str, BranchdError] = {}
    new_apps: list[str] = []
    for name, app in imported.apps.items():
        own, instances = parts(app)
        if name in planned.different and not replace:
            continue
        todo = [one for one in instances if f"{name}:{one}" in planned.new]
        todo += [one for one in instances if replace and f"{name}:{one}" in planned.different]
        if not todo and name not in planned.different:
            continue
        try:
            await here.put_app(name, own)
        except ApiProblem as problem:
            refused[name] = problem
            continue
        if name not in planned.apps:
            new_apps.append(name)
        for instance in todo:
            title = f"{name}:{instance}"
            spec = {**instances[instance], "wanted": planned.wanted.get(title, "down")}
            try:
                await here.at(planned.branch).put_instance(name, instance, spec)
            except ApiProblem as problem:
                refused[title] = problem
            else:
                made.append(title)
    if refused and not partial:
        for title in [title for title in made if title in planned.new]:
            await here.at(planned.branch).delete_instance(*title.split(":"), wait=_GONE)
            made.remove(title)
        for name in new_apps:
            await here.delete_app(name)
    return Done(tuple(made), refused)


async def start(client: BranchdClient, planned: Plan, titles: Iterable[str]) -> None:
    for title in titles:
        await client.alone().at(planned.branch).start(*title.split(":"))


def parts(app: Mapping[str, Any]) -> tuple[Object, Mapping[str, Object]]:
    """Its own spec, and those of its instances."""
    return {field: value for field, value in app.items() if field not in {"instances", "queues"}}, app["instances"]


def _difference(given: Object, there: Object) -> tuple[str, ...]:
    """The fields; not what start and stop change. Secrets are not compared, for nobody is told them."""
    wanted, found = hide(given), hide(there)
    names = (wanted.keys() | found.keys()) - {"wanted"}
    return tuple(sorted(name for name in names if wanted.get(name) != found.get(name)))


async def _there(question: Awaitable[Object]) -> Object | None:
    try:
        return await question
    except ApiProblem as problem:
        if problem.status == 404:
            return None
        raise
