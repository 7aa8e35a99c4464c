"""What became of the requests to create: in memory, for whoever asks again. Each is committed with what it tells of."""

import hashlib
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from branchd.branch.records import OutcomeRecord
from branchd.core.access import Principal
from branchd.core.values import Key
from branchd.wire import json

#: seconds that an outcome is known after its instance is gone, and a cancelled one after it was
KEPT = 48 * 3600.0


class Outcomes:
    def __init__(self, outcomes: Iterable[OutcomeRecord]) -> None:
        self._outcomes: dict[str, OutcomeRecord] = {}
        self._made: dict[Key, str] = {}  #: the request of each instance that exists
        self._moved: dict[str, str] = {}  #: by the request that first made it, the one that made it here
        for outcome in outcomes:
            self.add(outcome)

    def get(self, request: str) -> OutcomeRecord | None:
        return self._outcomes.get(request)

    def find(self, request: str) -> OutcomeRecord | None:
        """As get(); of what the request made on another branch, and what has moved here since, too."""
        return self.get(request) or self.get(self._moved.get(request, ""))

    def origin(self, request: str) -> str:
        """The request that first made what this one made here: itself unless that moved."""
        outcome = self.get(request)
        return request if outcome is None or not outcome.origin else outcome.origin

    def add(self, outcome: OutcomeRecord) -> None:
        """Once it is committed; in the place of an earlier one of the same request."""
        self.remove(outcome.request)
        self._outcomes[outcome.request] = outcome
        if outcome.instance is not None and not outcome.ended:
            self._made[Key(outcome.app, outcome.instance)] = outcome.request
        if outcome.instance is not None and outcome.origin:  # one that was taken back says nothing of its elder
            self._moved[outcome.origin] = outcome.request

    def remove(self, request: str) -> None:
        """Once that is committed."""
        outcome = self._outcomes.pop(request, None)
        if outcome is not None and outcome.instance is not None and not outcome.ended:
            del self._made[Key(outcome.app, outcome.instance)]
        if outcome is not None and self._moved.get(outcome.origin) == request:
            del self._moved[outcome.origin]

    def ended(self, key: Key, at: float) -> OutcomeRecord | None:
        """What is to be committed when the instance is removed, and added then; None where no request made it."""
        request = self._made.get(key)
        return None if request is None else replace(self._outcomes[request], at=at, ended=True)

    def expire(self, before: float) -> None:
        """As the change Expire does in the store."""
        self._outcomes = {
            request: outcome
            for request, outcome in self._outcomes.items()
            if outcome.at >= before or not (outcome.ended or outcome.instance is None)
        }
        self._moved = {first: request for first, request in self._moved.items() if request in self._outcomes}


def request_id(principal: Principal, idempotency_key: str) -> str:
    """The same for the same key of the same principal, at whichever branch it comes in."""
    return hashlib.sha256(f"{principal.name}\0{idempotency_key}".encode()).hexdigest()


def request_digest(app: str, body: Any) -> str:
    """Of what was asked for."""
    return hashlib.sha256(json.dumps([app, body])).hexdigest()


def derived_name(app: str, request: str) -> str:
    """Of an instance that was given none: no two requests come to the same one."""
    return f"{app[:50]}-{hashlib.sha256(request.encode()).hexdigest()[:12]}"
