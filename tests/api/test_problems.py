"""Every error has a meaning, and every meaning a section in the documentation."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from branchd.api import problems
from branchd.core.errors import BranchdError, Fatal

PAGE = Path(__file__).parents[2] / "docs" / "problems.md"


def errors(kind: type[BranchdError] = BranchdError) -> Iterator[type[BranchdError]]:
    for child in kind.__subclasses__():
        yield child
        yield from errors(child)


def test_every_error_that_a_request_can_meet_has_a_meaning_of_its_own() -> None:
    #: the base classes, and what ends a daemon instead of a request
    without = {problems.HttpError, Fatal}
    ours = {error for error in errors() if error.__module__ in {"branchd.core.errors", problems.__name__}}
    assert ours - without == set(problems.MEANINGS)


def test_slugs_are_unique_and_documented() -> None:
    meanings = list(dict.fromkeys(problems.MEANINGS.values()))  # an outcome that is unknown is told beside the slug
    slugs = [meaning.slug for meaning in meanings]
    assert len(set(slugs)) == len(slugs)
    text = PAGE.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == slugs
    for meaning in meanings:
        assert re.search(rf"^## {meaning.slug}\nStatus {meaning.status}\. ", text, re.MULTILINE)


@pytest.mark.parametrize("error", [BranchdError("x"), Fatal("x")])
def test_an_error_that_is_not_meant_for_requests_is_a_fault_of_our_own(error: BranchdError) -> None:
    assert not problems.foreseen(error)
