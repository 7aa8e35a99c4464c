import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.branch import RunningBranch
from tests.e2e.programs import Programs

Maker = Callable[..., RunningBranch]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for unix sockets stand in it."""
    path = Path(tempfile.mkdtemp(prefix="br-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def programs(folder: Path) -> Iterator[Programs]:
    programs = Programs(folder)
    yield programs
    programs.end()


@pytest.fixture
def make_branch(folder: Path) -> Iterator[Maker]:
    """Makes branches that are not started yet, and ends what they ran."""
    made: list[RunningBranch] = []

    def make(*arguments: str, where: Path | None = None, **options: object) -> RunningBranch:
        branch = RunningBranch(where or folder, *arguments, **options)  # type: ignore[arg-type]
        made.append(branch)
        return branch

    yield make
    for branch in made:
        branch.clean_up()


@pytest.fixture
async def branch(make_branch: Maker) -> RunningBranch:
    return await make_branch().start()
