"""docs/cli.md names every command and every option that --help tells of."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from branchd.cli import control, daemon

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from commands(one, (*path, name))


ALL = [*commands(control.main, ("branchctl",)), *commands(daemon.main, ("branchd",))]


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_a_command_and_its_options_are_documented(path: tuple[str, ...], command: click.Command) -> None:
    words = path if path[0] == "branchd" or len(path) == 1 else path[1:]
    assert f"`{' '.join(words)}" in DOCUMENT
    options = [one for one in command.get_params(click.Context(command)) if isinstance(one, click.Option)]
    for name in [name for option in options for name in (*option.opts, *option.secondary_opts)]:
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", DOCUMENT), name
