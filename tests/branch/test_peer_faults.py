"""What a spec that other branches brought may not have."""

import pytest

from branchd.core.access import Scope
from branchd.core.spec import Hook, Hooks, Kind, Limits, Probe, Spec

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


@pytest.mark.parametrize(
    ("limits", "pointers"),
    [
        ({"nice": -1, "oom_score_adj": -500}, ["/limits/nice", "/limits/oom_score_adj"]),
        ({"open_files": 65537, "core": "1MiB"}, ["/limits/open_files", "/limits/core"]),
        ({"nice": 5, "oom_score_adj": 0, "open_files": 65536, "core": 0, "address_space": "64GiB", "tasks": 9}, []),
    ],
)
async def test_others_may_not_ask_for_limits_that_take_roots_rights(house, limits, pointers):
    spec = Spec(Kind.COMMAND, ("serve",), user="www", limits=Limits(**limits))
    service, trusting = house.service(), house.service(peer_scope=Scope.ADMIN)
    assert [fault.pointer for fault in service._fleet.definitions.peer_faults(spec)] == pointers
    assert trusting._fleet.definitions.peer_faults(spec) == []
    service.close()
    trusting.close()
