"""Definitions put into effect through the API: what is to be done, and doing it, one restart at a time.

What is asked and shown of it stands in apply.py; here is no file and no terminal. What is made here bears the label
LABEL in its own spec, and only what bears it is ever removed. A secret that the API has cannot be compared, for it is
never shown: what has one is written again, which changes nothing where it is the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from branchd.branch.file_definitions import body, faults
from branchd.branch.world import Policies
from branchd.cli.outcome import Patience
from branchd.cli.selectors import Uncertain, at
from branchd.client import BranchdClient, Object
from branchd.core.differences import Action, Item, Thing, field_changes
from branchd.core.errors import Fault, Invalid
from branchd.core.file_apps import FileApp, FileDefinitions
from branchd.core.merge import hide, merge
from branchd.core.spec import LAUNCHED, Pool
from branchd.core.value import Value

#: the label of what was made here; its value is the name of the application
LABEL = "branchd.apply"

#: parts of `logs` whose change needs a restart
_LAUNCHED_LOGS = frozenset({"logs.stderr", "logs.to", "logs.format"})

#: hears of each thing that was done, and what came of it
Tell = Callable[[Item, str], None]


class Write(Value):
    """One app, queue or instance, as it is to be."""

    item: Item
    body: Object
    old: Object | None = None  #: as the API shows it; None: it is new
    branch: str | None = None  #: that a new instance is pinned to

    @property
    def needed(self) -> bool:
        """Else it is as it should be, as far as can be seen."""
        return bool(self.item.fields) or self.old is None


class Plan(Struct):
    apps: list[Write] = field(default_factory=list)
    queues: list[Write] = field(default_factory=list)
    instances: list[Write] = field(default_factory=list)
    gone: list[Write] = field(default_factory=list)  #: what is removed, in this order
    left: list[Item] = field(default_factory=list)  #: made here once, not defined any more, and not removed

    @property
    def items(self) -> list[Item]:
        """What is to be done."""
        writes = [*self.apps, *self.queues, *self.instances]
        return [one.item for one in writes if one.needed or one.item.restart] + [one.item for one in self.gone]


async def plan(client: BranchdClient, found: FileDefinitions, name: str, *, prune: bool = False) -> Plan:
    """Nothing is changed. Invalid with every fault of the definitions, or of what they meet; Uncertain where branches
    do not answer.

    `name`: of this application. `prune`: what an earlier one of that name made, and is not defined any more, goes.
    """
    wrong = faults(_without_branches(found), Policies("", {}, None, "", None, None), "")
    if wrong:
        raise Invalid(list(wrong), "the definitions are not valid")
    listed, everything = await client.apps(), await client.instances()
    if everything["partial"]:
        missing = ", ".join(everything["unreachable"])
        raise Uncertain("not all instances are known, so nothing is done", f"{missing} did not answer")
    apps = {app["name"]: app for app in listed["items"]}
    met, instances = list[Fault](), list[tuple[FileApp, str, Object | None]]()
    for app in found.apps.values():
        met += _meet(app, apps.get(app.name), everything["items"], instances)
    if met:
        raise Invalid(met, "the definitions meet what cannot be changed from here")
    made = Plan()
    for app in found.apps.values():
        made.apps.append(_app(app, apps.get(app.name), name))
        declared = (await client.queues(app.name))["items"] if app.name in apps else []
        made.queues += _queues(app, {queue["name"]: queue for queue in declared})
        ours = app.name in apps and _ours(apps[app.name], name)
        made.gone += [
            Write(Item(Thing.QUEUE, app.name, queue["name"], Action.DELETE), {}, queue)
            for queue in declared if ours and queue["name"] not in app.queues
        ]  # fmt: skip
    changed = {one.item.app: one.item.fields for one in made.apps}
    for app, instance, old in instances:
        affected = [one.field for one in changed[app.name]]
        made.instances.append(_instance(app, instance, old, name, affected))
    defined = [id(old) for _, _, old in instances]
    others = [one for one in everything["items"] if id(one) not in defined and not one["source"]]
    going = [one for one in others if _ours(one, name) and not one["status"]["deleting"]]
    made.gone = [*map(_removal, going), *made.gone]
    for gone in sorted(app for app, shown in apps.items() if app not in found.apps and _ours(shown, name)):
        item = Item(Thing.APP, gone, "", Action.DELETE)
        if [one for one in others if one["app"] == gone and one not in going and not _replica(one, apps[gone])]:
            made.left.append(replace(item, detail="others made instances of it"))
        else:
            made.gone.append(Write(item, {}, apps[gone]))
    if not prune:
        made.left += [replace(one.item, detail="--prune removes it") for one in made.gone]
        made.gone.clear()
    return made


async def carry_out(client: BranchdClient, made: Plan, seconds: float, tell: Tell) -> None:
    """What it raises ends it there: what was done stays done, and another plan goes on from it.

    `seconds`: for each instance to come up, or to be gone.
    """
    narrowed = []
    for one in made.apps:
        wider = merge(one.old["spec"], one.body) if one.old is not None else one.body
        if any(change.after is None for change in one.item.fields):
            narrowed.append(one)  # what goes here, instances may be given below: until then they need it
        if one.needed or _secret(one.body):
            await client.put_app(one.item.app, wider if one in narrowed else one.body)
            if one.needed:
                tell(one.item, _DONE[one.item.action])
    for one in made.queues:
        if one.needed:
            await client.put_queue(one.item.app, one.item.name, one.body)
            tell(one.item, _DONE[one.item.action])
    created = []
    for one in made.instances:
        app, name = one.item.app, one.item.name
        if one.old is None:
            asked = client if one.branch is None else client.at(one.branch)
            created.append(await asked.create_instance(app, {**one.body, "name": name}))
            tell(one.item, f"created on {created[-1]['branch']}")
        elif one.needed or _secret(one.body):
            await _put(at(client, one.old), one)
            if one.needed:
                tell(one.item, _DONE[one.item.action])
    for one in narrowed:
        await client.put_app(one.item.app, one.body)
    for instance in created:  # when all are there: one may wait for another
        await Patience(at(client, instance), seconds).up(instance)
    for one in made.instances:
        if one.old is not None:
            await _restart(at(client, one.old), one, seconds, tell)
    for one in made.gone:
        await _remove(client, one, seconds)
        tell(one.item, _DONE[one.item.action])


async def _put(client: BranchdClient, one: Write) -> None:
    """Wanted up or not as it is by now: somebody may have stopped it since the plan was made."""
    now = await client.instance(one.item.app, one.item.name)
    wanted = {"wanted": now["spec"]["wanted"]} if "wanted" in now["spec"] else {}
    body = {**_without(one.body, "wanted"), **wanted}
    await client.put_instance(one.item.app, one.item.name, body, match="*")  # one that was deleted stays so


async def _restart(client: BranchdClient, one: Write, seconds: float, tell: Tell) -> None:
    """Where its process needs it, and nobody wants it down."""
    instance = await client.instance(one.item.app, one.item.name)
    if _outdated(instance):
        patience = Patience(client, seconds)
        answer = await client.restart(one.item.app, one.item.name, wait=patience.ask)
        await patience.up(answer)
        tell(one.item, "restarted")


async def _remove(client: BranchdClient, one: Write, seconds: float) -> None:
    item = one.item
    match item.thing:
        case Thing.QUEUE:
            await client.delete_queue(item.app, item.name)
        case Thing.APP:
            assert one.old is not None
            replicas = bool(one.old["spec"].get("replicas"))
            await client.delete_app(item.app, cascade=replicas, patience=seconds if replicas else 0.0)
        case Thing.INSTANCE:
            assert one.old is not None
            asked = at(client, one.old)
            patience = Patience(asked, seconds)
            gone = await asked.delete_instance(item.app, item.name, wait=patience.ask)
            await patience.gone(one.old, gone)


# What there is, against what is defined


def _meet(
    app: FileApp, old: Object | None, everything: Sequence[Object], found: list[tuple[FileApp, str, Object | None]]
) -> Iterator[Fault]:
    """Adds its instances with what is there of each; faults where that cannot be changed from here."""
    if old is not None and old["source"]:
        yield Fault(app.place(), f"is defined in {old['source']} of the branch", "change it there")
        return
    for name, raw in app.instances.items():
        place, branch = app.place("instances", name), raw.get("branch")
        if branch is not None and not isinstance(branch, str):
            yield Fault(f"{place}.branch", "is not the name of a branch")
            continue
        same = [one for one in everything if (one["app"], one["name"]) == (app.name, name)]
        if branch is not None:
            same = [one for one in same if one["placement"] == "pinned" and one["branch"] == branch]
        if len(same) > 1:
            branches = ", ".join(one["branch"] for one in same)
            yield Fault(place, f"is on several branches: {branches}", 'say which one is meant: branch = "NAME"')
        elif same and same[0]["status"]["deleting"]:
            yield Fault(place, "is being deleted", "try again when it is gone")
        else:
            found.append((app, name, same[0] if same else None))


def _app(app: FileApp, old: Object | None, name: str) -> Write:
    after = _marked(app.spec, old, name)
    fields = field_changes({} if old is None else old["spec"], hide(after))
    return Write(Item(Thing.APP, app.name, "", Action.CHANGE if old else Action.CREATE, fields), after, old)


def _queues(app: FileApp, known: Mapping[str, Object]) -> Iterator[Write]:
    for name, given in app.queues.items():
        old = known.get(name)
        fields = field_changes({} if old is None else _declared(name, old), _declared(name, given))
        item = Item(Thing.QUEUE, app.name, name, Action.CHANGE if old else Action.CREATE, fields)
        yield Write(item, dict(given), old)


def _instance(app: FileApp, instance: str, old: Object | None, name: str, affected: Sequence[str]) -> Write:
    """`affected`: fields of the app that change."""
    given = app.instances[instance]
    after = _marked(_without(given, "branch"), old, name)
    if old is None:
        item = Item(Thing.INSTANCE, app.name, instance, Action.CREATE, field_changes({}, after))
        return Write(item, after, branch=given.get("branch"))
    wanted = {"wanted": old["spec"]["wanted"]} if "wanted" in old["spec"] else {}  # the file's is where it began
    fields = field_changes(_without(old["spec"], "wanted"), _without(hide(after), "wanted"))
    changed = [one.field for one in fields] + [one for one in affected if one.partition(".")[0] not in after]
    restart = _up(old) and (_outdated(old) or any(_launched(one, old) for one in changed))
    action = Action.CHANGE if fields or not restart else Action.RESTART
    item = Item(Thing.INSTANCE, app.name, instance, action, fields, restart)
    return Write(item, {**_without(after, "wanted"), **wanted}, old)


def _removal(instance: Object) -> Write:
    return Write(Item(Thing.INSTANCE, instance["app"], instance["name"], Action.DELETE), {}, instance)


def _marked(spec: Mapping[str, Any], old: Object | None, name: str) -> Object:
    """With the label: of what is new this one, of what was there the one that it has, if any."""
    mark = name if old is None else old["spec"].get("labels", {}).get(LABEL)
    return dict(spec) if mark is None else dict(merge(dict(spec), {"labels": {LABEL: mark}}))


def _ours(shown: Object, name: str) -> bool:
    return bool(shown["spec"].get("labels", {}).get(LABEL) == name)


def _replica(instance: Object, app: Object) -> bool:
    """Whether it is there because the app asks for it, and goes with that."""
    number = instance["name"].removeprefix(f"{app['name']}-")
    return number.isdecimal() and int(number) < (app["spec"].get("replicas") or 0)


def _up(instance: Object) -> bool:
    return instance["status"]["wanted"] == "up" and instance["status"]["pid"] is not None


def _outdated(instance: Object) -> bool:
    """Its process runs with something else than is defined."""
    conditions = {one["type"]: one["status"] for one in instance["status"]["conditions"]}
    return _up(instance) and conditions.get("ConfigCurrent") == "False"


def _launched(changed: str, instance: Object) -> bool:
    """Whether a process is started with the field; a guess, for what the API says afterwards counts."""
    if changed == "concurrency" and instance["effective"].get("pool") == Pool.PREFORK:
        return False  # such a pool is grown and shrunk
    return changed.partition(".")[0] in LAUNCHED or changed in _LAUNCHED_LOGS


def _secret(spec: Mapping[str, Any]) -> bool:
    return hide(spec) != spec


def _declared(name: str, declaration: Mapping[str, Any]) -> Object:
    """As the API takes it: what it shows has the queue's own name where nothing was said."""
    given = body(declaration)
    return {key: value for key, value in given.items() if not (key in {"exchange", "routing_key"} and value == name)}


def _without(raw: Mapping[str, Any], name: str) -> Object:
    return {key: value for key, value in raw.items() if key != name}


def _without_branches(found: FileDefinitions) -> FileDefinitions:
    apps = {
        name: replace(app, instances={one: _without(raw, "branch") for one, raw in app.instances.items()})
        for name, app in found.apps.items()
    }
    return replace(found, apps=apps)


_DONE = {Action.CREATE: "created", Action.CHANGE: "changed", Action.DELETE: "deleted"}
