"""branchctl explain: why an instance is where it is, and how it is, in words."""

from contextlib import aclosing

import click

from branchd.cli.exits import Exit
from branchd.cli.options import patterns
from branchd.cli.outcome import state
from branchd.cli.output import as_json, neutral
from branchd.cli.selectors import Ambiguous, Pattern, Selection, find
from branchd.cli.session import Session, run
from branchd.client import ApiProblem, BranchdClient, Object
from branchd.core.errors import BranchdError, NotFound

#: events of the instance that are told; all that the branch keeps are looked through
EVENTS = 10
KEPT = 10_000


@click.command()
@click.argument("selector")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="How to show it.")  # fmt: skip
@click.pass_obj
def explain(session: Session, selector: str, form: str) -> Exit:
    """Say why an instance is where it is, or why it is nowhere: which branches were asked, and what they answered.

    And how it is, and what happened to it last.
    """
    [pattern] = patterns((selector,))
    found = run(_find(session.client(), pattern))
    if form == "json":
        click.echo(as_json(found, indent=2))
        return Exit.OK
    for line in _lines(found):
        click.echo(neutral(line))
    return Exit.OK


async def _find(client: BranchdClient, pattern: Pattern) -> Object:
    """{app, name, placement, instance, events}; of the middle two at least one is not None. NotFound."""
    instance, app, name = None, pattern.app, pattern.name
    missing: BranchdError = NotFound(f"there is no {pattern.text}")
    try:
        instances = (await find(client, Selection((pattern,)))).instances
        if len(instances) > 1:
            raise Ambiguous(f"{pattern.text} is {len(instances)} instances", "say which one")
        [instance] = instances
        app, name = instance["app"], instance["name"]
    except NotFound as error:  # it may have found no place
        missing = error
        if pattern.bare or not pattern.exact:
            raise
    try:
        placement = await client.explain(app, name)
    except ApiProblem as problem:
        if problem.status != 404:
            raise
        placement = None
    if instance is None and placement is None:
        raise missing
    pinned = instance is not None and instance["placement"] == "pinned"
    return {
        "app": app,
        "name": name,
        "placement": None if pinned else placement,
        "instance": instance,
        "events": [] if instance is None else await _events(client.at(instance["branch"]), app, name),
    }


async def _events(client: BranchdClient, app: str, name: str) -> list[Object]:
    async with aclosing(client.events(tail=KEPT, follow=False, app=app, instance=name)) as stream:
        return [event async for event in stream if event["type"] != "request"][-EVENTS:]


def _lines(found: Object) -> list[str]:
    lines = [f"{found['app']}:{found['name']}", "  Placement"]
    instance, placement = found["instance"], found["placement"]
    if placement is not None:
        lines += [f"    {line}" for line in _placed(placement)]
    elif instance["placement"] == "pinned":
        lines.append(f"    pinned: it was declared for branch {instance['branch']}, and is for no other")
    else:
        lines.append("    no branch remembers how it was placed: each keeps its last thousand while its daemon runs")
    if instance is None:
        return [*lines, "  Now", "    no branch has it"]
    lines += ["  Now", *(f"    {line}" for line in _now(instance))]
    if found["events"]:
        lines += ["  Lately", *(f"    {_event(event)}" for event in found["events"])]
    return lines


def _placed(placement: Object) -> list[str]:
    names = [f"branch {asked['branch']}" for asked in placement["asked"]]
    width = max(map(len, names), default=0)
    return [
        f"branch {placement['by']} asked for room at {placement['at']}:",
        *(f"  {name.ljust(width)}  {_answer(one)}" for name, one in zip(names, placement["asked"], strict=True)),
        *(f"offered to branch {offer['branch']}: {offer['result']}" for offer in placement["offers"]),
        f"outcome: {placement['outcome']}",
    ]


def _answer(asked: Object) -> str:
    if asked["slots"] is None:
        return asked["answer"] or "did not answer in time"
    figures = f"{asked['reserved']} of {asked['slots']} slots taken, {asked['siblings']} of the app there"
    figures += "" if asked["load"] is None else f", load {asked['load']:.2f} a core"
    return f"{figures}: {'would not take it: ' + asked['answer'] if asked['answer'] else 'would take it'}"


def _now(instance: Object) -> list[str]:
    status = instance["status"]
    lines = [f"{state(instance)}, on branch {instance['branch']} ({instance['placement']})"]
    lines.append("it is being deleted" if status["deleting"] else f"it is wanted {status['wanted']}")
    if status["restarts"]:
        lines.append(f"it was restarted {status['restarts']} times since it was last started on request")
    if status["next_try_at"]:
        lines.append(f"it is started again at {status['next_try_at']}")
    conditions = status["conditions"]
    return [*lines, *(f"{one['type']}: {one['status']} {one['reason']}".rstrip() for one in conditions)]


def _event(event: Object) -> str:
    data = event["data"]
    if event["type"] == "instance.state":
        words = f"{data['from']} -> {data['to']}" + (f": {data['reason']}" if data["reason"] else "")
        return f"{event['at']}  {words}" + (f" ({data['exit']})" if data.get("exit") else "")
    facts = " ".join(f"{name}={value}" for name, value in data.items() if value not in (None, "", []))
    return f"{event['at']}  {event['type']} {facts}".rstrip()
