"""branchctl reread, update: the definitions in the files of a branch."""

import click

from branchd.cli.changes import lines
from branchd.cli.exits import Exit
from branchd.cli.operations import follow
from branchd.cli.options import output, waiting
from branchd.cli.output import as_json, neutral
from branchd.cli.session import Session, run
from branchd.client import Object
from branchd.core.errors import Fault, Invalid

_SAME = "nothing to do: all is as the files say"


@click.command()
@output
@click.pass_obj
def reread(session: Session, form: str) -> Exit:
    """Show how the files that define apps differ from what was applied of them. Nothing is changed."""
    found = run(session.client().files())
    if form in {"table", "wide"}:
        _tell(found, ())
    elif form == "name":
        for app in (*found["added"], *found["changed"], *found["removed"]):
            click.echo(neutral(app))
    else:
        click.echo(as_json(found, indent=2 if form == "json" else None))
    return Exit.FAILED if found["faults"] else Exit.OK


@click.command()
@click.argument("apps", nargs=-1, metavar="[APP]...")
@waiting(timeout="1h")
@output
@click.pass_obj
def update(session: Session, apps: tuple[str, ...], wait: bool, timeout: float, form: str) -> Exit:
    """Make it as the files say, or what they say of each APP.

    What is new is started, what is gone from the files is stopped and deleted, and what is changed takes effect at once
    where it can; what needs it is restarted, of each app one instance after the other, each when the one before is
    ready.
    """

    async def work() -> Exit:
        client = session.client()
        if form in {"table", "wide"}:
            _tell(await client.files(), apps)
        operation = await client.update_files(apps)
        return await follow(client, operation, form, timeout if wait else None)

    return run(work())


def _tell(found: Object, apps: tuple[str, ...]) -> None:
    """Of these apps; none: of all. Invalid where the files are."""
    if found["faults"]:
        faults = [Fault(one["pointer"], one["detail"], one["hint"]) for one in found["faults"]]
        raise Invalid(faults, f"nothing of the files is applied, because of {len(faults)} of their definitions")
    items = [item for item in found["items"] if not apps or item["app"] in apps]
    for line in lines(items):
        click.echo(line)
    if not items:
        click.echo(_SAME)
