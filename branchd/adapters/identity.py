"""What a state folder is known by: the machine that it is on, and the folder itself. Reads only; what follows from a
difference is branch/identity.py's.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from branchd.branch.identity import Mark


def marks(state: Path, root: Path = Path("/")) -> Mapping[Mark, str]:
    """Those that can be read: a container often has no machine id, and only root may read the hardware's.

    `root`: where /etc, /sys and /dev are.
    """
    folder = state.stat()
    found = {
        Mark.MACHINE: _line(root / "etc/machine-id"),
        Mark.HARDWARE: _line(root / "sys/class/dmi/id/product_uuid").lower(),
        Mark.FILE_SYSTEM: file_system(folder.st_dev, root),
        Mark.FOLDER: str(folder.st_ino),
    }
    # "uninitialized" stands in the image of a machine that has not been started yet.
    return {mark: value for mark, value in found.items() if value not in ("", "uninitialized")}


def file_system(device: int, root: Path = Path("/")) -> str:
    """UUID of the file system on a block device, "" where it is not told.

    The device's own number is of no use: it may be another one after each start of the machine.
    """
    try:
        for link in (root / "dev/disk/by-uuid").iterdir():
            try:
                if link.stat().st_rdev == device:
                    return link.name
            except OSError:
                continue  # its device went away
    except OSError:
        pass
    return ""


def _line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return os.fsdecode(file.read(100)).strip()
    except OSError:
        return ""
