"""Log files in a folder of the test's own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from branchd.adapters.logs import FileLogs
from tests.adapters.conformance_logs import KEY


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileLogs]:
    made = FileLogs(tmp_path / "logs")
    yield made
    await made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the files of the instance KEY are, once there are any."""
    return tmp_path / "logs" / KEY.app / KEY.name
