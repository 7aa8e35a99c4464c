"""What `branchd check` says of definitions in files: what the daemon would say of them, without one."""

import os
import pwd
from pathlib import Path

from branchd.branch.file_definitions import faults
from branchd.branch.world import Policies
from branchd.cli import places
from branchd.cli.config import Config
from branchd.cli.definition_files import read
from branchd.core.errors import Fault


def definition_faults(file: Path | None, config: Config | None) -> tuple[Fault, ...]:
    """`file`: the main one, as given. `config`: None where it is wrong itself; then nobody knows who may run what."""
    main = file or places.config(os.environ, os.geteuid() == 0)
    if file is None and not main.exists():
        return ()
    policies = Policies("", {}, None, "", None, None)
    if config is not None:
        policies = Policies(
            config.branch.name, {}, None, config.branch.node_name, config.auth.default_user, config.auth.allow_users
        )
    return faults(read(main.absolute()), policies, _own_account())


def _own_account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())  # a container's user often has a number alone
