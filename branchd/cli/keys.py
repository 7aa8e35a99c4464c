"""`branchd key`: the key that the branches of a neighbourhood share. A key itself is never printed."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from branchd.core.errors import BranchdError

if TYPE_CHECKING:
    from branchd.adapters.keys import Keys

FILE = click.argument("file", metavar="FILE", type=click.Path(path_type=Path))

_COPY = "Copy {file} to every branch, with mode 0600 and the daemon's user as its owner; a running daemon takes it up."


@click.group()
def key() -> None:
    """Make and change the key that the branches of a neighbourhood share.

    Whoever has the key file is an administrator of the neighbourhood. To change the key, without a branch that is cut
    off meanwhile, three steps, and after each the file is copied to every branch before the next one:

    \b
    branchd key rotate FILE   a new key is accepted, the old one still seals
    branchd key rotate FILE   the new key seals, the old one is still accepted
    branchd key retire FILE   the old key is dropped

    Where the key was stolen do the three at once: branches without the new file are cut off until they have it.
    """


@key.command()
@FILE
def new(file: Path) -> None:
    """Write a new key to a file that does not exist yet."""
    from branchd.adapters.keys import new as make  # noqa: PLC0415  # for start-up time, as in daemon.py

    keys = _do(make, file)
    click.echo(f"Key {keys.seals.id} seals.")
    click.echo(_COPY.format(file=file))
    click.echo(f'Name it there beside the broker: [mesh] key_file = "{file.absolute()}"')


@key.command()
@FILE
def rotate(file: Path) -> None:
    """Accept a new key; called again, seal with it."""
    from branchd.adapters.keys import rotate as change  # noqa: PLC0415

    keys = _do(change, file)
    if keys.next:
        click.echo(f"Key {keys.seals.id} seals, the new key {keys.next.id} is accepted.")
        then = "rotate"
    elif keys.former:
        click.echo(f"The new key {keys.seals.id} seals, the former key {keys.former.id} is accepted.")
        then = "retire"
    click.echo(_COPY.format(file=file))
    click.echo(f"When every branch has it: branchd key {then} {file}")


@key.command()
@FILE
def retire(file: Path) -> None:
    """Accept the former key no more."""
    from branchd.adapters.keys import retire as change  # noqa: PLC0415

    keys = _do(change, file)
    click.echo(f"Key {keys.seals.id} alone is accepted.")
    click.echo(_COPY.format(file=file))


def _do(work: "Callable[[Path], Keys]", file: Path) -> "Keys":
    try:
        return work(file)
    except BranchdError as error:
        click.echo(f"branchd: {error.detail}" + (f"\n  {error.hint}" if error.hint else ""), err=True)
        sys.exit(1)
