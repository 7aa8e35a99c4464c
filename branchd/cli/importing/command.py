"""branchctl import: a supervisord configuration, or lines of celery multi, becomes apps and instances of a branch."""

import os
import platform
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from branchd.cli.exits import Exit
from branchd.cli.options import output, pair
from branchd.cli.output import as_json, neutral
from branchd.cli.session import Session, explain, run

if TYPE_CHECKING:
    from branchd.cli.importing.creating import Done, Plan
    from branchd.cli.importing.notes import Imported

#: where supervisorctl looks by itself
_DEFAULT_FILES = frozenset({"/etc/supervisord.conf", "/etc/supervisor/supervisord.conf"})


@click.command("import")
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE]")
@click.option(
    "--celery-multi",
    "multi",
    multiple=True,
    metavar="LINE|@FILE",
    help="A command line of celery multi; or a file of such lines, or of settings as /etc/default/celeryd.",
)
@click.option("--app", metavar="NAME", help="With --celery-multi: the app; else it is called as the application.")
@click.option(
    "--env",
    "variables",
    multiple=True,
    type=pair,
    metavar="NAME=VALUE",
    help="What %(ENV_NAME)s means, over this command's own environment; may be repeated.",
)
@click.option("--keep-commands", is_flag=True, help="Leave Celery workers commands.")
@click.option("--dry-run", is_flag=True, help="Only report; no daemon is asked.")
@click.option(
    "--toml", is_flag=True, help="Print definitions for conf.d, the report on the standard error; as --dry-run."
)
@click.option("--partial", is_flag=True, help="Create the rest where something cannot be carried over.")
@click.option("--replace", is_flag=True, help="Overwrite what is there and differs.")
@click.option(
    "--start/--no-start",
    default=False,
    show_default=True,
    help="Start at once what supervisord starts by itself. It must run nowhere else.",
)
@output
@click.pass_obj
def import_command(
    session: Session,
    /,
    file: Path | None,
    multi: tuple[str, ...],
    app: str | None,
    variables: tuple[tuple[str, str], ...],
    keep_commands: bool,
    dry_run: bool,
    toml: bool,
    partial: bool,
    replace: bool,
    start: bool,
    form: str,
) -> Exit:
    """Import the supervisord configuration FILE, or command lines of celery multi.

    Each process GROUP:NAME becomes the instance NAME, pinned to the branch that is asked, of the app GROUP. Every key
    is carried over or reported. What is created is stopped, for it may still run elsewhere; the report ends with the
    commands that move it. The exit code is 1, and nothing is created, where something cannot be carried over.
    """
    if (file is None) is not bool(multi):
        raise click.UsageError("give a supervisord configuration FILE, or --celery-multi")
    imported = _read(session, file, multi, app, {**session.environment, **dict(variables)}, keep_commands)
    if toml:
        _tell(imported, "table", err=True)
        if not imported.incomplete or partial:
            _toml(imported, start)
        return Exit.FAILED if imported.incomplete else Exit.OK
    if dry_run or (imported.incomplete and not partial):
        _tell(imported, form)
        if imported.incomplete and not dry_run:
            what = "thing" if imported.incomplete == 1 else "things"
            click.echo(f"nothing was created: {imported.incomplete} {what} cannot be carried over, and --partial "
                       "creates the rest", err=True)  # fmt: skip
        return Exit.FAILED if imported.incomplete else Exit.OK
    return _create(session, imported, file, form, partial=partial, replace=replace, start=start)


def _read(
    session: Session,
    file: Path | None,
    multi: tuple[str, ...],
    app: str | None,
    variables: Mapping[str, str],
    keep: bool,
) -> "Imported":
    from branchd.cli.importing.assembling import of_supervisord  # noqa: PLC0415  # start-up time: so do these all
    from branchd.cli.importing.celery_lines import of_celery_multi  # noqa: PLC0415
    from branchd.cli.importing.celery_sources import lines  # noqa: PLC0415
    from branchd.cli.importing.machine import ThisMachine  # noqa: PLC0415

    if file is not None:
        return of_supervisord(file, platform.node(), variables, ThisMachine(), keep)
    return of_celery_multi([line for text in multi for line in lines(text, variables)], app, ThisMachine())


