"""What is remembered of requests to create, and for how long."""

from branchd.branch.outcomes import Outcomes, derived_name, request_digest, request_id
from branchd.branch.records import OutcomeRecord
from branchd.core.access import Principal, Scope
from branchd.core.faults import name_fault
from branchd.core.values import Key

ONE = Principal("token:one", Scope.ADMIN)
TWO = Principal("token:two", Scope.ADMIN)
KEY = Key("web", "a")


def made(request, at=1.0):
    return OutcomeRecord(request, "d", at, "web", "a")


def test_the_outcome_of_what_is_removed_ends_then():
    outcomes = Outcomes([made("r")])
    ended = outcomes.ended(KEY, 7.0)
    assert ended == OutcomeRecord("r", "d", 7.0, "web", "a", ended=True)
    outcomes.add(ended)
    assert outcomes.get("r") == ended
    assert outcomes.ended(KEY, 8.0) is None


def test_a_name_that_is_used_again_leaves_the_earlier_outcome_as_it_is():
    first = OutcomeRecord("r", "d", 2.0, "web", "a", ended=True)
    for order in ([first, made("s")], [made("s"), first]):
        outcomes = Outcomes(order)
        assert outcomes.ended(KEY, 9.0).request == "s"
        assert outcomes.get("r") == first


def test_what_was_cancelled_does_not_end_with_its_instance():
    outcomes = Outcomes([made("r")])
    cancelled = OutcomeRecord("r", "d", 3.0, "web", None)
    outcomes.add(cancelled)
    assert outcomes.ended(KEY, 9.0) is None
    assert outcomes.get("r") == cancelled


def test_only_old_ones_without_an_instance_expire():
    old = OutcomeRecord("old", "d", 1.0, "web", None)
    outcomes = Outcomes([made("lives"), old, OutcomeRecord("ended", "d", 1.0, "web", "b", ended=True),
                         OutcomeRecord("late", "d", 5.0, "web", None)])  # fmt: skip
    outcomes.expire(5.0)
    assert [outcomes.get(request) is not None for request in ("lives", "old", "ended", "late")] == [
        True, False, False, True
    ]  # fmt: skip
    outcomes.remove("lives")
    assert outcomes.get("lives") is None
    assert outcomes.ended(KEY, 9.0) is None


def test_a_request_is_known_by_its_principal_and_key():
    ids = {request_id(one, key) for one in (ONE, TWO) for key in ("a", "b")}
    assert len(ids) == 4
    assert request_id(ONE, "a") in ids
    assert request_digest("web", {"name": "a"}) != request_digest("web", {"name": "b"})


def test_a_derived_name_is_a_name_and_the_requests_own():
    app = "x" * 63
    names = {derived_name(app, request_id(ONE, str(number))) for number in range(1000)}
    assert len(names) == 1000
    assert not any(name_fault(name, "", "") for name in names)
    assert derived_name("web", "r") == derived_name("web", "r")
