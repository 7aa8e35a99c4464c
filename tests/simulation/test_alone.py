"""The simulation itself, on branches that have no neighbours: crashes at any moment, disks, and what a witness sees."""

import asyncio
from contextlib import suppress

import pytest

from branchd.branch.records import InstanceRecord, Placed, Put, RemoveInstance
from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.core.values import Key
from tests.simulation.life import Crashed
from tests.simulation.loop import simulate
from tests.simulation.machine import Machine
from tests.simulation.neighbourhood import APP, neighbourhood
from tests.simulation.witness import Created

ONE = Key("web", "one")


def record(request, key=ONE, **more):
    return Put(InstanceRecord(key, {}, placed=Placed(request, "", True, 0.0), **more))


@simulate
async def test_what_was_confirmed_survives_crashes_at_any_moment():
    async with neighbourhood(1, local=True, seed=7) as alone:
        await alone.put_app(0, "web")
        lost = 0
        for number in range(60):
            creating = asyncio.create_task(alone.create(0, "web", f"a{number}"))
            await asyncio.sleep(0.0005 * (number % 20))
            await alone.crash(0)
            made = await creating
            lost += isinstance(made, Crashed)
            alone.witness.check()
            await alone.restart(0)
            assert isinstance(made, Crashed) or alone.where("web", made) == [0]
        assert 0 < lost < 60
        await alone.advance(60)
        await alone.crash(0, power=True)
        assert alone.machines[0].running() == []
        await alone.restart(0)
        await alone.advance(60)
        running, held = alone.machines[0].running(), alone.machines[0].store.load().instances
        assert sorted(running) == [record.key for record in held]


@simulate
async def test_a_dead_daemon_does_nothing_more():
    async with neighbourhood(1, local=True) as alone:
        await alone.put_app(0, "web")
        machine = alone.machines[0]
        creating = [asyncio.create_task(alone.create(0, "web", f"a{number}")) for number in range(20)]
        await asyncio.sleep(0.02)
        await alone.crash(0)
        writes, spawned = len(machine.store.writes), len(machine.processes.spawned)
        await alone.advance(3600)
        assert (len(machine.store.writes), len(machine.processes.spawned)) == (writes, spawned)
        answers = await asyncio.gather(*creating)
        assert {type(answer) for answer in answers} == {str, Crashed}


@simulate
async def test_pinned_instances_outlive_their_daemon():
    async with neighbourhood(2, local=True) as two:
        for branch in (0, 1):
            await two.put_app(branch, "web")
            assert await two.create_pinned(branch, "web", "one") == "one"
        await two.crash(0, 1)
        await two.advance(10)
        await two.restart(0, 1)
        await two.advance(100)
        assert two.where("web", "one") == [0, 1]


@simulate
async def test_a_witness_sees_a_pinned_instance_restarted():
    async with neighbourhood(1, local=True) as alone:
        await alone.put_app(0, "web")
        await alone.create_pinned(0, "web", "one")
        await alone.machines[0].call(lambda entrance: entrance.service.instances.restart("web", "one"))
        with pytest.raises(AssertionError, match="11: "):
            await alone.advance(10)


@simulate
async def test_a_witness_sees_one_request_made_twice():
    async with neighbourhood(1, local=True) as alone:
        await alone.put_app(0, "web")
        store = alone.machines[0].entrance.service._world.store
        await store.write(record("r"))
        with pytest.raises(AssertionError, match="3: "):
            await store.write(record("r", Key("web", "two")))


@simulate
async def test_a_witness_sees_more_than_the_slots():
    async with neighbourhood(1, [3], local=True) as alone:
        await alone.put_app(0, "web", {**APP, "weight": 2})
        store = alone.machines[0].entrance.service._world.store
        await store.write(record("r"))
        with pytest.raises(AssertionError, match="takes it to 4 of 3 slots"):
            await store.write(record("s", Key("web", "two")))


