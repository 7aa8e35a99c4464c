"""`branchd demo`: the tour holds on either broker, and nothing is left of it, however it ends."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from branchd.cli.demo.steps import Failed, Voice, until
from tests.rabbitmq import RabbitMQ
from tests.waiting import until_sync

#: seconds for a tour and for its end; on an idle machine it takes 20
PATIENCE = 150


class Demo:
    """`branchd demo` whose folder is made in `folder`; what it prints goes to a file, for a pipe could fill."""

    def __init__(self, folder: Path, output: Path, *arguments: str) -> None:
        self.folder = folder
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "branchd.cli.daemon", "demo", *arguments],
                env=os.environ | {"TMPDIR": str(folder)}, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def comes_to(self, words: str) -> None:
        def printed() -> bool:
            assert self.process.poll() is None, self.output
            return words in self.output

        until_sync(printed, PATIENCE, words)

    def ends(self) -> int:
        return self.process.wait(PATIENCE)

    def leaves(self) -> list[str]:
        """Files and processes. What was killed has a moment to be gone."""
        with suppress(AssertionError):
            until_sync(lambda: not self._left(), 10)
        return self._left()

    def _left(self) -> list[str]:
        return [str(path) for path in self.folder.iterdir()] + [
            f"process {pid}: {_arguments(pid)}" for pid in processes_of(self.folder)
        ]


def processes_of(folder: Path) -> list[int]:
    """Those that work in the folder, or have its name in their arguments or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            texts = [str((process / "cwd").readlink())]
            texts += [(process / name).read_text(errors="replace") for name in ("cmdline", "environ")]
            if any(str(folder) in text for text in texts):
                found.append(int(process.name))
    return found


@pytest.fixture
def place(folder: Path) -> Iterator[Path]:
    """A folder that is short, for unix sockets stand in it; every process of it is ended."""
    path = folder / "t"
    path.mkdir()
    yield path
    for pid in processes_of(path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_tour_holds_without_a_server(place: Path, tmp_path: Path) -> None:
    demo = Demo(place, tmp_path / "output", "--exit")
    assert demo.ends() == 0, demo.output
    assert "Every step held." in demo.output
    assert demo.leaves() == []


def test_the_tour_holds_on_rabbitmq(place: Path, tmp_path: Path, rabbitmq: RabbitMQ) -> None:
    demo = Demo(place, tmp_path / "output", "--exit", "--broker", rabbitmq.url)
    assert demo.ends() == 0, demo.output
    assert "Every step held." in demo.output
    assert rabbitmq.url not in demo.output
    assert demo.leaves() == []


def test_the_tour_of_a_neighbourhood_holds_without_a_server(place: Path, tmp_path: Path) -> None:
    demo = Demo(place, tmp_path / "output", "--branches", "3", "--exit")
    assert demo.ends() == 0, demo.output
    assert "Every step held." in demo.output
    assert '"unreachable": ["ash"]' in demo.output
    assert demo.leaves() == []


def test_the_tour_of_a_neighbourhood_holds_on_rabbitmq(place: Path, tmp_path: Path, rabbitmq: RabbitMQ) -> None:
    demo = Demo(place, tmp_path / "output", "--branches", "2", "--exit", "--broker", rabbitmq.url)
    assert demo.ends() == 0, demo.output
    assert "Every step held." in demo.output
    assert rabbitmq.url not in demo.output
    assert demo.leaves() == []


@pytest.mark.parametrize("number", ["1", "6", "many"])
def test_a_neighbourhood_has_two_to_five_branches(place: Path, tmp_path: Path, number: str) -> None:
    demo = Demo(place, tmp_path / "output", "--branches", number, "--exit")
    assert demo.ends() == 2, demo.output
    assert "Invalid value for '--branches'" in demo.output
    assert number in demo.output
    assert demo.leaves() == []


def test_an_interrupted_tour_of_a_neighbourhood_stops_all_its_branches(place: Path, tmp_path: Path) -> None:
    demo = Demo(place, tmp_path / "output", "--branches", "3", "--exit")
    demo.comes_to('"unreachable": ["ash"]')  # killed, while what it ran goes on
    demo.process.send_signal(signal.SIGINT)
    assert demo.ends() == 130, demo.output
    assert "nothing is left" in demo.output
    assert demo.leaves() == []


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGINT, "> branchd run"),
        (signal.SIGINT, "shop:mail-1  RUNNING"),
        (signal.SIGTERM, "shop:mail-1  RUNNING"),
    ],
)
def test_an_interrupted_tour_cleans_up(place: Path, tmp_path: Path, number: signal.Signals, when: str) -> None:
    demo = Demo(place, tmp_path / "output", "--exit")
    demo.comes_to(when)
    demo.process.send_signal(number)
    assert demo.ends() == 130, demo.output
    assert demo.leaves() == []


def test_a_second_interrupt_kills_what_still_runs(place: Path, tmp_path: Path) -> None:
    demo = Demo(place, tmp_path / "output", "--exit")
    demo.comes_to("shop:mail-1  RUNNING")
    demo.process.send_signal(signal.SIGINT)
    demo.comes_to("cleaning up")
    demo.process.send_signal(signal.SIGINT)
    assert demo.ends() == 130, demo.output
    assert demo.leaves() == []


def test_a_tour_whose_daemon_dies_fails_and_cleans_up(place: Path, tmp_path: Path) -> None:
    demo = Demo(place, tmp_path / "output", "--exit")
    demo.comes_to("shop:mail-1  RUNNING")
    daemon = next(pid for pid in processes_of(place) if "branchd.cli.daemon\0run" in _arguments(pid))
    os.kill(daemon, signal.SIGKILL)
    assert demo.ends() == 1, demo.output
    assert "FAILED" in demo.output
    assert demo.leaves() == []


def test_a_tour_that_fails_tells_the_last_words_of_each_branch(place: Path, tmp_path: Path) -> None:
    demo = Demo(place, tmp_path / "output", "--branches", "2", "--exit")
    demo.comes_to("POST /v1/apps/shop/instances")
    daemon = next(pid for pid in processes_of(place) if "--name\0elm" in _arguments(pid))
    os.kill(daemon, signal.SIGKILL)
    assert demo.ends() == 1, demo.output
    assert "FAILED" in demo.output
    assert "the last words of the daemon of oak:" in demo.output
    assert "the last words of the daemon of elm:" in demo.output
    assert demo.leaves() == []


def test_a_step_that_does_not_hold_makes_the_tour_fail() -> None:
    # A path too long for a unix socket: the daemon ends at once.
    with tempfile.TemporaryDirectory(prefix="x" * 90) as name, tempfile.TemporaryDirectory() as other:
        demo = Demo(Path(name), Path(other) / "output", "--exit")
        assert demo.ends() == 1, demo.output
        assert "FAILED: the daemon ended with" in demo.output
        assert demo.leaves() == []


def _arguments(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def test_a_claim_that_is_not_true_fails() -> None:
    with pytest.raises(Failed, match="the sun is green"):
        Voice().holds(False, "the sun is green")


async def test_what_does_not_come_in_time_fails() -> None:
    async def never() -> bool:
        return False

    with pytest.raises(Failed, match=r"waited 0\.01 s for Godot"):
        await until(never, 0.01, "Godot")
