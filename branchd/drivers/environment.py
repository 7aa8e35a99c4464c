"""What every program is started with, whatever its kind: an environment built from nothing, a directory, an account."""

from collections.abc import Mapping
from typing import Protocol

from branchd.core.spec import Secret, Spec
from branchd.core.values import Key, Launch, QueueDeclaration

#: what a login on Debian has; the daemon's own PATH never leaks
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Place(Protocol):
    """One start of one instance (branch/ports.py: Start)."""

    @property
    def key(self) -> Key: ...
    @property
    def spec(self) -> Spec: ...
    @property
    def queues(self) -> tuple[QueueDeclaration, ...] | None: ...
    @property
    def node_name(self) -> str: ...
    @property
    def home(self) -> str: ...
    @property
    def account(self) -> str: ...
    @property
    def environment(self) -> Mapping[str, str]: ...


def base_launch(place: Place, argv: tuple[str, ...], extra: Mapping[str, str] | None = None) -> Launch:
    """The spec's environment beats `extra`, that its file's, and that what every program gets."""
    spec = place.spec
    given = {name: value.secret if isinstance(value, Secret) else value for name, value in spec.env.items()}
    basis = {"PATH": PATH, "HOME": place.home, "USER": place.account, "LOGNAME": place.account, "LANG": "C.UTF-8"}
    return Launch(
        argv=argv,
        directory=spec.directory or "/",
        env={**basis, **place.environment, **(extra or {}), **given},
        user=spec.user,
        group=spec.group,
        umask=None if spec.umask is None else int(spec.umask, 8),
        limits=spec.limits,
    )
