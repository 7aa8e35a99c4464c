"""branchctl logs: what is chosen of what instances wrote, of one and of several."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from branchd.cli.control import main
from tests.cli.test_following import Follower
from tests.running_daemon import RunningDaemon
from tests.waiting import until_sync

SCRIPT = "echo one apple; echo two; echo Three Apples; echo to stderr >&2; sleep 1000"


@pytest.fixture(scope="module")
def shop(daemon: RunningDaemon) -> Iterator[RunningDaemon]:
    def control(*arguments: str) -> None:
        result = ask(daemon, *arguments)
        assert result.exit_code == 0, result.output

    control("app", "set", "shop", "--json", '{"logs": {"stderr": "file"}}', "--", "sh", "-c", SCRIPT)
    control("create", "shop", "web-1")
    control("create", "shop", "web-2", "--json", '{"logs": {"stderr": "file", "format": "timestamped"}}')
    control("create", "shop", "away", "--json", '{"logs": {"to": "inherit"}}')
    for name in ("web-1", "web-2"):
        until_sync(lambda name=name: "to stderr" in ask(daemon, "logs", f"shop:{name}", "--stderr").stdout)
    yield daemon
    control("app", "rm", "shop", "--cascade")


def ask(daemon: RunningDaemon, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--url", daemon.url, *arguments])


def test_lines_with_a_text_of_several_instances(shop: RunningDaemon) -> None:
    told = ask(shop, "logs", "shop:web-*", "--grep", "APPLE", "-i").stdout.splitlines()
    assert told[:2] == ["shop:web-1 | one apple", "shop:web-1 | Three Apples"]
    assert [line.split("Z ")[1] for line in told[2:]] == ["one apple", "Three Apples"]
    assert ask(shop, "logs", "shop:web-1", "--grep", "apple", "-n", "1").stdout == "one apple\n"


def test_lines_since_a_time(shop: RunningDaemon) -> None:
    times = [line.split(" ")[0] for line in ask(shop, "logs", "shop:web-2").stdout.splitlines()]
    since = ask(shop, "logs", "shop:web-2", "--since", times[-1]).stdout
    assert len(since.splitlines()) == times.count(times[-1])
    assert len(ask(shop, "logs", "shop:web-2", "--since", "1h").stdout.splitlines()) == 3
    assert ask(shop, "logs", "shop:web-2", "--since", "0s").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("shop:web-1", "-i"), 2, "--ignore-case is for --grep"),
        (("shop:web-1", "--since", "yesterday"), 1, "is not a time"),
        (("shop:away",), 1, "goes where the daemon's own does"),
    ],
)
def test_what_cannot_be_read_is_told_in_words(
    shop: RunningDaemon, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = ask(shop, "logs", *arguments)
    assert words in result.stderr
    assert (result.exit_code != 0) == (code != 0)


def test_several_are_followed_at_once(shop: RunningDaemon, tmp_path: Path) -> None:
    follower = Follower(tmp_path, "--url", shop.url, "logs", "-f", "--stderr", "shop:web-*")
    try:
        until_sync(lambda: follower.out.count("to stderr") == 2, 60, "both")
        assert {line.split(" | ")[0] for line in follower.out.splitlines()} == {"shop:web-1", "shop:web-2"}
    finally:
        follower.end()
