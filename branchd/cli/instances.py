"""branchctl ps, show, start, stop, restart, signal, rm: what there is, and whether it runs."""

from collections.abc import Awaitable, Callable
from typing import Any

import click

from branchd.cli.batch import each
from branchd.cli.exits import Exit
from branchd.cli.operations import follow
from branchd.cli.options import output, selecting, waiting
from branchd.cli.outcome import Patience, state
from branchd.cli.output import Column, age, as_json, missing, neutral, show
from branchd.cli.selectors import Found, Selection, at, find, label
from branchd.cli.session import Session, run
from branchd.client import BranchdClient, Object

#: as supervisorctl's status has it: not running, and nobody is about to start it
NOT_RUNNING = frozenset({"STOPPED", "EXITED", "FATAL"})


def _generation(instance: Object) -> str:
    """With the one that runs, where it is another."""
    running, now = instance["status"]["observed_generation"], instance["generation"]
    return str(now) if running == now or not instance["status"]["pid"] else f"{now} (runs {running})"


COLUMNS = (
    Column("NAME", label),
    Column("BRANCH", lambda one: one["branch"]),
    Column("STATE", lambda one: one["status"]["state"]),
    Column("PID", lambda one: one["status"]["pid"]),
    Column("UP", lambda one: age(one["status"]["started_at"]) if one["status"]["pid"] else None),
    Column("RESTARTS", lambda one: one["status"]["restarts"]),
    Column("KIND", lambda one: one["kind"], wide=True),
    Column("WANTED", lambda one: one["status"]["wanted"], wide=True),
    Column("GENERATION", _generation, wide=True),
    Column("QUEUES", lambda one: ",".join(one["effective"].get("queues") or ()), wide=True),
    Column(
        "LABELS", lambda one: ",".join(f"{k}={v}" for k, v in one["effective"].get("labels", {}).items()), wide=True
    ),
    Column("REASON", lambda one: one["status"]["reason"]),
)


@click.command()
@selecting(required=False)
@output
@click.pass_obj
def ps(session: Session, selection: Selection, form: str) -> int:
    """List instances, all or those that are selected.

    With a SELECTOR the exit code is 3 when one of them is STOPPED, EXITED or FATAL.
    """

    found = run(find(session.client(), selection, statuses=form == "table"))
    show(form, found.document, COLUMNS, found.label)
    missing(found.unreachable)
    return _exit(found, bool(selection.patterns))


@click.command("show")
@selecting(required=True)
@output
@click.pass_obj
def show_command(session: Session, selection: Selection, form: str) -> int:
    """Show all of an instance: how it is, what was asked for, how its process ended last.

    The exit code is 3 when it is STOPPED, EXITED or FATAL.
    """
    found = run(find(session.client(), selection))
    if form in {"table", "wide"}:
        click.echo("\n\n".join("\n".join(_description(instance)) for instance in found.instances))
    elif len(found.instances) == 1:
        show(form, found.instances[0], COLUMNS, label)
    else:
        show(form, found.document, COLUMNS, found.label)
    missing(found.unreachable)
    return _exit(found, named=True)


@click.command()
@selecting(required=True)
@waiting()
@output
@click.pass_obj
def start(session: Session, selection: Selection, wait: bool, timeout: float, form: str) -> int:
    """Start instances, and keep them running."""

    async def one(client: BranchdClient, instance: Object) -> Object:
        patience = Patience(client, timeout)
        answer = await client.start(instance["app"], instance["name"], wait=patience.ask if wait else None)
        return await patience.up(answer) if wait else answer

    return _each(session, selection, form, one)


@click.command()
@selecting(required=True)
@waiting()
@output
@click.pass_obj
def stop(session: Session, selection: Selection, wait: bool, timeout: float, form: str) -> int:
    """Stop instances by their stop plans."""

    async def one(client: BranchdClient, instance: Object) -> Object:
        patience = Patience(client, timeout)
        answer = await client.stop(instance["app"], instance["name"], wait=patience.ask if wait else None)
        return await patience.down(answer) if wait else answer

    return _each(session, selection, form, one)


@click.command()
@selecting(required=True)
@click.option("--rolling", is_flag=True, help="One after the other, each when the one before is ready.")
@waiting()
@output
@click.pass_obj
def restart(session: Session, selection: Selection, rolling: bool, wait: bool, timeout: float, form: str) -> int:
    """Stop instances by their stop plans, and start them with what is now asked for.

    With --rolling it stops at the first that does not become ready, and the timeout is that of each.
    """
    if rolling:
        return run(_roll(session.client(), selection, timeout if wait else None, form))

    async def one(client: BranchdClient, instance: Object) -> Object:
        patience = Patience(client, timeout)
        answer = await client.restart(instance["app"], instance["name"], wait=patience.ask if wait else None)
        return await patience.up(answer) if wait else answer

    return _each(session, selection, form, one)