@simulate
async def test_a_witness_sees_what_comes_back():
    async with neighbourhood(2, local=True) as two:
        for branch in (0, 1):
            await two.put_app(branch, "web")
        stores = [machine.entrance.service._world.store for machine in two.machines]
        await stores[0].write(record("r"))
        since = two.witness.deletes(ONE)
        await stores[0].write(record("r", deleting=True))
        two.witness.has_deleted(ONE, since)
        with pytest.raises(AssertionError, match="6: "):
            await stores[1].write(record("r"))
        newer, older = (Entry(EntryKind.APP, "web", "", Stamp(time, "b"), {}) for time in (2, 1))
        await stores[0].write(Put(newer))
        await stores[1].write(Put(older))
        with pytest.raises(AssertionError, match="6: "):
            await stores[0].write(Put(older))


@simulate
async def test_a_witness_sees_it_where_who_writes_hides_it():
    async with neighbourhood(1, local=True) as alone:
        await alone.put_app(0, "web")
        store = alone.machines[0].entrance.service._world.store
        await store.write(record("r"))
        with suppress(AssertionError):
            await store.write(record("r", Key("web", "two")))
        with pytest.raises(AssertionError, match="3: "):
            await alone.advance(1)


@simulate
async def test_a_witness_sees_a_retry_that_finds_a_conflict():
    async with neighbourhood(1, local=True) as alone:
        await alone.put_app(0, "web")
        assert await alone.create(0, "web", key="k") == await alone.create(0, "web", key="k")
        with pytest.raises(AssertionError, match="3: "):
            await alone.create(0, "web", "other", key="k")


@simulate
async def test_a_witness_sees_a_replacement_of_what_was_deleted():
    async with neighbourhood(1, local=True) as alone:
        await alone.put_app(0, "web")
        store = alone.machines[0].entrance.service._world.store
        await store.write(record("r"))
        since = alone.witness.deletes(ONE)
        await store.write(record("r", deleting=True))
        alone.witness.has_deleted(ONE, since)
        await store.write(RemoveInstance(ONE))
        await store.write(record("heir"))
        await alone.crash(0)
        await alone.restart(0)
        alone.witness._names_run_once(alone.machines)
        alone.witness._elders["heir"] = "r"
        with pytest.raises(AssertionError, match="6: deleted and running"):
            alone.witness._names_run_once(alone.machines)


@simulate
async def test_a_witness_sees_what_is_lost_or_doubled():
    async with neighbourhood(1, local=True) as alone:
        witness = alone.witness
        await alone.advance(1)
        one = Created(ONE, 1001.0, 1002.0, 0)
        witness.has_created(one)
        with pytest.raises(AssertionError, match="2: "):
            witness.check()
        with pytest.raises(AssertionError, match="10: "):
            witness.has_created(Created(ONE, 1001.5, 1003.0, 0))
        witness.deletes(ONE)
        witness.check()
        witness.has_created(Created(ONE, 1001.5, 1003.0, 0))


@simulate
async def test_a_witness_sees_what_runs_twice_or_not_at_all():
    async with neighbourhood(2, local=True) as two:
        witness, machines = two.witness, two.machines
        for machine in machines:
            await two.put_app(machine.number, "web")
            await machine.entrance.service._world.store.write(record("r"))
        with pytest.raises(AssertionError, match="5: not running"):
            witness._names_run_once(machines)
        await two.crash(0)
        await two.restart(0)
        witness._names_run_once(machines)
        await two.crash(1)
        await two.restart(1)
        with pytest.raises(AssertionError, match="5: running more than once"):
            witness._names_run_once(machines)
        since = witness.deletes(ONE)
        await machines[0].entrance.service._world.store.write(record("r", deleting=True))
        witness.has_deleted(ONE, since)
        with pytest.raises(AssertionError, match="6: deleted and running"):
            witness._names_run_once(machines[:1])


@simulate
async def test_a_witness_sees_who_does_not_agree():
    async with neighbourhood(2) as two:
        await two.advance(1)
        witness, machines = two.witness, two.machines
        with pytest.raises(AssertionError, match="for up, not"):
            witness._all_agree([*machines, Machine(2, two.broker, 4)])
        two.partition(1, at_once=True)
        await two.advance(5)
        with pytest.raises(AssertionError, match="does not answer"):
            witness.check_quiet()
