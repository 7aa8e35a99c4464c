"""One machine for all tests of a file, with the Debian package of this clone installed."""

from collections.abc import Iterator

import pytest

from tests.vm.machine import REPOSITORY, Machine
from tests.waiting import until_sync


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    package = max((REPOSITORY / "dist").glob("*.deb"), key=lambda file: file.stat().st_mtime)  # `make vm` built it
    with Machine(tmp_path_factory.mktemp("machine")) as it:
        it.boot()
        until_sync(lambda: it.tried("systemctl is-system-running")[1] == "running\n", 60)
        it.run(
            f"mount -t hostfs none /mnt -o {package.parent} && cp /mnt/{package.name} /root/branchd.deb && umount /mnt"
        )
        it.run("dpkg -i /root/branchd.deb && systemctl is-active branchd")
        yield it
