"""Who asks, and what they may do. How somebody proves who they are is the edge's business."""

from enum import StrEnum

from branchd.core.value import Value


class Scope(StrEnum):
    """Each includes the ones before it."""

    READ = "read"
    OPERATE = "operate"  #: start, stop, restart, signal, consumers, autoscale: within what an admin allowed
    ADMIN = "admin"  #: specs, tokens: whatever executes or writes

    def includes(self, other: "Scope") -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(other)


class Principal(Value):
    name: str  #: such as "uid:0", "token:ci"
    scope: Scope
    via: str | None = None  #: the branch that carried the request here; None: it came to this one's own API
    via_id: str | None = None  #: that branch's id: names are what branches say of themselves
    asked: Scope | None = None  #: of a carried request: what the principal may do there; `scope` is what it may do here

    @property
    def limited(self) -> bool:
        """An admin elsewhere: may define instances here only as users that other branches may use."""
        return self.asked is Scope.ADMIN and self.scope is not Scope.ADMIN
