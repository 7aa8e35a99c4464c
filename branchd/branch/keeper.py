"""What a supervisor asks of whoever has all of them: fleet.py is it."""

from typing import TYPE_CHECKING, Protocol

from branchd.core.ordering import Hold

if TYPE_CHECKING:
    from branchd.branch.supervisor import Supervisor


class Keeper(Protocol):
    """Who has all supervisors of the branch: it knows how the others stand, and is told how each one does."""

    def hold(self, supervisor: "Supervisor") -> Hold | None:
        """Why no process of it may be started now; None where one may."""

    def look(self, supervisor: "Supervisor") -> None:
        """What it shows has changed; called often, also where that is nothing to others."""

    def settle(self, supervisor: "Supervisor") -> None:
        """Called after each change that leaves the instance without a process."""
