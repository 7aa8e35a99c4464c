"""branchd systemd-unit, systemd-stop, systemd-clean: the units, and what these have systemd run beside the daemon."""

# ruff: noqa: PLC0415  # for start-up time, as in daemon.py

import os
import shlex
import sys
from pathlib import Path

import click

PROFILES = ("system", "single-user", "user")


@click.command("systemd-unit")
@click.option("--profile", type=click.Choice(PROFILES), default="system", show_default=True,
              help="Root; an account of its own for all; or a user's own service manager.")  # fmt: skip
@click.option("--user", metavar="NAME", default="branchd", show_default=True, help="The account of single-user.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE.toml",
              help="Another configuration than /etc/branchd/branchd.toml.")  # fmt: skip
@click.option("--socket", is_flag=True, help="Print branchd.socket, which goes with it, instead of branchd.service.")
def systemd_unit(profile: str, user: str, config: Path | None, socket: bool) -> None:
    """Print a systemd unit for this installation."""
    from branchd.cli import units

    chosen = units.Profile(profile)
    account = user if chosen is units.Profile.SINGLE_USER else None
    if socket:
        text = units.api_socket(chosen, account)
    else:
        branchctl, further = _command("branchctl", "control"), ""
        if config is not None:
            further = f" --config {shlex.quote(str(config.absolute()))}"
            if chosen is units.Profile.SYSTEM:  # in the others the unit itself says where the sockets are
                branchctl += _leading(config.absolute())
        commands = units.Commands(_command("branchd", "daemon"), branchctl, further)
        text = units.service(chosen, commands, account)
    click.echo(text, nl=False)


@click.command("systemd-stop")
@click.option("--user", is_flag=True, help="The unit is of systemctl --user.")
@click.argument("unit")
def systemd_stop(user: bool, unit: str) -> None:
    """ExecStop= of the unit: on a restart, have the daemon end without what it runs; else do nothing."""
    from branchd.adapters.service_manager import LET_GO, let_go, restarting

    pid = os.environ.get("MAINPID", "")
    if not pid.isdecimal():
        return  # it has ended by itself
    if not restarting(unit, of_user=user):
        click.echo("a stop: what runs is stopped by its stop plans", err=True)
    elif let_go(int(pid)):
        click.echo(f"the daemon did not let go within {LET_GO:g} s, and was killed; what runs goes on", err=True)
    else:
        click.echo("a restart: what runs goes on", err=True)


@click.command("systemd-clean")
def systemd_clean() -> None:
    """ExecStopPost= of the unit: turn the controllers in its cgroup off, which keep old systemds from starting it."""
    from branchd.adapters.service_manager import turn_controllers_off

    turn_controllers_off()


def _leading(config: Path) -> str:
    """What has branchctl find the daemon of a configuration that says where its sockets are."""
    from branchd.cli.definition_files import parse

    document, faults = parse(config)
    if faults:
        fault = f"{faults[0].pointer} {faults[0].detail}"
        click.echo(f"{fault}: if it is to name another [branch] run, print the unit again", err=True)
    branch = document.get("branch")
    run = branch.get("run") if isinstance(branch, dict) else None
    return f" --run {shlex.quote(str(config.parent / run))}" if isinstance(run, str) else ""


def _command(name: str, module: str) -> str:
    """The script of that name beside this interpreter, or else the module."""
    places = (Path(sys.executable), Path(sys.argv[0]).absolute())  # our package has its scripts in /usr/bin
    script = next((str(found) for place in places if (found := place.with_name(name)).is_file()), None)
    return shlex.join([sys.executable, "-m", f"branchd.cli.{module}"] if script is None else [script])