def _tell(imported: "Imported", form: str, *, err: bool = False, done: Mapping[str, Any] | None = None) -> None:
    from branchd.cli.importing import report  # noqa: PLC0415  # start-up time

    match form:
        case "json":
            click.echo(as_json(report.document(imported) | dict(done or {}), indent=2))
        case "jsonl":
            for section in report.document(imported)["sections"]:
                click.echo(as_json(section))
        case "name":
            for name in _names(imported):
                click.echo(neutral(name))
        case _:
            for line in report.lines(imported):
                click.echo(neutral(line), err=err)


def _names(imported: "Imported") -> Iterator[str]:
    for app, definition in imported.apps.items():
        for name in definition["instances"]:
            yield f"{app}:{name}"


def _toml(imported: "Imported", start: bool) -> None:
    from branchd.cli.importing import toml  # noqa: PLC0415  # start-up time

    apps = {
        name: {**app, "instances": {one: spec if start else {**spec, "wanted": "down"}
                                    for one, spec in app["instances"].items()}}
        for name, app in imported.apps.items()
    }  # fmt: skip
    for line in toml.lines(apps):
        click.echo(line)


def _create(
    session: Session, imported: "Imported", file: Path | None, form: str, *, partial: bool, replace: bool, start: bool
) -> Exit:
    from branchd.cli.importing import creating  # noqa: PLC0415  # start-up time

    async def work() -> tuple["Plan", "Done"]:
        client = session.client()
        found = await creating.plan(client, imported)
        if found.different and not (replace or partial):
            return found, creating.Done((), {})
        done = await creating.create(client, imported, found, partial=partial, replace=replace)
        if start:
            await creating.start(
                client, found, [name for name in imported.started if name in {*done.made} & {*found.new}]
            )
        return found, done

    planned, done = run(work())
    differs = {} if replace else planned.different
    following = (
        list(_following(imported, file, [name for name in done.made if name in planned.new])) if not start else []
    )
    told = {
        "created": list(done.made),
        "same": list(planned.same),
        "different": {name: list(fields) for name, fields in differs.items()},
        "refused": {name: error.detail for name, error in done.refused.items()},
        "next": following,
    }
    _tell(imported, form, done=told)
    if form in {"table", "wide"}:
        for name in done.made:
            click.echo(f"{name}: {'replaced' if name in planned.wanted else 'created'} on {neutral(planned.branch)}")
        for name in planned.same:
            click.echo(f"{name}: is there already, and the same")
        if following:
            click.echo("\nThese are stopped, for they may still run elsewhere. Each in its turn:")
            for line in following:
                click.echo(f"  {line}")
    for name, fields in differs.items():
        click.echo(f"{name}: is there already, and differs in {', '.join(fields)} (--replace overwrites it)", err=True)
    for name, error in done.refused.items():
        explain(error, name)
    if (differs or done.refused) and not done.made:
        click.echo("nothing was created", err=True)
    return Exit.FAILED if imported.incomplete or differs or done.refused else Exit.OK


def _following(imported: "Imported", file: Path | None, done: Collection[str]) -> Iterator[str]:
    """The commands that move what was created from where it runs, an app at a time."""
    from branchd.cli.importing.report import selectors  # noqa: PLC0415  # start-up time

    todo = [name for name in imported.started if name in done]
    if not todo:
        return
    if file is None:
        yield "celery multi stopwait ...   # with the nodes and the --pidfile that they were started with"
        yield f"branchctl start {shlex.join(selectors(todo, imported.apps))}"
        return
    path = os.path.abspath(file)
    whole = any(entry.title == "[supervisord]" and entry.file == path for entry in imported.entries)
    control = f"supervisorctl -c {shlex.quote(path)}" if whole and path not in _DEFAULT_FILES else "supervisorctl"
    for app in dict.fromkeys(name.partition(":")[0] for name in todo):
        here = selectors([name for name in todo if name.startswith(f"{app}:")], imported.apps)
        there = [name.partition(":")[2] if name == f"{app}:{app}" else name for name in here]
        yield f"{control} stop {shlex.join(there)} && branchctl start {shlex.join(here)}"
    yield "systemctl disable --now supervisor   # once nothing is left there"
