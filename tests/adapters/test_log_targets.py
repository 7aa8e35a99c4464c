"""Where output goes that is not in files, as the daemon's own does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from branchd.adapters.log_targets import inherited


@contextmanager
def standard_error(descriptor: int) -> Iterator[None]:
    """It is this process's meanwhile. Within a test: what captures its output changes it before and after."""
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_what_a_program_does_to_its_pipe_is_not_done_to_the_daemons() -> None:
    reading, writing = os.pipe()
    with standard_error(writing), inherited(joined=False) as (_, stderr):
        assert os.get_blocking(stderr)
        os.set_blocking(stderr, False)
        assert os.get_blocking(2)
        os.write(stderr, b"told")
    assert os.read(reading, 100) == b"told"
    os.close(reading)


def test_the_position_in_a_file_is_shared(tmp_path: Path) -> None:
    file = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT)
    with standard_error(file), inherited(joined=False) as (_, stderr):
        os.write(2, b"daemon ")
        os.write(stderr, b"program ")
        os.write(2, b"daemon")
    assert (tmp_path / "output").read_text() == "daemon program daemon"
