"""Where the daemon keeps its things when nobody says otherwise; both commands ask here, so that they find each other.

Nothing is created. Imported by branchctl, whose start-up time counts: nothing heavy.
"""

import os
from collections.abc import Mapping
from pathlib import Path

#: the machine's configuration
CONFIG = Path("/etc/branchd/branchd.toml")

#: loopback, beside the unix socket; a token is needed there
ADDRESS = "127.0.0.1:8710"

SOCKET = "api.sock"


def config(environment: Mapping[str, str], root: bool) -> Path:
    """Read where it exists and no other is named: a unit has it where ConfigurationDirectory= says."""
    if folders := environment.get("CONFIGURATION_DIRECTORY"):
        named = [Path(folder) / CONFIG.name for folder in folders.split(":")]
        return next(filter(os.path.exists, named), named[0])
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    own = Path(home) / "branchd" / CONFIG.name
    return own if not root and os.path.exists(own) else CONFIG  # HOME may be another's, whose folders are closed


def state(environment: Mapping[str, str], root: bool) -> Path:
    if root:
        return Path("/var/lib/branchd")
    home = environment.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(home) / "branchd"


def run(environment: Mapping[str, str], root: bool, state: Path) -> Path:
    if root:
        return Path("/run/branchd")
    runtime = environment.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "branchd" if runtime else state / "run"


def logs(root: bool, state: Path) -> Path:
    """Beside the state wherever that was moved, so that two daemons of one machine do not share a folder."""
    if root and state == Path("/var/lib/branchd"):
        return Path("/var/log/branchd")
    return state / "logs"
