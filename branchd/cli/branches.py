"""branchctl branch: the daemons of the neighbourhood, and what may be asked of one."""

import sys

import click

from branchd.cli.exits import Exit
from branchd.cli.operations import follow
from branchd.cli.options import output, waiting
from branchd.cli.output import Column, age, missing, neutral, show
from branchd.cli.session import Session, run
from branchd.client import Object

COLUMNS = (
    Column("NAME", lambda branch: branch["name"]),
    Column("STATE", lambda branch: branch["state"]),
    Column("SLOTS", lambda branch: branch["slots"]),
    Column("RESERVED", lambda branch: branch["reserved"]),
    Column("VERSION", lambda branch: branch["version"]),
    Column("LABELS", lambda branch: ",".join(f"{k}={v}" for k, v in branch["labels"].items())),
    Column("SEEN", lambda branch: age(branch["seen_at"])),
    Column("ADDRESS", lambda branch: branch["address"]),
    Column("ID", lambda branch: branch["id"], wide=True),
    Column("LOAD", lambda branch: " ".join(f"{k}={v:g}" for k, v in branch["load"].items()), wide=True),
)


def _name(branch: Object) -> str:
    return str(branch["name"])


@click.group()
def branch() -> None:
    """Branches: the daemons."""


@branch.command("ls")
@click.option("--fresh", is_flag=True, help="Ask each of them, instead of showing what it said last.")
@output
@click.pass_obj
def branch_ls(session: Session, fresh: bool, form: str) -> Exit:
    """List the branches of the neighbourhood."""
    found = run(session.client().branches(fresh=fresh))
    show(form, found, COLUMNS, _name)
    missing(found["unreachable"])
    return Exit.PARTIAL if found["partial"] else Exit.OK


@branch.command("show")
@click.argument("name")
@output
@click.pass_obj
def branch_show(session: Session, name: str, form: str) -> None:
    """Show a branch as it is now, or as it said last where it does not answer."""
    found = run(session.client().branch(name))
    if form not in {"table", "wide"}:
        show(form, found, COLUMNS, _name)
        return
    for column in COLUMNS:
        click.echo(f"{column.title.capitalize():<8}  {neutral(str(column.text(found) or '-'))}")


@branch.command("drain")
@click.argument("name")
@click.option("--pinned", is_flag=True, help="Stop its pinned instances too, at the end; undrain starts them again.")
@waiting(timeout="1h")
@output
@click.pass_obj
def branch_drain(session: Session, name: str, pinned: bool, wait: bool, timeout: float, form: str) -> Exit:
    """Move a branch's placed instances to the others; it takes nothing new until it is undrained.

    The exit code is 1 where one could not be moved: it stays where it is.
    """

    async def work() -> Exit:
        client = session.client()
        return await follow(client, await client.drain(name, pinned=pinned), form, timeout if wait else None)

    return run(work())


@branch.command("undrain")
@click.argument("name")
@output
@click.pass_obj
def branch_undrain(session: Session, name: str, form: str) -> None:
    """End a drain: what has not moved stays, and new instances may come."""
    _tell(form, run(session.client().undrain(name)), "takes new instances")


@branch.command("confirm")
@click.argument("name")
@output
@click.pass_obj
def branch_confirm(session: Session, name: str, form: str) -> None:
    """Tell a branch that those which vanished all at once are gone, which it else doubts for 5 minutes."""
    _tell(form, run(session.client().confirm(name)), "holds them for gone")


@branch.command("shutdown")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output
@click.pass_obj
def branch_shutdown(session: Session, name: str, yes: bool, form: str) -> None:
    """End a branch's daemon, and with it all that it runs, by the stop plans. Its own API alone takes that."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"End the daemon of branch {neutral(name)}, and all that it runs?", abort=True, err=True)
    _tell(form, run(session.client().shutdown(name)), "is ending")


def _tell(form: str, found: Object, done: str) -> None:
    if form in {"table", "wide"}:
        click.echo(f"{neutral(found['name'])}: {done}")
    else:
        show(form, found, COLUMNS, _name)
