"""Environment files of instances, read by the daemon at each start of theirs; no value of one is ever told.

What the text means stands in core/environment_file.py.
"""

import os
import stat
from collections.abc import Mapping

from branchd.core.environment_file import parse
from branchd.core.errors import SpawnFailed

#: bytes; what the kernel takes as an environment is not much longer
LONGEST = 1 << 20


def read(path: str, credentials: str | None) -> Mapping[str, str]:
    """`credentials`: the folder of $CREDENTIALS_DIRECTORY, where a path without a slash is looked up. SpawnFailed."""
    if "/" not in path:
        if credentials is None:
            raise SpawnFailed(
                f"env_file {path} is a credential, and the daemon has none",
                "LoadCredential= in its unit gives it some; or write a path that begins with /",
            )
        path = os.path.join(credentials, path)
    try:
        # Without O_NONBLOCK a pipe in its place would keep the daemon waiting.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SpawnFailed(f"env_file {path} is not a regular file")
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise SpawnFailed(f"env_file {path} cannot be read: {error.strerror}") from None
    if len(content) > LONGEST:
        raise SpawnFailed(f"env_file {path} is longer than {LONGEST} bytes")
    try:
        found = parse(content.decode())
    except UnicodeDecodeError:
        raise SpawnFailed(f"env_file {path} is not UTF-8 text") from None
    except ValueError as error:
        raise SpawnFailed(f"env_file {path}: {error}") from None
    for name, value in found.items():
        if name.startswith("BRANCHD_"):
            raise SpawnFailed(f"env_file {path}: {name}: names that begin with BRANCHD_ are branchd's own")
        if "\0" in value:
            raise SpawnFailed(f"env_file {path}: {name} has a NUL byte, which cannot be passed to a program")
    return found
