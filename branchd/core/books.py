"""What a branch has offered to others by itself: what it adds to what they told of their room.

It says nothing about what they hold: they tell, and they have the last word (admission.py).
"""

from collections import Counter

from branchd.core.admission import Probe


class Books:
    """What this branch offered, and the targets may not have counted yet when they told their room.

    Shared by all the creates of a branch, so that those at work at one time do not herd to one target.
    """

    def __init__(self) -> None:
        self._offered: Counter[tuple[str, str]] = Counter()  #: by branch and app; by branch alone: its weight
        self._kept: Counter[tuple[str, str]] = Counter()  #: of these, what was accepted

    def offer(self, branch: str, probe: Probe) -> None:
        self._add(self._offered, branch, probe, 1)

    def keep(self, branch: str, probe: Probe) -> None:
        self._add(self._kept, branch, probe, 1)

    def drop(self, branch: str, probe: Probe) -> None:
        self._add(self._offered, branch, probe, -1)

    def mark(self, branch: str, app: str) -> int:
        """To be taken before the branch is asked: what was accepted by then is in its answer."""
        return self._kept[branch, app]

    def since(self, branch: str, app: str, mark: int) -> int:
        return self._offered[branch, app] - mark

    def _add(self, counts: Counter[tuple[str, str]], branch: str, probe: Probe, sign: int) -> None:
        counts[branch, ""] += sign * probe.weight
        if probe.spread is not None:  # only then somebody asks
            counts[branch, probe.app] += sign
