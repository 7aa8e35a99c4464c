"""The branches that may be asked to take an instance, prepared once so that drawing some of them costs little."""

from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import accumulate

from branchd.core.admission import lacking
from branchd.core.peers import Announcement, BranchState

Chance = Callable[[], float]

#: sets of constraints whose branches are kept at hand
KEPT = 100

#: draws for each branch wanted that may hit one drawn already, before the rest is looked through one by one
MISSES = 8


class Candidates:
    """All that take instances, of a roster; a new one is made where the roster has changed."""

    def __init__(self, announcements: Iterable[Announcement]) -> None:
        self._up = [branch for branch in announcements if branch.state is BranchState.UP]
        self._fitting: dict[frozenset[tuple[str, str]], Fitting] = {}

    def fitting(self, constraints: Mapping[str, str]) -> "Fitting":
        """Those whose announced labels meet the constraints."""
        key = frozenset(constraints.items())
        found = self._fitting.get(key)
        if found is None:
            if len(self._fitting) >= KEPT:
                self._fitting.clear()
            found = Fitting(branch for branch in self._up if not lacking(constraints, branch.labels))
            self._fitting[key] = found
        return found


class Fitting:
    def __init__(self, branches: Iterable[Announcement]) -> None:
        self._branches = tuple(branches)
        self._sums = list(accumulate(branch.slots for branch in self._branches))
        self._groups: dict[str, list[Fitting]] = {}

    def __len__(self) -> int:
        return len(self._branches)

    def draw(
        self, count: int, without: Collection[str], chance: Chance, spread: str | None = None
    ) -> list[Announcement]:
        """Distinct branches, each drawn in proportion to its slots; all that there are where they are no more.

        `without`: ids of those that are not drawn. `spread`: a label; one of each of its values in turn.
        """
        if spread is not None and len(self) > count:
            return self._draw_in_turn(count, without, chance, self._by_value(spread))
        drawn: dict[str, Announcement] = {}
        if len(self) > count + len(without) and self._sums[-1]:
            for _ in range(MISSES * count):
                branch = self._branches[_pick(self._sums, chance)]
                if branch.id not in without and branch.id not in drawn:
                    drawn[branch.id] = branch
                    if len(drawn) == count:
                        return list(drawn.values())
        left = [branch for branch in self._branches if branch.id not in without and branch.id not in drawn]
        while left and len(drawn) < count:
            branch = left.pop(_pick(list(accumulate(branch.slots for branch in left)), chance))
            drawn[branch.id] = branch
        return list(drawn.values())

    def _draw_in_turn(
        self, count: int, without: Collection[str], chance: Chance, groups: list["Fitting"]
    ) -> list[Announcement]:
        drawn: dict[str, Announcement] = {}
        groups = sorted(groups, key=lambda _: chance())
        while groups and len(drawn) < count:
            group = groups.pop(0)
            if found := group.draw(1, without | drawn.keys(), chance):
                drawn[found[0].id] = found[0]
                groups.append(group)
        return list(drawn.values())

    def _by_value(self, label: str) -> list["Fitting"]:
        if label not in self._groups:
            by_value: dict[str, list[Announcement]] = {}
            for branch in self._branches:
                by_value.setdefault(branch.labels.get(label, ""), []).append(branch)
            self._groups[label] = [Fitting(branches) for branches in by_value.values()]
        return self._groups[label]


def _pick(sums: list[int], chance: Chance) -> int:
    """An index, in proportion to the sizes that these are the running sums of."""
    return min(bisect(sums, chance() * sums[-1]), len(sums) - 1)
