"""Replicas of an app: which branch looks after them, and what is missing for good."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

#: seconds between two looks at one app's replicas
LOOK_EVERY = 30.0


def replica(app: str, index: int) -> str:
    return f"{app}-{index}"


def controller(app: str, branches: Iterable[str]) -> str | None:
    """The id of the branch that looks after the app; None of none.

    Rendezvous hashing: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates" (1998). When a branch
    goes, only the apps that it looked after get another.
    """
    return max(branches, key=lambda branch: hashlib.sha256(f"{app}\0{branch}".encode()).digest(), default=None)


class Controllers:
    """controller() of many apps, each worked out once for one list of branches: that takes a hash for each of them."""

    def __init__(self) -> None:
        self._branches: Sequence[str] = ()
        self._known: dict[str, str | None] = {}

    def of(self, app: str, branches: Sequence[str]) -> str | None:
        if branches != self._branches:
            self._branches, self._known = branches, {}
        if app not in self._known:
            self._known[app] = controller(app, branches)
        return self._known[app]


def missing(
    since: Mapping[str, float], wanted: Collection[str], present: Collection[str], now: float
) -> Mapping[str, float]:
    """Since when each wanted one has been missing, from what was known before and what was found now."""
    return {name: since.get(name, now) for name in wanted if name not in present}
