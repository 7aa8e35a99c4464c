"""The order in which supervisord starts: groups by their priority, and in each its processes. Here it is one number."""

from collections.abc import Iterable

from branchd.cli.importing.supervisord import Process

#: of an instance
_MOST = 1_000_000

#: between two numbers that are made up, so that there is room for one more
_STEP = 10


def priorities(processes: Iterable[Process]) -> dict[tuple[str, str], int]:
    """(group, process) -> its number: the process's own, or its group's, wherever these keep supervisord's order."""
    places = {(one.group, one.name): (one.group_priority, one.priority) for one in processes}
    ranked = sorted(set(places.values()))
    for which in (1, 0):
        own = [min(place[which], _MOST) for place in ranked]
        if own == sorted(own) and len(set(own)) == len(own) and own[:1] >= [0]:
            return {name: min(place[which], _MOST) for name, place in places.items()}
    numbers = {place: (index + 1) * _STEP for index, place in enumerate(ranked)}
    return {name: min(numbers[place], _MOST) for name, place in places.items()}
