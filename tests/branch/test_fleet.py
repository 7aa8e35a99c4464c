"""What a branch counts of its instances at every moment: they are asked for with every probe."""

from branchd.branch.service import Service
from tests.branch.conftest import ADMIN
from tests.branch.hosts import APP, Hosts, offer
from tests.simulation.loop import simulate
from tests.waiting import until


async def test_the_reserved_slots_follow_every_change_and_a_restart(house):
    service = house.service()
    await service.begin()
    await service.apps.put("web", {name: value for name, value in APP.items() if name != "user"})
    for name, spec in (("a", {}), ("b", {"weight": 3}), ("c", {"weight": 2})):
        await service.instances.create(ADMIN, "web", {"name": name, **spec})
    assert service.branch().reserved == 1 + 3 + 2
    await service.instances.patch("web", "b", {"weight": 4})
    await service.apps.patch("web", {"weight": 5})  # of those that have none of their own
    assert service.branch().reserved == 5 + 4 + 2
    service.close()
    house.processes.crash()
    again = house.service()
    await again.begin()
    assert again.branch().reserved == 5 + 4 + 2
    await again.instances.delete("web", "b")
    await until(lambda: names(again) == ["a", "c"])
    assert again.branch().reserved == 5 + 2
    for name in "ac":
        await again.instances.delete("web", name)
    await until(lambda: names(again) == [])
    assert again.branch().reserved == 0
    assert again.apps.get("web").instances == 0
    again.close()


@simulate
async def test_a_name_is_bound_once():
    one, two = await Hosts().join(2)
    bound = []
    bind = two.bus.bind

    async def spying(keys):
        bound.extend(keys)
        await bind(keys)

    two.bus.bind = spying
    await one.ask(two, offer("a", named=True))
    await one.ask(two, offer("b", named=False))
    await until(lambda: two.running == ["a", "b"])
    assert bound == ["i.web:a", "i.web:b"]
    assert one.broker.held("i.web:b") == [two.id]


def names(service: Service) -> list[str]:
    return sorted(instance.name for instance in service.instances.list())
