"""branchctl on a real terminal, and at the end of a pipe that breaks."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.running_daemon import RunningDaemon
from tests.waiting import until_sync

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PROGRAM = [sys.executable, "-c", "from branchd.cli.control import main; main()"]


class Terminal:
    """Runs branchctl on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._reading, writing = pty.openpty()
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments], stdin=writing, stdout=writing, stderr=writing, start_new_session=True
        )
        os.close(writing)
        self.shown = ""

    def read_until(self, words: str) -> None:
        until_sync(lambda: words in self._read(), 60, f"{words} is shown")

    def type(self, text: str) -> None:
        os.write(self._reading, text.encode())

    def end(self) -> int:
        until_sync(lambda: self._read() and self.process.poll() is not None, 60, "it ends")
        self._read()
        os.close(self._reading)
        return self.process.returncode

    def _read(self) -> str:
        os.set_blocking(self._reading, False)
        try:
            while piece := os.read(self._reading, 65536):
                self.shown += piece.decode().replace("\r\n", "\n")
        except OSError:  # nothing yet, or the other end is closed
            pass
        return self.shown


@pytest.fixture
def url(daemon: RunningDaemon) -> Iterator[str]:
    def call(*arguments: str) -> None:
        subprocess.run([*PROGRAM, "--url", daemon.url, *arguments], check=True, stdout=subprocess.DEVNULL)

    call("app", "set", "shop", "--", "sh", "-c", r"printf 'hi\033[2J\n'; sleep 1000")
    call("create", "shop", "a-name-that-is-rather-long-for-a-terminal-of-80-columns")
    yield daemon.url
    call("app", "rm", "shop", "--cascade")


def test_a_table_has_colours_and_never_cuts_a_name(url: str) -> None:
    terminal = Terminal("--url", url, "ps", "-o", "wide")
    assert terminal.end() == 0
    assert COLOUR.search(terminal.shown)
    assert "shop:a-name-that-is-rather-long-for-a-terminal-of-80-columns" in terminal.shown
    assert "RUNNING" in terminal.shown
    assert "…" not in terminal.shown


def test_a_log_cannot_drive_the_terminal_and_interrupting_it_is_quiet(url: str) -> None:
    terminal = Terminal("--url", url, "logs", "-f", "shop:*")
    terminal.read_until("hi")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert terminal.shown == "hi\\x1b[2J\n"


@pytest.mark.parametrize(
    ("redirection", "arguments", "words"),
    [
        (">/dev/full", "ps", "No space left on device"),
        (">/dev/full", "logs shop:*", "No space left on device"),
        (">/dev/full", "create shop", "No space left on device"),
        (">&-", "ps", "the standard output is closed"),
        (">&-", "logs shop:*", "the standard output is closed"),
    ],
)
def test_an_output_that_takes_nothing_is_told_in_one_line(
    url: str, redirection: str, arguments: str, words: str
) -> None:
    line = f"exec \"$0\" -c 'from branchd.cli.control import main; main()' --url {url} {arguments} {redirection}"
    result = subprocess.run(["sh", "-fc", line, sys.executable], check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_closed_input_is_an_empty_one(url: str) -> None:
    line = f"exec \"$0\" -c 'from branchd.cli.control import main; main()' --url {url} create shop x -f - <&-"
    result = subprocess.run(["sh", "-c", line, sys.executable], check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert "not JSON" in result.stderr


def test_a_name_that_is_no_text_is_told_in_words(url: str) -> None:
    result = subprocess.run([*PROGRAM, "--url", url, "show", b"shop:\xff"], check=False, capture_output=True)
    assert result.returncode == 2
    assert b"Traceback" not in result.stderr


def test_a_reader_that_goes_away_ends_it_without_words(url: str) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "--url", url, "ps"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(60) == 1
    process.stderr.close()


@pytest.mark.parametrize(("answer", "arguments"), [("n\n", ()), ("\x04", ("-o", "json"))], ids=["no", "end of input"])
def test_the_end_of_a_daemon_is_asked_for_twice(url: str, answer: str, arguments: tuple[str, ...]) -> None:
    terminal = Terminal("--url", url, "branch", "shutdown", "here", *arguments)
    terminal.read_until("End the daemon of branch here, and all that it runs? [y/N]")
    terminal.type(answer)
    assert terminal.end() == 1
    assert "Aborted!" in terminal.shown
    subprocess.run([*PROGRAM, "--url", url, "whoami"], check=True, stdout=subprocess.DEVNULL)
