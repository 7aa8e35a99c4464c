"""branchctl operation: long work, such as a drain; and following it to its end."""

import asyncio
import sys
import time

import click

from branchd.cli.exits import Exit, TimedOut
from branchd.cli.options import output
from branchd.cli.output import Column, missing, neutral, show
from branchd.cli.session import Session, run
from branchd.client import BranchdClient, Object

#: seconds between two looks at one that runs
PAUSE = 0.5

#: states of a step that stay
_ENDED = frozenset({"done", "failed", "kept"})

#: on a terminal: to the beginning of the line, and nothing on it
_CLEAR = "\r\x1b[K"


def _steps(operation: Object) -> str:
    """How many of them are done."""
    return f"{sum(step['state'] == 'done' for step in operation['steps'])}/{len(operation['steps'])}"


COLUMNS = (
    Column("ID", lambda one: one["id"]),
    Column("KIND", lambda one: one["kind"]),
    Column("BRANCH", lambda one: one["branch"]),
    Column("STATE", lambda one: one["state"]),
    Column("DONE", _steps),
    Column("BY", lambda one: one["by"]),
    Column("STARTED", lambda one: one["started_at"]),
    Column("ENDED", lambda one: one["ended_at"], wide=True),
    Column("DETAIL", lambda one: one["detail"]),
)


def _id(operation: Object) -> str:
    return str(operation["id"])


@click.group()
def operation() -> None:
    """Operations: long work that can be watched and cancelled."""


@operation.command("ls")
@output
@click.pass_obj
def operation_ls(session: Session, form: str) -> Exit:
    """List the operations of all branches, those that ended lately too."""
    found = run(session.client().operations())
    show(form, found, COLUMNS, _id)
    missing(found["unreachable"])
    return Exit.PARTIAL if found["partial"] else Exit.OK


@operation.command("show")
@click.argument("id")
@output
@click.pass_obj
def operation_show(session: Session, id: str, form: str) -> None:
    """Show an operation and its steps."""
    found = run(session.client().operation(id))
    show(form, found, COLUMNS, _id)
    if form in {"table", "wide"}:
        for step in found["steps"]:
            click.echo("  " + _line(step))


@operation.command("cancel")
@click.argument("id")
@output
@click.pass_obj
def operation_cancel(session: Session, id: str, form: str) -> None:
    """Cancel an operation: what is done stays done, and the rest as it is."""
    found = run(session.client().cancel_operation(id))
    if form in {"table", "wide"}:
        click.echo(f"{neutral(found['id'])}: {found['state']}, {_steps(found)} done")
    else:
        show(form, found, COLUMNS, _id)


async def follow(client: BranchdClient, operation: Object, form: str, seconds: float | None) -> Exit:
    """Tells of each step when it has ended, and on a terminal how far it is; None: does not wait for that. TimedOut."""
    told = form in {"table", "wide"}
    begun, seen = time.monotonic(), set[str]()
    if told:
        click.echo(f"{neutral(operation['id'])}: {operation['kind']} of branch {neutral(operation['branch'])}")
    while True:
        if told:
            _tell(operation, seen)
        if operation["state"] != "running" or seconds is None:
            break
        left = begun + seconds - time.monotonic()
        if left <= 0:
            raise TimedOut(
                f"not done within {seconds:g} seconds: it goes on", f"branchctl operation show {operation['id']}"
            )
        if told and sys.stderr.isatty():
            click.echo(f"{_CLEAR}{_progress(operation, time.monotonic() - begun)}", nl=False, err=True)
        await asyncio.sleep(min(PAUSE, left))
        operation = await client.operation(_id(operation))
        if told and sys.stderr.isatty():
            click.echo(_CLEAR, nl=False, err=True)
    if told:
        detail = f": {operation['detail']}" if operation["detail"] else ""
        click.echo(neutral(f"{operation['id']}: {operation['state']}, {_steps(operation)} done{detail}"))
    else:
        show(form, operation, COLUMNS, _id)
    return Exit.FAILED if operation["state"] in {"failed", "cancelled"} else Exit.OK


def _tell(operation: Object, seen: set[str]) -> None:
    for step in operation["steps"]:
        if step["state"] in _ENDED and step["name"] not in seen:
            seen.add(step["name"])
            click.echo(_line(step))


def _line(step: Object) -> str:
    return neutral(f"{step['name']}: {step['state']}" + (f", {step['detail']}" if step["detail"] else ""))


def _progress(operation: Object, seconds: float) -> str:
    """How many have ended, and how long the rest takes if it goes on so."""
    ended, all_of_them = sum(step["state"] in _ENDED for step in operation["steps"]), len(operation["steps"])
    under_way = [step["name"] for step in operation["steps"] if step["state"] == "running"]
    words = [f"{ended} of {all_of_them}", operation["detail"] or " ".join(under_way[:3])]
    if 0 < ended < all_of_them:
        words.append(f"about {seconds / ended * (all_of_them - ended):.0f} s left")
    return neutral(", ".join(filter(None, words)))[:100]
