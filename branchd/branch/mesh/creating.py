"""New placed instances: what is asked for is judged, and becomes an offer; for operators, for replicas, and for moves.

Which branch takes it is placing.py's to find out.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from branchd.branch.fleet import Fleet
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.neighbours import Made
from branchd.branch.mesh.placing import Placing
from branchd.branch.mesh.replicas import request as replica_request
from branchd.branch.outcomes import derived_name, request_digest, request_id
from branchd.branch.replicas import PRINCIPAL
from branchd.branch.supervisor import Supervisor
from branchd.core.access import Principal
from branchd.core.admission import Probe
from branchd.core.errors import BranchdError, Conflict, Fault, Invalid, Unavailable
from branchd.core.faults import name_fault
from branchd.core.peers import Address
from branchd.core.spec import Spec
from branchd.core.values import Key
from branchd.wire.mesh import Offer
from branchd.wire.spec import accept, effective


class Creating:
    def __init__(self, fleet: Fleet, link: Link, placing: Placing, doubt: Callable[[], str]) -> None:
        """`doubt`: why absence says nothing now; empty when it does."""
        self._fleet = fleet
        self._link = link
        self._placing = placing
        self._doubt = doubt

    async def create(
        self, principal: Principal, app: str, body: Any, keys: Sequence[str | None]
    ) -> Sequence[Made | BranchdError]:
        """A placed instance for each Idempotency-Key, None being one of its own. Invalid, NotFound, Conflict."""
        spec = dict(body) if isinstance(body, dict) else {}
        name = spec.pop("name", None)
        raw, merged = self._judge(app, name, spec if isinstance(body, dict) else body)
        self._check_sure(certain=name is not None or any(key is not None for key in keys))
        digest = request_digest(app, body)
        offers = []
        for key in keys:
            request = secrets.token_hex(32) if key is None else request_id(principal, key)
            chosen = derived_name(app, request) if name is None else name
            named = name is not None or key is not None
            if self._fleet.outcomes.get(request) is not None:
                # It was made here, perhaps when this branch was alone.
                self._placing.remember(request, self._link.me.id)
            offers.append(self._offer(request, digest, Key(app, chosen), raw, principal.name, named=named))
        return await self._placing.place_all(offers, _probe(app, merged))

    async def replace(self, app: str, name: str) -> None:
        """A replica that is missing. What a create raises."""
        raw, merged = self._judge(app, name, {})
        self._check_sure(certain=True)
        offer = self._offer(
            replica_request(), request_digest(app, {"name": name}), Key(app, name), raw, PRINCIPAL, named=True
        )
        await self._placing.place(offer, _probe(app, merged))

    async def move(self, old: Supervisor, request: str) -> Address:
        """Where the replacement of one that moves was placed. What a create raises."""
        placed = old.record.placed
        assert placed is not None
        origin, spec = self._fleet.outcomes.origin(placed.request), old.record.spec
        # Named, so that it is asked for after each connection: where a hand-over's answer is lost, two have the name.
        offer = self._offer(request, placed.digest, old.key, spec, "drain", named=True, origin=origin)
        return (await self._placing.place(offer, _probe(old.key.app, old.spec))).owner

    def _judge(self, app: str, name: Any, given: Any) -> tuple[dict[str, Any], Spec]:
        """The spec as it will be kept, and as it will be; every fault at once. What a branch allows is its own."""
        definitions = self._fleet.definitions
        record = definitions.app(app)
        faults = []
        if name is not None:
            fault = name_fault(name, "/name", "instance name") if isinstance(name, str) else None
            faults += [fault] if fault else []
            faults += [] if isinstance(name, str) else [Fault("/name", f"{name!r:.60} is not text")]
        raw: dict[str, Any] = {}
        merged = Spec()
        try:
            raw = accept(given, {})
            merged = effective(dict(record.spec), raw)
        except Invalid as invalid:
            faults += invalid.faults
        if faults:
            raise Invalid(faults)
        if definitions.shared(app) is None:
            raise Conflict(
                f"app {app} is defined on this branch alone", f"branchctl app publish {app}, or create it with ?branch="
            )
        if definitions.conflict(app):
            raise Conflict(
                f"this branch has a definition of its own of app {app}", f"branchctl app adopt {app}, or publish {app}"
            )
        return raw, merged

    def _check_sure(self, *, certain: bool) -> None:
        """Whether it can be told who has a name, where that must be `certain`. Unavailable."""
        if not self._link.connected:
            why = self._link.state.why or "connecting"
            raise Unavailable(
                f"this branch is not connected to the broker: {why}",
                "try again later, or create it on this branch for good, with ?local=1",
            )
        if certain and (doubt := self._doubt()):
            raise Unavailable(f"whether the name is free cannot be told: {doubt}", "try again later")

    def _offer(
        self, request: str, digest: str, key: Key, raw: Mapping[str, Any], by: str, *, named: bool, origin: str = ""
    ) -> Offer:
        """`origin`: of one that moves."""
        entries = self._fleet.definitions.entries_of(key.app)
        return Offer(request, digest, key.app, key.name, named, raw, by, bool(origin), entries, origin)


def _probe(app: str, spec: Spec) -> Probe:
    return Probe(app, spec.weight, spec.constraints, spec.spread)
