"""`branchd`: the daemon's own command. Nothing is decided here: config.py reads, compose.py runs.

What a command needs is imported inside it, for the sake of start-up time: `branchd check` has no use for a database or
a web server, and `--help` for nothing at all.
"""

# ruff: noqa: PLC0415  # as said above

import gc
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from branchd.cli.keys import key
from branchd.cli.systemd import systemd_clean, systemd_stop, systemd_unit
from branchd.core.errors import BranchdError

if TYPE_CHECKING:
    from branchd.cli.config import Config

Command = Callable[..., Any]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="branchd")
def main() -> None:
    """Supervise Celery workers and any other program, and take orders over HTTP."""


def configuration(command: Command) -> Command:
    """The flags that beat variables, which beat the file."""
    options: list[Callable[[Command], Command]] = [
        click.option("--config", envvar="BRANCHD_CONFIG", type=click.Path(path_type=Path), metavar="FILE.toml",
                     help="The configuration; conf.d/*.toml beside it may define apps."),
        click.option("--state", metavar="DIR", help="Where what must survive is kept."),
        click.option("--run", metavar="DIR", help="Where the sockets are."),
        click.option("--listen", multiple=True, metavar="HOST:PORT|unix:PATH",
                     help="An address; may be repeated; :PORT is on loopback."),
        click.option("--name", help="The name of this branch."),
        click.option("--broker", metavar="URL", help="The broker of the neighbourhood."),
        click.option("--neighbourhood", metavar="NAME", help="The name of the neighbourhood."),
        click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@configuration
@click.option("--new-id", is_flag=True, help="Once: this state folder is a copy; become another branch, with the "
              "pinned instances and without the placed ones.")  # fmt: skip
@click.option("--same-machine", is_flag=True, help="Once: this state folder is the original, or takes its place.")
@click.option("--rehearse", type=click.Path(path_type=Path), metavar="STATE", help="Only try whether it would start in "
              "the place of the daemon that uses this folder; a reload does so first.")  # fmt: skip
@click.pass_context
def run(context: click.Context, /, new_id: bool, same_machine: bool, rehearse: Path | None, **flags: Any) -> None:
    """Run the daemon until it is told to stop."""
    if new_id and same_machine:
        raise click.UsageError("--new-id and --same-machine are two answers to one question")
    from branchd.adapters.held_signals import held_at_start

    if rehearse is None:
        # Till they are handled: one that comes this early would end the daemon, and leave what it is to adopt as it is.
        context.with_resource(held_at_start())
    gc.disable()  # a start makes little but what stays; when it is ready compose.py has it collected again
    from branchd.adapters.handover import Handover, receive
    from branchd.branch.identity import Answer
    from branchd.cli import refusal
    from branchd.cli.compose import run as run_daemon
    from branchd.cli.config import Misconfigured
    from branchd.cli.reloading import persist, rehearsed

    answer = Answer.NEW_ID if new_id else Answer.SAME_MACHINE if same_machine else None
    folder: Path | None = None
    handover = Handover()
    try:
        handover = receive(os.environ)
        config = _load(**flags)
        if rehearse is not None:
            rehearsed(config, rehearse)
            return
        folder = config.branch.run
        code = run_daemon(config, handover, answer)
    except BranchdError as error:
        _explain(error)
        if rehearse is None and (folder := error.run if isinstance(error, Misconfigured) else folder):
            refusal.leave(folder, error)
        persist(handover)
        code = 1
    except Exception:
        persist(handover, traceback.format_exc())
        raise
    context.exit(code)


@main.command()
@configuration
@click.pass_context
def check(context: click.Context, /, **flags: Any) -> None:
    """Read the configuration, print what `branchd run` would use, or everything that is wrong with it.

    So it does with the definitions of apps in files, though the daemon starts without those that are wrong.
    """
    from branchd.cli.checking import definition_faults
    from branchd.core.errors import Invalid

    config, wrong = None, False
    try:
        config = _load(**flags)
    except BranchdError as error:
        _explain(error)
        wrong = True
    if found := definition_faults(flags["config"], config):
        count = len(found)
        _explain(Invalid(list(found), f"the definitions in files have {count} fault{'s' if count > 1 else ''}"))
        wrong = True
    if config is None or wrong:
        context.exit(1)
    try:
        for line in _lines(config):
            click.echo(line)
    except BrokenPipeError:
        raise  # click's: it ends without words
    except OSError as error:
        from branchd.cli.output import incomplete

        incomplete("branchd", error)
        context.exit(1)


@main.command()
@configuration
@click.argument("file", metavar="FILE|-")
@click.pass_context
def backup(context: click.Context, /, file: str, **flags: Any) -> None:
    """Write a backup of the branch, which may run meanwhile, to FILE (.tar.gz) or to the standard output.

    It holds the branch's secrets in clear, and its first token. The configuration, keys and logs are not in it.
    """
    from branchd.cli.backups import back_up

    context.exit(_done(lambda: back_up(_load(**flags), file)))


@main.command()
@configuration
@click.argument("file", metavar="FILE|-")
@click.option("--force", is_flag=True, help="Also where there is a branch in the state folder; it is put aside there.")
@click.pass_context
def restore(context: click.Context, /, file: str, force: bool, **flags: Any) -> None:
    """Put a backup back into the state folder, while no daemon uses it."""
    from branchd.cli.backups import put_back

    context.exit(_done(lambda: put_back(_load(**flags), file, force=force)))


@main.command()
@click.option("--exit", "exit_after", is_flag=True, help="Do not stay up after the tour.")
@click.option("--broker", metavar="URL", help="A broker of your own; by default files in a temporary folder.")
@click.option("--branches", type=click.IntRange(2, 5), help="The tour of a neighbourhood of so many branches.")
@click.pass_context
def demo(context: click.Context, exit_after: bool, broker: str | None, branches: int | None) -> None:
    """Show what branchd does, with real workers, in a temporary folder."""
    from branchd.cli.demo.main import main as run_demo

    try:
        code = run_demo(exit_after=exit_after, broker=broker, branches=branches)
    except BranchdError as error:
        _explain(error)
        code = 1
    context.exit(code)


for command in (key, systemd_unit, systemd_stop, systemd_clean):
    main.add_command(command)


def _load(
    config: Path | None,
    state: str | None,
    run: str | None,
    listen: tuple[str, ...],
    name: str | None,
    broker: str | None,
    neighbourhood: str | None,
    log_level: str | None,
) -> "Config":
    from branchd.cli.config import load
    from branchd.cli.doubts import doubts
    from branchd.cli.output import neutral

    flags = {
        ("branch", "state"): state,
        ("branch", "run"): run,
        ("branch", "name"): name,
        ("branch", "log_level"): log_level,
        ("http", "listen"): list(listen),
        ("mesh", "broker"): broker,
        ("mesh", "neighbourhood"): neighbourhood,
    }
    loaded = load(config, os.environ, flags)
    for doubt in doubts(loaded, os.environ):
        click.echo(f"branchd: warning: {neutral(doubt)}", err=True)
    return loaded


def _lines(config: "Config") -> list[str]:
    """As TOML, with where each value came from where that is not the default."""
    from msgspec.structs import fields

    from branchd.core.brokers import shown
    from branchd.wire.decode import encode
    from branchd.wire.json import dumps

    lines = []
    for section in ("branch", "http", "auth", "mesh"):
        lines.append(f"[{section}]")
        values = getattr(config, section)
        for field in fields(values):
            value = encode(getattr(values, field.name))
            if field.name == "broker" and value is not None:
                value = shown(value)
            if isinstance(value, dict):
                text = "{" + ", ".join(f"{dumps(k).decode()} = {dumps(v).decode()}" for k, v in value.items()) + "}"
            else:
                text = dumps(value).decode()
            origin = config.origins.get((section, field.name), "")
            comment = f"  # {origin.partition(': ')[0]}" if origin and not origin.startswith("[") else ""
            lines.append(f"# {field.name} is not set" if value is None else f"{field.name} = {text}{comment}")
        lines.append("")
    return lines[:-1]


def _done(work: Callable[[], None]) -> int:
    """The exit code."""
    try:
        work()
    except BranchdError as error:
        _explain(error)
        return 1
    return 0


def _explain(error: BranchdError) -> None:
    from branchd.cli.refusal import words

    detail, cures = words(error)
    click.echo(f"branchd: {detail}", err=True)
    for cure in cures:
        click.echo(f"  {cure}", err=True)


if __name__ == "__main__":
    main()