@click.command()
@click.argument("signal")
@selecting(required=True)
@output
@click.pass_obj
def signal(session: Session, signal: str, selection: Selection, form: str) -> int:
    """Send SIGNAL, such as HUP, to the main process of instances."""
    name = signal.upper().removeprefix("SIG")

    async def one(client: BranchdClient, instance: Object) -> Object:
        return await client.signal(instance["app"], instance["name"], name)

    return _each(session, selection, form, one, lambda _: f"{name} sent")


@click.command()
@selecting(required=True)
@waiting()
@output
@click.pass_obj
def rm(session: Session, selection: Selection, wait: bool, timeout: float, form: str) -> int:
    """Stop instances and delete them."""

    async def one(client: BranchdClient, instance: Object) -> Object:
        patience = Patience(client, timeout)
        gone = await client.delete_instance(instance["app"], instance["name"], wait=patience.ask if wait else None)
        return await patience.gone(instance, gone) if wait else instance

    return _each(session, selection, form, one, lambda _: "deleted" if wait else "is being deleted")


async def _roll(client: BranchdClient, selection: Selection, timeout: float | None, form: str) -> Exit:
    """App by app, and branch by branch; None: does not wait for that."""
    found = await find(client, selection)
    groups: dict[tuple[str, str], list[Object]] = {}
    for instance in found.instances:
        groups.setdefault((instance["app"], instance["branch"]), []).append(instance)
    for (app, _), instances in groups.items():
        there = at(client, instances[0])
        operation = await there.rolling_restart(app, [one["name"] for one in instances])
        seconds = None if timeout is None else timeout * len(instances)
        if (ended := await follow(there, operation, form, seconds)) is not Exit.OK:
            return ended
    missing(found.unreachable)
    return Exit.PARTIAL if found.unreachable else Exit.OK


def _each(
    session: Session,
    selection: Selection,
    form: str,
    act: Callable[[BranchdClient, Object], Awaitable[Object]],
    tell: Callable[[Object], str] = state,
) -> int:
    return run(each(session.client(), selection, form, act, tell))


def _exit(found: Found, named: bool) -> Exit:
    """`named`: whether they run is told too."""
    if named and any(instance["status"]["state"] in NOT_RUNNING for instance in found.instances):
        return Exit.NOT_RUNNING
    return Exit.PARTIAL if found.unreachable else Exit.OK


def _description(instance: Object) -> list[str]:
    status = instance["status"]
    last = status["last_exit"]
    facts: list[tuple[str, Any]] = [
        ("State", state(instance)),
        ("Wanted", "gone" if status["deleting"] else status["wanted"]),
        ("Kind", instance["kind"]),
        ("Branch", f"{instance['branch']} ({instance['placement']})"),
        ("Defined in", instance["source"]),
        ("Created", instance["created_at"]),
        ("Started", status["started_at"]),
        ("Restarts", status["restarts"]),
        ("Next try", status["next_try_at"]),
        ("Last exit", last and f"{_ending(last)} at {last['at']}"),
        ("Generation", _generation(instance)),
    ]
    facts += [(one["type"], f"{one['status']} {one['reason']}".rstrip()) for one in status["conditions"]]
    words = status.get("last_words") or ()
    own = instance["spec"]
    effective = [
        (name, f"{value if isinstance(value, str) else as_json(value)}{'' if name in own else '  (inherited)'}")
        for name, value in sorted(instance["effective"].items())
    ]
    width = max(len(name) for name, _ in facts + effective)
    lines = [neutral(label(instance))]
    for name, value in facts:
        if value not in (None, ""):
            lines.append(f"  {name.ljust(width)}  {neutral(str(value))}")
    if words:
        lines += ["  Last words", *(f"    {neutral(line)}" for line in words)]
    lines.append("  Spec")
    lines += [f"    {name.ljust(width)}  {neutral(value)}" for name, value in effective]
    return lines


def _ending(last: Object) -> str:
    if last["signal"] is not None:
        return f"killed by {last['signal']}" + (f": {last['why']}" if last["why"] else "")
    return "exit status unknown" if last["code"] is None else f"exit code {last['code']}"
