"""The documentation keeps its promises to the code."""

import re
from pathlib import Path

from branchd.api.problems import MEANINGS

DOCS = Path(__file__).parents[1] / "docs"


def test_every_problem_has_its_section_with_its_status() -> None:
    sections = re.findall(r"^## (\S+)\n\n(\d+)\.", (DOCS / "problems.md").read_text(), re.MULTILINE)
    assert sections == [(meaning.slug, str(meaning.status)) for meaning in MEANINGS.values()]
