"""In what order instances start and stop: what each depends on, what keeps it from being started, and who stops first.

Names and counts alone; when something is told of it, and to whom, is branch/order.py's.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import chain, islice

from branchd.core.value import Value
from branchd.core.values import Key

#: dependencies that a reason names; of more it says that there are others
MOST_NAMED = 3


class Every(Value):
    """All instances of an app, of which there must be one at least: `APP:*`."""

    app: str

    def __str__(self) -> str:
        return f"{self.app}:*"


Dependency = Key | Every


def dependencies(app: str, depends_on: Sequence[str]) -> tuple[Dependency, ...]:
    """What a spec of that app names; its texts are valid."""
    found: list[Dependency] = []
    for text in depends_on:
        of, _, name = text.rpartition(":")
        found.append(Every(of or app) if name == "*" else Key(of or app, name))
    return tuple(found)


class Standing(Enum):
    """How one that others depend on stands; the value tells it apart."""

    READY = "ready"
    COMING = "wanted up, and not ready now"
    HELD = "waiting for what it depends on itself"
    FATAL = "FATAL"
    EXITED = "EXITED"
    DOWN = "not wanted up"
    MISSING = "not there"


#: what is said after the name of one that will not be ready by itself; of others, that they are waited for to be ready
_TROUBLE = {
    Standing.FATAL: "which is FATAL",
    Standing.EXITED: "which has EXITED",
    Standing.DOWN: "which is not wanted up",
    Standing.MISSING: "which does not exist",
}

#: how the reason of one ends that waits for itself
_CURE = "change that, then start it"


class Hold(Value):
    """Why an instance may not be started now; `for_ever`: because it waits for itself."""

    reason: str
    for_ever: bool = False


class Standings:
    """How every instance of the branch stands.

    An app may have thousands, and thousands may wait for all of them: what is asked of all costs as much as it says.
    """

    def __init__(self) -> None:
        self._all: dict[Key, Standing] = {}
        self._apps: dict[str, dict[Standing, dict[Key, None]]] = {}  #: the same, by app

    def change(self, key: Key, standing: Standing) -> bool:
        """Whether that is news."""
        before = self._all.get(key, Standing.MISSING)
        if standing is before:
            return False
        self._all.pop(key, None)
        if before is not Standing.MISSING:
            del self._apps[key.app][before][key]
        if standing is not Standing.MISSING:
            self._all[key] = standing
            self._apps.setdefault(key.app, {}).setdefault(standing, {})[key] = None
        elif key.app in self._apps and not any(self._apps[key.app].values()):
            del self._apps[key.app]
        return True

    def hold(self, key: Key, needs: Callable[[Key], Sequence[Dependency]]) -> Hold | None:
        """What keeps it from being started; None: nothing. `needs`: of each, what it depends on."""
        found = dict(islice(self._missing(needs(key)), MOST_NAMED + 1))
        if not found:
            return None

        def blocked(one: Key) -> Sequence[Dependency]:
            stuck = one == key or self._all.get(one) in (Standing.HELD, Standing.FATAL)
            return needs(one) if stuck else ()

        way = circle(key, blocked, lambda app: [*self._which(app, Standing.HELD, Standing.FATAL), *_own(key, app)])
        return Hold(f"{circle_words(way)}; {_CURE}", for_ever=True) if way else Hold(_words(found))

    def _missing(self, needed: Iterable[Dependency]) -> Iterator[tuple[Dependency, Standing]]:
        for one in needed:
            if isinstance(one, Key):
                standing = self._all.get(one, Standing.MISSING)
                if standing is not Standing.READY:
                    yield one, standing
            elif one.app not in self._apps:
                yield one, Standing.MISSING
            else:
                unready = [standing for standing in Standing if standing is not Standing.READY]
                yield from ((key, self._all[key]) for key in self._which(one.app, *unready))

    def _which(self, app: str, *standings: Standing) -> Iterator[Key]:
        known = self._apps.get(app, {})
        return chain.from_iterable(known.get(standing, ()) for standing in standings)


def _own(key: Key, app: str) -> tuple[Key, ...]:
    return (key,) if key.app == app else ()


def _words(missing: Mapping[Dependency, Standing]) -> str:
    shown = list(missing.items())[:MOST_NAMED]
    parts = [f"{one}, {_TROUBLE[standing]}" for one, standing in shown if standing in _TROUBLE]
    if coming := ", ".join(str(one) for one, standing in shown if standing not in _TROUBLE):
        parts.append(f"{coming} to be ready")
    return f"waits for {'; '.join(parts)}{'; and others' if len(missing) > len(shown) else ''}"


def circle(
    start: Key, needs: Callable[[Key], Sequence[Dependency]], of: Callable[[str], Iterable[Key]]
) -> tuple[Key, ...]:
    """A shortest way from it back to itself by what each needs, itself first; empty where there is none.

    `of`: the instances of an app.
    """
    by: dict[Key, Key] = {}  #: which one led to it
    apps: set[str] = set()
    queue = deque([start])
    while queue:
        key = queue.popleft()
        for one in needs(key):
            if isinstance(one, Every):
                if one.app in apps:
                    continue
                apps.add(one.app)
            for found in of(one.app) if isinstance(one, Every) else (one,):
                if found == start:
                    return _way(start, key, by)
                if found not in by:
                    by[found] = key
                    queue.append(found)
    return ()


def _way(start: Key, last: Key, by: Mapping[Key, Key]) -> tuple[Key, ...]:
    way = [last]
    while way[-1] != start:
        way.append(by[way[-1]])
    return tuple(reversed(way))


def circle_words(way: Sequence[Key]) -> str:
    """Of a circle that is none of the empty ones."""
    if len(way) == 1:
        return f"{way[0]} depends on itself"
    return f"{way[0]} depends on {', which depends on '.join(map(str, (*way[1:], way[0])))}"


class StopOrder:
    """Who is stopped when all are: each when those that depend on it have ended, and those of a higher priority.

    Dependence beats priority: what others need counts as having at most theirs.
    """

    def __init__(self, priorities: Mapping[Key, int], needs: Mapping[Key, Iterable[Key]]) -> None:
        """Of those that run; `needs` may name others too."""
        self._needs = {key: {one for one in needs.get(key, ()) if one in priorities} - {key} for key in priorities}
        self._dependents = dict.fromkeys(priorities, 0)  #: of each, how many have not ended
        for needed in self._needs.values():
            for one in needed:
                self._dependents[one] += 1
        groups: dict[int, set[Key]] = {}
        for key, priority in self._effective(priorities).items():
            groups.setdefault(priority, set()).add(key)
        self._groups = [groups[priority] for priority in sorted(groups)]  #: the last is stopped first
        self._waiting: set[Key] = set()  #: of the group that is being stopped
        self._under_way: set[Key] = set()

    def _effective(self, priorities: Mapping[Key, int]) -> Mapping[Key, int]:
        found: dict[Key, int] = {}
        for key in sorted(priorities, key=lambda key: priorities[key]):
            reached = [key]
            while reached:
                one = reached.pop()
                if one not in found:
                    found[one] = priorities[key]
                    reached += self._needs[one]
        return found

    def first(self) -> list[Key]:
        """Who can be stopped at once."""
        return self._free(())

    def ended(self, key: Key) -> list[Key]:
        """Who can be stopped now that this one, of those that were named before, has ended."""
        self._under_way.discard(key)
        for one in self._needs[key]:
            self._dependents[one] -= 1
        return self._free(self._needs[key])

    def _free(self, candidates: Iterable[Key]) -> list[Key]:
        free = [key for key in candidates if key in self._waiting and not self._dependents[key]]
        while not free and not self._under_way and (self._waiting or self._groups):
            # A circle would wait for itself for ever.
            free = list(self._waiting)
            if not free:
                self._waiting = self._groups.pop()
                free = [key for key in self._waiting if not self._dependents[key]]
        self._waiting -= set(free)
        self._under_way |= set(free)
        return free
