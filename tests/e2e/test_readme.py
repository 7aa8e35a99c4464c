"""README and pages tell the truth: what they show between `<!-- run -->` and `<!-- end -->` is run as it stands there.

Of each ```console block the lines that begin with `$ ` are commands, in one bash for the whole page, in a home of its
own; a line that ends with a backslash goes on in the next, and so does a here-document, whose lines begin with `> `.
What the other lines show is for readers. A command that fails ends it, unless the page says so with `|| ...`. PORT is a
free one, for pages that listen on TCP; BROKER is the URL of a RabbitMQ, for pages that say that one is needed.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.free_port import free_port
from tests.rabbitmq import RabbitMQ
from tests.waiting import until_sync

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/spec.md", "docs/http.md", "docs/operating.md", "docs/migrating.md")

RUN = re.compile(r"^<!-- run -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Each command of the blocks that are to be run, whole."""
    found: list[str] = []
    for part in RUN.findall(text):
        for block in BLOCK.findall(part):
            goes_on = False
            for line in block.splitlines():
                if line.startswith("$ "):
                    found.append(line[2:])
                elif goes_on or line.startswith("> "):
                    found[-1] += "\n" + line.removeprefix("> ")
                else:
                    continue
                goes_on = line.endswith("\\")
    return found


def test_only_commands_of_marked_blocks_count() -> None:
    text = """\
```console
$ not this one
```
<!-- run -->
```console
$ first --with \\
    a tail
what it shows
$ second <<END
> in
> END
shown
```
```toml
$ = "nor this"
```
<!-- end -->
"""
    assert commands(text) == ["first --with \\\n    a tail", "second <<END\nin\nEND"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_works(page: str, folder: Path, rabbitmq: RabbitMQ) -> None:
    found = commands((ROOT / page).read_text())
    assert found, "it marks nothing to be run: ```console blocks between <!-- run --> and <!-- end -->"
    home = folder / "home"
    (home / "run").mkdir(parents=True, mode=0o700)
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "LANG": "C.UTF-8", "TMPDIR": str(home),
        "PORT": str(free_port()), "BROKER": rabbitmq.url,
    }  # fmt: skip
    script = "set -eo pipefail\n" + "\n".join(found) + "\n"
    with (home / "output").open("w+b") as output:
        # A file, for a pipe would be held open by what the page starts in the background.
        shell = subprocess.Popen(
            ["bash", "-xc", script], cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = shell.wait(240)
            left = writing_below(home)
        finally:
            until_sync(lambda: not ended(writing_below(home)), 20)
            shell.wait()
        output.seek(0)
        assert code == 0, output.read().decode(errors="replace")
        assert left == [], "the page leaves nothing running"


def writing_below(home: Path) -> list[int]:
    """The pids of the shell, of what it started, and of what that started: their output goes to files there."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(os.readlink(f"/proc/{pid}/fd/1")).is_relative_to(home):
                found.append(int(pid))
    return found


def ended(pids: list[int]) -> list[int]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids
