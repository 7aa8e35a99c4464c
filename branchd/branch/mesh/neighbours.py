"""What the API asks of the neighbourhood; mesh.py is it.

A branch that is alone imports nothing else of this package: most of what a neighbourhood needs takes long to load.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from branchd.core.access import Principal
from branchd.core.errors import BranchdError
from branchd.core.peers import Address, Announcement
from branchd.core.value import Value
from branchd.wire.portions import LONGEST_MESSAGE

if TYPE_CHECKING:
    from branchd.branch.mesh.carrying import Carrier

#: bytes of a request's body that is carried: as base64, with all that is sent beside it, it fits one message
LONGEST_BODY = (LONGEST_MESSAGE - (128 << 10)) // 4 * 3

#: seconds for a carried answer, beside what the request itself waits
ANSWER_WITHIN = 15.0


class Made(Value):
    instance: Mapping[str, Any]  #: the API's resource
    made: bool  #: False: an earlier offer of the same request was accepted
    owner: Address


class Neighbours(Protocol):
    @property
    def carrier(self) -> "Carrier": ...

    def others(self) -> Sequence[Announcement]:
        """The other branches that belong to the neighbourhood, and what they said of themselves last.

        Their `state` is what is believed of them here: those that are found silent are among them, those that are
        closed are not.
        """

    def lost(self) -> Sequence[Announcement]:
        """Those that ended a short while ago and did not say that they go: what they had may run on, unseen."""

    def find(self, branch: str) -> Address | None:
        """One of others(), by its name or id, silent or not; Conflict where several have the name."""

    def name_of(self, branch: str) -> str:
        """Of the branch with that id; the id where it is not known any more."""

    async def locate(self, app: str, name: str) -> Address:
        """The owner of an instance that this branch does not have.

        NotFound only when that is sure; Unavailable, which names the branches that are missing; Conflict with the
        candidates where it is pinned to several.
        """

    async def create(
        self, principal: Principal, app: str, body: Any, keys: Sequence[str | None]
    ) -> Sequence[Made | BranchdError]:
        """A placed instance for each Idempotency-Key, None being one of its own; on whichever branch, this one too.

        The body: a spec, with "name" or without. Invalid and NotFound (the app) are raised; what else becomes of each
        is returned: Conflict, NoCapacity, Unavailable, OutcomeUnknown.
        """
