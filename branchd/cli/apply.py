"""branchctl apply: definitions in TOML put into effect through the API, their difference shown first."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from branchd.cli.changes import lines, name
from branchd.cli.exits import Exit
from branchd.cli.options import duration, output
from branchd.cli.output import as_json, neutral
from branchd.cli.session import Session, run
from branchd.core.differences import Item
from branchd.core.faults import name_fault

if TYPE_CHECKING:
    from branchd.cli.applying import Plan
    from branchd.core.file_apps import FileDefinitions


@click.command()
@click.argument("source", metavar="FILE|DIR|-", type=click.Path(path_type=Path))
@click.option(
    "--name",
    "called",
    metavar="NAME",
    help="What the application goes by, for --prune; by default as the file or the folder is called.",
)
@click.option(
    "--prune", is_flag=True, help="Remove what an earlier application of this name made, and is not defined any more."
)
@click.option(
    "--dry-run",
    "--diff",
    "dry_run",
    is_flag=True,
    help="Only show what would be done; the exit code is 8 where there is something.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--timeout",
    type=duration,
    metavar="TIME",
    default="60s",
    show_default=True,
    help="How long each instance may take to be ready, or to be gone.",
)
@output
@click.pass_obj
def apply(
    session: Session, source: Path, called: str | None, prune: bool, dry_run: bool, yes: bool, timeout: float, form: str
) -> Exit:
    """Make apps, queues and instances as the tables [apps.NAME] of FILE say, or of each *.toml in DIR.

    Shows the difference first, and on a terminal asks. What needs it is restarted, one instance after the other, each
    when the one before is ready; the first failure ends it, and the same again goes on from there. In a neighbourhood
    an instance is placed unless its table says `branch = "NAME"`. Whether it is wanted up is left as it is.
    """
    application = called or ("stdin" if str(source) == "-" else source.resolve().stem)
    if fault := name_fault(application, "", "name of an application"):
        raise click.UsageError(f"{fault.detail}: {fault.hint}; say another one with --name")
    found = _read(source)

    async def work() -> Exit:
        from branchd.cli.applying import carry_out, plan  # noqa: PLC0415  # start-up time

        client = session.client()
        made = await plan(client, found, application, prune=prune)
        told = form in {"table", "wide"}
        if told or dry_run or not made.items:
            _show(made, form, applied=False)
        if not made.items:
            return Exit.OK
        if dry_run:
            return Exit.PENDING
        if not yes and sys.stdin.isatty() and sys.stdout.isatty():
            click.confirm("Apply this?", abort=True, err=True)
        await carry_out(client, made, timeout, _tell if told else _silent)
        if told:
            click.echo("done")
        else:
            _show(made, form, applied=True)
        return Exit.OK

    return run(work())


def _read(source: Path) -> "FileDefinitions":
    from branchd.cli.definition_files import gather, parse, parsed  # noqa: PLC0415  # start-up time

    hint = "only [apps] can be applied"
    if str(source) == "-":
        return gather([("-", *parsed(sys.stdin.read(), "-"))], hint)
    if source.is_dir():
        files = sorted(source.glob("*.toml"))
        if not files:
            raise click.UsageError(f"there is no *.toml in {source}")
    elif source.exists():
        files = [source]
    else:
        raise click.UsageError(f"there is no file {source}")
    return gather([(str(path), *parse(path)) for path in files], hint)


def _show(made: "Plan", form: str, *, applied: bool) -> None:
    from branchd.wire.decode import encode  # noqa: PLC0415  # start-up time

    items, left = encode(made.items), encode(made.left)
    if form in {"table", "wide"}:
        for line in lines(items):
            click.echo(line)
        for item in left:
            click.echo(neutral(f"left: {name(item)} ({item['detail']})"))
        if not items:
            click.echo("nothing to do: all is as it is defined")
    elif form == "name":
        for item in items:
            click.echo(neutral(name(item)))
    else:
        document = {"items": items, "left": left, "applied": applied}
        click.echo(as_json(document, indent=2 if form == "json" else None))


def _tell(item: Item, what: str) -> None:
    click.echo(neutral(f"{item.label}: {what}"))


def _silent(_item: Item, _what: str) -> None:
    """For programs the plan was shown, and the exit code tells the rest."""
