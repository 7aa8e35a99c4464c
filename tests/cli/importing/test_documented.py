"""docs/migrating.md says of every key that supervisord knows what becomes of it."""

import re
from pathlib import Path

from branchd.cli.importing.sections import _SUPERVISORD
from branchd.cli.importing.translate import KEYS

PAGE = (Path(__file__).parents[3] / "docs" / "migrating.md").read_text()


def test_every_key_of_a_program_is_in_the_table() -> None:
    section = PAGE.split("### Programs")[1].split("### Other sections", maxsplit=1)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(KEYS)


def test_every_key_of_supervisord_itself_is_told() -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| `[supervisord]`")]
    assert set(_SUPERVISORD) <= set(re.findall(r"`(\w+)`", row))
