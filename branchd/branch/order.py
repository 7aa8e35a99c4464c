"""The order of this branch's instances: who waits for whom to be ready, and who is told when that changes.

Which order it is, is decided in core/ordering.py; nobody looks again by himself.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from branchd.branch.supervisor import Supervisor
from branchd.core.errors import Fault, Invalid
from branchd.core.lifecycle import State
from branchd.core.ordering import (
    Dependency,
    Every,
    Hold,
    Standing,
    Standings,
    StopOrder,
    circle,
    circle_words,
    dependencies,
)
from branchd.core.spec import Spec, Wanted
from branchd.core.values import Key


class Order:
    def __init__(self, find: Callable[[Key], Supervisor | None], of: Callable[[str], Iterable[Supervisor]]) -> None:
        """`find` and `of`: the branch's instances by name, and those of an app."""
        self._find = find
        self._of = of
        self._standings = Standings()
        self._waiting: dict[Key, tuple[Dependency, ...]] = {}
        self._waiting_for: dict[Dependency, dict[Key, None]] = {}

    def hold(self, supervisor: Supervisor) -> Hold | None:
        """Why it may not be started now; None where it may."""
        return self._standings.hold(supervisor.key, self._needs) if supervisor.spec.depends_on else None

    def look(self, supervisor: Supervisor) -> None:
        """It is another than it was, or new, or gone; those that wait for it are told."""
        key = supervisor.key
        here = self._find(key) is supervisor
        self._note(key, self._needs(key) if here and supervisor.machine.held else ())
        if self._standings.change(key, _standing(supervisor) if here else Standing.MISSING):
            for one in (*self._waiting_for.get(key, ()), *self._waiting_for.get(Every(key.app), ())):
                if (waiting := self._find(one)) is not None:
                    waiting.reconsider()

    def _note(self, key: Key, needed: tuple[Dependency, ...]) -> None:
        """That it waits for these; none: it does not wait."""
        before = self._waiting.pop(key, ())
        if needed:
            self._waiting[key] = needed
        if needed != before:
            for one in before:
                del self._waiting_for[one][key]
                if not self._waiting_for[one]:
                    del self._waiting_for[one]
            for one in needed:
                self._waiting_for.setdefault(one, {})[key] = None

    def _needs(self, key: Key) -> tuple[Dependency, ...]:
        found = self._find(key)
        return () if found is None else tuple(dict.fromkeys(dependencies(key.app, found.spec.depends_on)))

    def check(self, specs: Mapping[Key, Spec]) -> None:
        """Invalid where one would wait for itself if these were as given, beside all others as they are."""
        given: dict[str, list[Key]] = {}
        for key in specs:
            given.setdefault(key.app, []).append(key)

        def needs(key: Key) -> Sequence[Dependency]:
            return dependencies(key.app, specs[key].depends_on) if key in specs else self._needs(key)

        def of(app: str) -> Iterable[Key]:
            return {*(one.key for one in self._of(app)), *given.get(app, ())}

        for key in specs:
            if specs[key].depends_on and (way := circle(key, needs, of)):
                raise Invalid([Fault("/depends_on", circle_words(way), "leave one of these out")])

    async def end(self, supervisors: Sequence[Supervisor]) -> None:
        """Stops them for good, each by its stop plan: first what others depend on last. Returns when all have ended."""
        running = {one.key: one for one in supervisors if one.machine.alive}
        for one in supervisors:
            if one.key not in running:
                one.retire()
        order = StopOrder(
            {key: one.spec.priority for key, one in running.items()},
            {key: self._named(needed) for key, one in running.items() if (needed := self._needs(key))},
        )

        async def stop(key: Key) -> None:
            supervisor = running[key]
            supervisor.retire()
            await ended(supervisor)
            for one in order.ended(key):
                group.create_task(stop(one))

        async with asyncio.TaskGroup() as group:
            for key in order.first():
                group.create_task(stop(key))

    def _named(self, needed: Iterable[Dependency]) -> set[Key]:
        return {
            key
            for one in needed
            for key in ((one,) if isinstance(one, Key) else (each.key for each in self._of(one.app)))
        }


async def ended(supervisor: Supervisor) -> None:
    """Returns when it has no process, and none on its way."""
    while not supervisor.settled:
        await supervisor.changed()


def _standing(supervisor: Supervisor) -> Standing:
    if supervisor.ready:
        return Standing.READY
    if supervisor.spec.wanted is Wanted.DOWN or supervisor.record.deleting:
        return Standing.DOWN
    if supervisor.machine.held:
        return Standing.HELD
    return {State.FATAL: Standing.FATAL, State.EXITED: Standing.EXITED}.get(supervisor.state, Standing.COMING)
