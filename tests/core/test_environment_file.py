"""Environment files are read as systemd reads them, and what is wrong is told without what stands in them."""

import pytest

from branchd.core.environment_file import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=1", "1"),
        ("A=1\n", "1"),
        ("A=", ""),
        ("  A =  one two  \n", "one two"),
        ("A='  one \\n #two '\n", "  one \\n #two "),
        ('A="a\\"b\\$c\\n"\n', 'a"b$c\\n'),
        ('A="two\nlines"\n', "two\nlines"),
        ("A=one \\\n  two\n", "one   two"),
        ("A=it's\n", "it's"),
        ("A=a\\ b\\\\c\n", "a b\\c"),
        ("A='a' 'b'\n", "ab"),
        ("A=a # b\n", "a # b"),
        ("A=amqp://u:p%40=x@h//\n", "amqp://u:p%40=x@h//"),
        ("A=old\nA=new", "new"),
        ("A=x\\", "x"),
    ],
)
def test_values_are_read_as_systemd_reads_them(text: str, value: str) -> None:
    assert parse(text) == {"A": value}


def test_comments_and_empty_lines_say_nothing() -> None:
    assert parse("# A=1\n\n; B=2\n  # C=3 \\\nD=4\r\n") == {"D": "4"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A=1\nexport B\n", "line 2 is not NAME=VALUE"),
        ("A=1\n\nexport B=s3cret\n", "line 3 does not begin with a name"),
        ("9=s3cret", "line 1 does not begin with a name"),
        ("A=1\nB='s3cret\nC=2\n", "a quote of line 2 is not closed"),
    ],
)
def test_what_is_wrong_is_told_by_its_line_and_without_its_content(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        parse(text)
    assert "s3cret" not in str(caught.value)
