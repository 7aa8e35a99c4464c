"""What in a configuration is no fault, and yet probably not what was meant. It is told, and nothing is refused."""

import difflib
import pwd
from collections.abc import Iterator, Mapping

from branchd.cli.config import KEYS, Config
from branchd.cli.sources import variable

#: variables of ours that are no keys: what branchctl reads, and what the daemon gives to what it starts
_OTHERS = ("BRANCHD_CONFIG", "BRANCHD_URL", "BRANCHD_TOKEN", "BRANCHD_AGENT", "BRANCHD_SPAWN")


def doubts(config: Config, environment: Mapping[str, str]) -> Iterator[str]:
    known = {*(variable(key) for keys in KEYS.values() for key in keys), *_OTHERS}
    for name in sorted(environment):
        if name.startswith("BRANCHD_") and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            yield f"the variable {name} means nothing" + (f"; did you mean {close[0]}?" if close else "")
    users = {"default_user": [config.auth.default_user or ""], "allow_users": config.auth.allow_users or ()}
    for key, names in users.items():
        for user in filter(None, names):
            try:
                pwd.getpwnam(user)
            except KeyError:
                yield f"[auth].{key}: there is no user {user} on this machine"
