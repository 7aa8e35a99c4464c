"""The two branches that this one watches: they are pinged, and accused where they are missing.

When to ping and what is missing is decided in core/ring.py. What becomes of an accusation is presence.py's.
"""

from collections.abc import Callable

from msgspec import Struct

from branchd.branch.mesh.link import Link
from branchd.branch.tasks import Tasks
from branchd.core.errors import NoRoute, Unavailable
from branchd.core.peers import BranchState, Down
from branchd.core.ring import RETRY, TRIES, Ring, Watch
from branchd.core.roster import Roster
from branchd.wire.mesh import Ping

#: seconds after which a silent branch counts as gone, where the bus does not tell that nobody holds its inbox
GIVEN_UP_AFTER = 60.0

#: seconds within which a ping to this branch itself must come back before it accuses another
MYSELF_WITHIN = 0.5


class _Accusation(Struct, eq=False):
    """While this branch makes sure of itself."""

    id: str
    refuted: bool = False


class Watching:
    """turn() is to be called at `wake`, and may be at any time."""

    def __init__(
        self,
        link: Link,
        clock: Callable[[], float],
        chance: Callable[[], float],
        roster: Callable[[], Roster],
        doubt: Callable[[], str],
        found: Callable[[Down], None],
    ) -> None:
        """`doubt`: why nothing is concluded from absence, or "". `found`: told of each that ended."""
        self.tasks = Tasks("watching")
        self._link = link
        self._clock = clock
        self._roster = roster
        self._doubt = doubt
        self._found = found
        self._watch = Watch(clock(), chance())
        self._watched: tuple[str, ...] | None = None
        self._accusations: set[_Accusation] = set()

    @property
    def wake(self) -> float:
        return self._watch.wake

    def moved(self) -> None:
        """Somebody came or went."""
        self._watched = None

    def heard(self, id: str) -> None:
        """From itself: it is there, whatever its earlier life left unanswered."""
        self._watch.pong(id)
        for accusation in self._accusations:
            accusation.refuted |= accusation.id == id

    def turn(self, now: float) -> None:
        if now < self.wake:
            return
        if self._watched is None:
            self._watched = Ring.of(self._roster()).watched_by(self._link.me.id)
        turn = self._watch.tick(now, self._watched)
        for id in turn.pings:
            self.tasks.begin(self._ping(id))
        for id in turn.missing:
            self.tasks.begin(self._accuse(id, BranchState.SILENT))

    async def _ping(self, id: str) -> None:
        member = self._roster().get(id)
        if member is None:
            return
        try:
            # It waits until an accusation is decided: a late pong is a pong.
            await self._link.ask(member.peer, Ping(), TRIES * RETRY + MYSELF_WITHIN)
        except NoRoute:
            await self._accuse(id, BranchState.CLOSED)
        except Unavailable:
            silent = self._clock() - member.since if member.state is BranchState.SILENT else 0.0
            if not self._link.definite and silent > GIVEN_UP_AFTER:
                await self._accuse(id, BranchState.CLOSED)
        else:
            self.heard(id)

    async def _accuse(self, id: str, state: BranchState) -> None:
        """If this branch itself is heard: else it is this one that is cut off, or that did not read its pongs yet."""
        member = self._roster().get(id)
        if member is None or not (member.live or state is BranchState.CLOSED) or self._doubt():
            return
        accusation = _Accusation(id)
        self._accusations.add(accusation)
        try:
            await self._link.ask(self._link.me, Ping(), MYSELF_WITHIN)
        except (NoRoute, Unavailable):
            return
        finally:
            self._accusations.discard(accusation)
        again = self._roster().get(id)
        if not accusation.refuted and again is not None and again.peer == member.peer and not self._doubt():
            self._found(Down(id, member.announcement.incarnation, state))
