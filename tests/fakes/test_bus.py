"""The fake keeps what the real brokers promise; its faults are those that a test asks for."""

import asyncio

import pytest

from branchd.core.errors import Conflict, Unavailable
from tests.adapters.conformance_bus import KEY, ONE, TWO, BusConformance, DefiniteBusConformance, Member
from tests.fakes.bus import MemoryBroker
from tests.simulation.loop import simulate


class TestMemoryBus(DefiniteBusConformance):
    @pytest.fixture
    def broker(self):
        return MemoryBroker(retry=0.01)

    @pytest.fixture
    def new_bus(self, broker):
        return broker.bus

    @pytest.fixture
    def break_connection(self, broker):
        async def break_connection(bus):
            broker.partition(bus.branch, at_once=True)
            broker.heal()

        return break_connection


class TestMemoryBusWithoutReturns(BusConformance):
    @pytest.fixture
    def new_bus(self):
        return MemoryBroker(retry=0.01, definite=False).bus


async def two_members(broker):
    members = [Member(branch, broker.bus(branch)) for branch in (ONE, TWO)]
    for member in members:
        await member.open()
    await asyncio.sleep(1)
    assert all(member.bus.state.connected for member in members)
    return members


@simulate
async def test_a_partition_is_seen_by_missed_heartbeats():
    broker = MemoryBroker()
    one, two = await two_members(broker)
    await two.bus.bind([KEY])
    broker.partition(TWO)
    await asyncio.sleep(15)
    assert two.bus.state.connected
    assert await one.bus.send(KEY, b"nobody hears it")
    await asyncio.sleep(6)
    assert not two.bus.state.connected
    assert not await one.bus.send(KEY, b"")
    broker.heal()
    await asyncio.sleep(3)
    assert two.bus.state.connected
    assert broker.keys(TWO) == {two.inbox}
    assert two.heard == []


@simulate
async def test_a_short_partition_only_delays():
    broker = MemoryBroker()
    one, two = await two_members(broker)
    broker.partition(TWO)
    assert await one.bus.send(two.inbox, b"late")
    sending = asyncio.create_task(two.bus.send(one.inbox, b"late too"))
    await asyncio.sleep(4)
    assert two.heard == one.heard == []
    broker.heal()
    assert await sending
    await asyncio.sleep(0.1)
    assert (two.heard, one.heard) == ([(two.inbox, b"late")], [(one.inbox, b"late too")])


@simulate
async def test_who_does_not_get_the_brokers_word_in_time_closes_the_connection():
    broker = MemoryBroker()
    one, two = await two_members(broker)
    broker.partition(ONE)
    with pytest.raises(Unavailable):
        await one.bus.send(two.inbox, b"")
    assert not one.bus.state.connected
    assert broker.held(one.inbox) == [ONE], "the broker has not seen it yet"


@simulate
async def test_what_a_closed_connection_had_sent_may_arrive_later_or_never():
    arrived = []
    for seed in range(10):
        broker = MemoryBroker(seed)
        one, two = await two_members(broker)
        broker.partition(ONE)
        with pytest.raises(Unavailable):
            await one.bus.send(two.inbox, b"ghost")
        broker.heal()
        await asyncio.sleep(3)
        assert one.bus.state.connected
        arrived.append(two.heard == [(two.inbox, b"ghost")])
    assert set(arrived) == {True, False}


@simulate
async def test_a_crash_frees_all_at_once_and_a_power_cut_later():
    broker = MemoryBroker()
    one, two = await two_members(broker)
    await one.bus.claim("web:one")
    one.bus.crash()
    assert broker.held(one.inbox) == []
    await two.bus.claim("web:one")
    two.bus.crash(power=True)
    assert broker.held(two.inbox) == [TWO]
    again = Member(TWO, broker.bus(TWO))
    await again.open()
    await asyncio.sleep(1)
    assert "id" in again.bus.state.why
    broker.heal()
    assert broker.held(two.inbox) == [TWO]
    await asyncio.sleep(25)
    assert again.bus.state.connected
    await again.bus.claim("web:one")


@simulate
async def test_a_stopped_broker_loses_all_and_a_paused_one_little():
    broker = MemoryBroker()
    one, two = await two_members(broker)
    await one.bus.bind([KEY])
    broker.stop()
    assert not one.bus.state.connected
    await asyncio.sleep(60)
    assert "refuses" in one.bus.state.why
    broker.start()
    await asyncio.sleep(3)
    assert not await two.bus.send(KEY, b"")
    await one.bus.bind([KEY])
    broker.pause()
    await asyncio.sleep(4)
    broker.resume()
    assert await two.bus.send(KEY, b"")
    broker.pause()
    await asyncio.sleep(60)
    assert "does not answer" in two.bus.state.why
    broker.resume()
    await asyncio.sleep(3)
    assert one.bus.state.connected
    assert not await two.bus.send(KEY, b"")


@simulate
async def test_a_claim_is_stopped_by_a_loss_of_the_connection():
    broker = MemoryBroker()
    one, two = await two_members(broker)
    claim = await one.bus.claim("web:one")
    broker.partition(ONE)
    with pytest.raises(Unavailable):
        await claim.release()
    with pytest.raises(Conflict):
        await two.bus.claim("web:one")
    await asyncio.sleep(20)
    await (await two.bus.claim("web:one")).release()


async def hear(faults, seed):
    broker = MemoryBroker(seed)
    one, two = await two_members(broker)
    vars(broker.faults).update(faults)
    for number in range(200):
        assert await one.bus.send(two.inbox, bytes([number]))
    await asyncio.sleep(5)
    return [body[0] for _, body in two.heard]


@simulate
async def test_faults_are_those_asked_for_and_the_same_for_one_seed():
    sent = list(range(200))
    assert await hear({"jitter": 0.1}, 1) == sent
    lossy = await hear({"loss": 0.2}, 1)
    assert lossy == sorted(set(lossy))
    assert 140 < len(lossy) < 180
    double = await hear({"duplication": 0.2}, 1)
    assert double == sorted(double)
    assert set(double) == set(sent)
    assert 220 < len(double) < 260
    mixed = await hear({"reordering": 0.2}, 1)
    assert mixed != sent
    assert sorted(mixed) == sent
    everything = {"jitter": 0.1, "loss": 0.1, "duplication": 0.1, "reordering": 0.1}
    assert await hear(everything, 1) == await hear(everything, 1) != await hear(everything, 2)
