"""What an import asks of the machine that it runs on: it looks, and changes and executes nothing.

Only findings and the place of a Celery's interpreter depend on it; a test brings a machine of its own.
"""

import os
import pwd
import shutil
from pathlib import Path
from typing import Protocol

#: bytes of a script that are looked at
_LONGEST_SCRIPT = 64 << 10


class Machine(Protocol):
    def which(self, program: str, path: str) -> str | None:
        """Where the program is in the folders of `path`."""

    def script(self, path: str) -> tuple[str, ...] | None:
        """The lines of a script, the one with its interpreter first; None for anything else."""

    def has_user(self, name: str) -> bool: ...

    def account(self, number: int) -> str | None:
        """Its name."""

    def has_folder(self, path: str) -> bool: ...


class ThisMachine:
    def which(self, program: str, path: str) -> str | None:
        return shutil.which(program, path=path)

    def script(self, path: str) -> tuple[str, ...] | None:
        try:
            if not Path(path).is_file():  # a FIFO would be waited for
                return None
            with open(path, "rb") as file:
                content = file.read(_LONGEST_SCRIPT)
        except (OSError, ValueError):
            return None
        return tuple(content.decode(errors="replace").splitlines()) if content.startswith(b"#!") else None

    def has_user(self, name: str) -> bool:
        try:
            pwd.getpwnam(name)
        except (KeyError, ValueError):
            return False
        return True

    def account(self, number: int) -> str | None:
        try:
            return pwd.getpwuid(number).pw_name
        except (KeyError, OverflowError):
            return None

    def has_folder(self, path: str) -> bool:
        try:
            return os.path.isdir(path)
        except ValueError:
            return False
