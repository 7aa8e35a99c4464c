"""What a spec that other branches brought may not have."""

import pytest

from branchd.core.access import Scope
from branchd.core.spec import Hook, Hooks, Kind, Probe, Spec

OUTWARD = Spec(Kind.COMMAND, ("serve",), user="www", alive=Probe(tcp="db:1"), hooks=Hooks(on_exit=Hook(url="http://x")))


@pytest.mark.parametrize(
    ("scope", "pointers"), [(Scope.OPERATE, {"/alive/tcp", "/hooks/on_exit/url"}), (Scope.ADMIN, set())]
)
async def test_others_may_not_have_the_daemon_connect_elsewhere(house, scope, pointers):
    service = house.service(peer_scope=scope)
    faults = service._fleet.definitions.peer_faults(OUTWARD)
    assert {fault.pointer for fault in faults} == pointers
    service.close()


async def test_an_app_that_others_defined_is_held_to_that_for_each_of_its_instances(house):
    service = house.service()
    [fault, _] = service._fleet.definitions.peer_faults(OUTWARD, "the app's definition comes from another branch, and ")
    assert fault.detail == (
        "the app's definition comes from another branch, and a URL that is told of events may not come from other "
        "branches"
    )
    assert "[auth] peer_scope" in fault.hint
    service.close()
