"""`branchctl`: the client of a daemon. Its commands stand in modules by what they are about."""

import os
from pathlib import Path

import click

from branchd.cli import (
    access,
    branches,
    definitions,
    doctor,
    explaining,
    files,
    instances,
    operations,
    reload,
    watching,
    workers,
)
from branchd.cli.apply import apply
from branchd.cli.importing.command import import_command
from branchd.cli.session import EdgeGroup, Session, read_token


@click.group(cls=EdgeGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", envvar="BRANCHD_URL", metavar="URL", help="http://HOST:PORT, https://HOST:PORT or unix:PATH.")
@click.option("--run", envvar="BRANCHD_RUN", type=click.Path(path_type=Path), metavar="DIR",
              help="The daemon's run folder, where its socket is.")  # fmt: skip
@click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE", help="A token; else BRANCHD_TOKEN.")
@click.option("-L", "--local", is_flag=True, help="Ask that branch alone, not its neighbourhood.")
@click.version_option(package_name="branchd")
@click.pass_context
def main(context: click.Context, url: str | None, run: Path | None, token_file: Path | None, local: bool) -> None:
    """Talk to a branchd daemon.

    Without --url it is the one whose socket is in the run folder, else the one at 127.0.0.1:8710.

    A SELECTOR is APP:NAME, where each may have wildcards (shop:*, 'shop:mail-*'), after BRANCH/ if you like; a bare
    NAME will do where only one app has it. The instances of all branches of the neighbourhood are meant.
    """
    context.obj = Session(url, run, read_token(token_file, os.environ), os.environ, local)


for command in (
    instances.ps, instances.show_command, instances.start, instances.stop, instances.restart, instances.signal,
    instances.rm, watching.logs, watching.events, definitions.create, definitions.set_command, definitions.app,
    definitions.queue, workers.consumer, workers.autoscale, workers.stats, access.token, access.whoami,
    branches.branch, operations.operation, explaining.explain, doctor.doctor, reload.reload,
    files.reread, files.update, apply,
    import_command,
):  # fmt: skip
    main.add_command(command)


if __name__ == "__main__":
    main()
