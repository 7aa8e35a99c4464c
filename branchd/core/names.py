"""Two branches that hold one name: which of them keeps it, and how often the holders ask each other."""

from branchd.core.value import Value


class Holding(Value, order=True):
    """Of two the lesser stays: the earlier one, as far as clocks tell; the rest only makes all agree."""

    accepted_at: float  #: seconds since 1970, by the clock of the branch that accepted it
    request: str
    branch: str  #: id


#: questions a second of one branch, and of a whole neighbourhood: all may have reconnected at one time
MOST_ASKS = 10.0
MOST_ASKS_OF_ALL = 2000.0


def asks_per_second(branches: int) -> float:
    return min(MOST_ASKS, MOST_ASKS_OF_ALL / max(1, branches))
