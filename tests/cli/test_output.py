"""What is shown does no harm to a terminal."""

import io
import json

import pytest

from branchd.cli.output import as_json, neutral
from branchd.cli.watching import Writer

EVIL = "a\x1b]0;x\x07\x9b31m\u202eb\u2028c\n"


def test_control_characters_are_shown_by_their_number() -> None:
    assert neutral(EVIL) == "a\\x1b]0;x\\x07\\x9b31m\\u202eb\\u2028c\\x0a"
    assert neutral("plain \N{SNOWMAN}") == "plain \N{SNOWMAN}"


def test_json_is_harmless_and_means_the_same() -> None:
    text = as_json({"x": EVIL + "\U000e0001"}, indent=2)
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == {"x": EVIL + "\U000e0001"}


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_log_on_a_terminal_keeps_its_lines_and_nothing_that_moves(size: int) -> None:
    out = io.BytesIO()
    source = Writer(out, terminal=True).source("")
    written = "one\r\n\ttwo\x1b[2J \N{SNOWMAN}\n".encode() + b"\xff."
    for start in range(0, len(written), size):
        source.feed(written[start : start + size])
    source.close()
    shown = out.getvalue().decode()
    assert shown.replace("\\x0d", "") == "one\n\ttwo\\x1b[2J \N{SNOWMAN}\n\\xff."


def test_a_log_elsewhere_is_passed_on_byte_by_byte() -> None:
    out = io.BytesIO()
    source = Writer(out, terminal=False).source("")
    source.feed(b"\x1b[31m\xff\r\n")
    source.close()
    assert out.getvalue() == b"\x1b[31m\xff\r\n"
