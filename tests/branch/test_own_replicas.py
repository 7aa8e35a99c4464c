"""Replicas of a branch's own app: as many pinned instances as it says, and nobody else is touched."""

import pytest

from branchd.branch.records import AppRecord, AuthoredRecord, Put
from branchd.core.definitions import digest
from branchd.core.errors import Conflict
from branchd.core.lifecycle import State
from branchd.wire.resources import Placement
from tests.branch.conftest import ADMIN
from tests.waiting import until


def names(service):
    return {instance.name for instance in service.instances.list("web")}


async def are(service, *expected):
    wanted = {f"web-{one}" if isinstance(one, int) else one for one in expected}
    await until(lambda: names(service) == wanted, what=f"{wanted} to be there")
    running = [one for one in service.instances.list("web") if one.status.wanted == "up"]
    await until(lambda: all(service.instances.get("web", one.name).status.state is State.RUNNING for one in running))


@pytest.fixture
async def app(service):
    await service.apps.patch("web", {"replicas": 2, "stop": [{"signal": "KILL", "patience": 5}]})
    await are(service, 0, 1)
    return service


def pids(service):
    return {one.name: one.status.pid for one in service.instances.list("web")}


async def test_more_and_fewer_touch_no_sibling(app):
    assert all(one.placement is Placement.PINNED for one in app.instances.list("web"))
    before = pids(app)
    await app.apps.patch("web", {"replicas": 4})
    await are(app, 0, 1, 2, 3)
    assert pids(app).items() >= before.items()
    await app.apps.patch("web", {"replicas": 1})
    await are(app, 0)
    assert pids(app)["web-0"] == before["web-0"]
    await app.apps.patch("web", {"replicas": None})
    await until(lambda: not names(app))


async def test_what_a_person_made_counts_as_it_is_and_stays(service):
    await service.instances.create(ADMIN, "web", {"name": "web-1", "env": {"MINE": "1"}})
    await service.instances.create(ADMIN, "web", {"name": "other"})
    await service.apps.patch("web", {"replicas": 3, "stop": [{"signal": "KILL", "patience": 5}]})
    await are(service, 0, 1, 2, "other")
    await service.apps.patch("web", {"replicas": 0})
    await are(service, 1, "other")
    assert service.instances.get("web", "web-1").spec == {"env": {"MINE": "1"}}


async def test_one_of_them_is_not_deleted_by_itself_but_stopped_and_that_is_remembered(app, house):
    with pytest.raises(Conflict, match="web:web-1 is one of the 2 replicas of app web") as refused:
        await app.instances.delete("web", "web-1")
    assert '"replicas": 1' in refused.value.hint
    await app.instances.stop("web", "web-1")
    assert await app.instances.wait("web", "web-1", "stopped", 5)
    house.processes.crash()
    later = house.service()
    await later.begin()
    await are(later, 0, 1)
    assert later.instances.get("web", "web-1").status.state is State.STOPPED
    await later.apps.patch("web", {"replicas": 1})
    await are(later, 0)
    later.close()


async def test_where_what_a_person_made_is_deleted_a_replica_takes_its_place(service):
    await service.instances.create(ADMIN, "web", {"name": "web-0", "env": {"MINE": "1"}})
    await service.apps.patch("web", {"replicas": 1, "stop": [{"signal": "KILL", "patience": 5}]})
    await service.instances.delete("web", "web-0")
    await until(lambda: names(service) == {"web-0"} and service.instances.get("web", "web-0").spec == {})


async def test_raising_it_again_while_one_still_stops_makes_it_anew(app, house):
    await app.apps.patch("web", {"stop": [{"signal": "TERM", "patience": 600}]})
    await app.apps.patch("web", {"replicas": 1})
    await until(lambda: app.instances.get("web", "web-1").status.deleting)
    await app.apps.patch("web", {"replicas": 2})
    before = pids(app)["web-1"]
    app._fleet.get("web", "web-1").kill()
    await are(app, 0, 1)
    assert pids(app)["web-1"] != before


async def test_the_next_daemon_makes_what_is_missing_and_takes_away_what_is_too_many(app, house):
    record = app._fleet.definitions.app("web")
    for count, expected in ((3, (0, 1, 2)), (1, (0,))):
        spec = {**record.spec, "replicas": count}
        await house.store.write(Put(AppRecord("web", spec)), Put(AuthoredRecord("web", digest(spec))))
        house.processes.crash()
        later = house.service()
        await later.begin()
        await are(later, *expected)
        later.close()


async def test_an_app_with_replicas_can_be_deleted_with_them(app, house):
    with pytest.raises(Conflict):
        await app.apps.delete("web")
    await app.apps.delete("web", cascade=True)
    assert app.apps.list() == []
    assert not house.processes.running


async def test_one_that_cannot_be_made_is_told_of_and_made_when_the_app_can(service, house):
    await service.apps.put("bare", {"kind": "command", "replicas": 1})
    told = await until(lambda: failed(house), what="the failure to be told")
    assert told.data["reason"]
    await service.apps.patch("bare", {"command": ["serve"]})
    await until(lambda: [one.name for one in service.instances.list("bare")] == ["bare-0"])


def failed(house):
    records = [change.record for write in house.store.writes for change in write if isinstance(change, Put)]
    return next((one for one in records if getattr(one, "type", "") == "replica.failed"), None)
