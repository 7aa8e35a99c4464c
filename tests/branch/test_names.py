"""Names over a broker in memory: taken by one, bound again after each connection, and settled where two have one."""

import asyncio
from collections import Counter
from random import Random

import pytest

from branchd.branch.adoption import resume
from branchd.branch.mesh.names import QUIET
from branchd.branch.records import InstanceRecord
from branchd.core.admission import Reason, Refusal
from branchd.core.errors import Conflict, NoAnswer, NotFound, Unavailable
from branchd.core.values import Key
from branchd.wire.mesh import Accepted
from tests.branch.hosts import WEB, Host, Hosts, offer
from tests.fakes.bus import MemoryBroker
from tests.simulation.loop import run, simulate
from tests.waiting import until


def accepted(*answers):
    return [answer for answer in answers if isinstance(answer, Accepted)]


async def pin(host, name):
    await host.hosting._merge([WEB])
    async with host.fleet.lock("web"):
        await host.fleet.add(InstanceRecord(Key("web", name), {}, created_at=host.fleet.world.wall()))
    await asyncio.sleep(0.1)


async def held_by(broker, key, *hosts):
    await until(lambda: sorted(broker.held(key)) == sorted(host.id for host in hosts))


async def connected(host):
    await until(lambda: host.link.connected)
    return await host.settled()


# Taking


@pytest.mark.parametrize("seed", range(30))
def test_two_offers_of_one_name_at_one_time_are_never_both_accepted(seed):
    async def main():
        broker = MemoryBroker(seed)
        broker.faults.jitter = 0.01
        one, two, three = await Hosts(broker).join(3)
        first, second = await asyncio.gather(one.ask(two, offer("a")), one.ask(three, offer("a")))
        refused = [answer.reason for answer in (first, second) if isinstance(answer, Refusal)]
        assert len(accepted(first, second)) <= 1
        assert set(refused) <= {Reason.UNSURE, Reason.NAME_TAKEN}
        await asyncio.sleep(5)
        assert len(two.running + three.running) == len(accepted(first, second))
        again = await one.ask(two, offer("a"))
        assert len(accepted(first, second, again)) == 1, "a race leaves the name free, or with one"

    run(main())


@simulate
async def test_a_name_that_somebody_is_taking_at_the_same_branch_is_not_sure():
    [one] = await Hosts().join(1)
    answers = await asyncio.gather(*(one.hosting.offer(offer("a")) for _ in range(5)))
    assert len(accepted(*answers)) == 1
    assert len(one.processes.spawned) == 1


@simulate
async def test_a_holder_that_does_not_answer_makes_it_unsure():
    hosts = Hosts()
    one, two = await hosts.join(2)
    mute = hosts.broker.bus("9" * 32)
    await mute.open(lambda _, __: None, lambda _: None)
    await asyncio.sleep(1)
    await mute.bind(["i.web:a"])
    begun = asyncio.get_running_loop().time()
    answer = await one.ask(two, offer("a"))
    assert answer.reason is Reason.UNSURE
    assert 1 <= asyncio.get_running_loop().time() - begun < 1.5
    assert (two.stored(), hosts.broker.held("i.web:a")) == ([], ["9" * 32])
    await mute.close()
    assert accepted(await one.ask(two, offer("a")))


@simulate
async def test_without_a_broker_no_name_is_taken_and_others_are():
    hosts = Hosts()
    [one] = await hosts.join(1)
    hosts.broker.stop()
    await asyncio.sleep(0.1)
    named, unnamed = await one.hosting.offer(offer("a")), await one.hosting.offer(offer("b", named=False))
    assert named.reason is Reason.UNSURE
    assert "not connected" in named.detail
    assert accepted(unnamed)
    hosts.broker.start()
    await held_by(hosts.broker, "i.web:b", one)


@simulate
async def test_a_branch_that_doubts_who_is_missing_takes_no_name():
    one, two = await Hosts().join(2)
    two.doubt = "many vanished"
    answer = await one.ask(two, offer("a"))
    assert (answer.reason, answer.detail) == (Reason.UNSURE, "many vanished")
    assert accepted(await one.ask(two, offer("b", named=False)))
    two.doubt = ""
    assert accepted(await one.ask(two, offer("a")))


# Each connection


@simulate
async def test_an_error_that_nobody_expected_ends_no_binding(monkeypatch):
    one, two = await Hosts().join(2)
    bind, left = two.link.bind, [KeyError("x"), KeyError("y")]

    async def broken(*keys):
        if left:
            raise left.pop()
        await bind(*keys)

    monkeypatch.setattr(two.link, "bind", broken)
    await pin(two, "p")
    await held_by(one.broker, "n.web:p", two)
    assert two.names.tasks.failures.count == 2
    await pin(two, "q")
    await held_by(one.broker, "n.web:q", two)


@simulate
async def test_a_new_daemon_binds_what_it_has_and_takes_names_at_once():
    one, two = await Hosts().join(2)
    await two.hosting.offer(offer("a"))
    await pin(two, "p")
    await two.crash()
    assert one.broker.held("i.web:a") == []
    two = await two.again()
    assert one.broker.keys(two.id) == {f"b.{two.id}", "i.web:a", "n.web:p"}
    assert accepted(await one.ask(two, offer("b")))


@simulate
async def test_after_a_lost_connection_names_are_bound_again_and_none_is_taken_for_a_while():
    hosts = Hosts()
    one, two = await hosts.join(2)
    await two.hosting.offer(offer("a"))
    hosts.broker.stop()
    await asyncio.sleep(1)
    hosts.broker.start()
    await asyncio.gather(*map(connected, (one, two)))
    await held_by(hosts.broker, "i.web:a", two)
    answer = await one.ask(two, offer("b"))
    assert answer.reason is Reason.UNSURE
    assert "seconds" in answer.detail
    assert accepted(await one.ask(two, offer("c", named=False)))
    await asyncio.sleep(QUIET + 1)
    assert accepted(await one.ask(two, offer("b")))
    assert two.running == ["a", "b", "c"]


@simulate
async def test_each_named_one_is_asked_for_twice_at_a_bounded_rate():
    broker = MemoryBroker()
    one = await Host(broker, 1, slots=1000).begin()
    one.known = 400  # 5 a second
    for number in range(20):
        assert accepted(await one.hosting.offer(offer(f"a{number}")))
    assert accepted(await one.hosting.offer(offer("unnamed", named=False)))
    await one.crash()
    asked = Counter()
    begun = asyncio.get_running_loop().time()
    seconds = Counter()

    def listen(_, key, body):
        if key.startswith("i."):
            asked[key] += 1
            seconds[int(asyncio.get_running_loop().time() - begun)] += 1

    broker.listeners.append(listen)
    again = Host(broker, 1, one, slots=1000)
    again.known = 400
    await again.begin()
    await asyncio.sleep(20)
    assert asked == {f"i.web:a{number}": 2 for number in range(20)}
    assert max(seconds.values()) <= 6


# Two holders of one name


@simulate
async def test_when_a_cut_off_owner_returns_the_earlier_stays_and_the_other_stops():
    hosts = Hosts()
    one, two, three = await hosts.join(3)
    assert accepted(await one.ask(two, offer("a")))
    hosts.broker.partition(two.id, at_once=True)
    await asyncio.sleep(1)
    assert accepted(await one.ask(three, offer("a")))
    assert (two.running, three.running) == (["a"], ["a"])
    hosts.broker.heal(two.id)
    await held_by(hosts.broker, "i.web:a", two)
    await three.gone("a")
    assert (two.running, three.running, three.stored()) == (["a"], [], [])
    [event] = await three.events("instance.conflict")
    assert (event.app, event.instance, event.data) == ("web", "a", {"stays_at": "b2"})
    await asyncio.sleep(60)
    assert two.running == ["a"]
    assert await two.events("instance.conflict") == []


@simulate
async def test_a_loser_that_takes_long_to_stop_gives_its_name_up_at_once():
    hosts = Hosts()
    one, two, three = await hosts.join(3)
    slow = {"stop": [{"signal": "TERM", "patience": 600}]}
    await one.ask(two, offer("a"))
    hosts.broker.partition(two.id, at_once=True)
    await asyncio.sleep(1)
    await one.ask(three, offer("a", spec=slow))
    hosts.broker.heal(two.id)
    await held_by(hosts.broker, "i.web:a", two)
    assert three.running == ["a"]
    assert (await three.names.locate("web", "a"))[1].branch == "b2"
    hosts.broker.stop()
    hosts.broker.start()
    await asyncio.gather(*map(connected, (one, two, three)))
    await asyncio.sleep(5)
    assert hosts.broker.held("i.web:a") == [two.id]
    await three.gone("a")


@simulate
async def test_a_loser_whose_disk_is_full_stops_when_it_can():
    hosts = Hosts()
    one, two, three = await hosts.join(3)
    await one.ask(two, offer("a"))
    hosts.broker.partition(two.id, at_once=True)
    await asyncio.sleep(1)
    await one.ask(three, offer("a"))
    three.store.broken = lambda _: True
    hosts.broker.heal(two.id)
    await asyncio.sleep(60)
    assert three.running == ["a"]
    three.store.broken = lambda _: False
    await three.gone("a")
    assert len(await three.events("instance.conflict")) == 1


@simulate
async def test_where_nothing_is_definite_two_may_take_a_name_and_one_stays():
    hosts = Hosts(MemoryBroker(definite=False))
    one, two, three = await hosts.join(3)
    answers = await asyncio.gather(one.ask(two, offer("a")), one.ask(three, offer("a")))
    assert len(accepted(*answers)) == 2
    await asyncio.sleep(10)
    assert len(two.running + three.running) == 1
    answer = await one.ask(two, offer("a"))
    assert answer.reason is Reason.NAME_TAKEN


@simulate
async def test_one_that_moves_and_its_replacement_do_not_stop_each_other():
    hosts = Hosts()
    one, two = await hosts.join(2)
    await one.hosting.offer(offer("a"))
    one.names.moves(Key("web", "a"))
    await one.ask(two, offer("a", moving=True))
    hosts.broker.stop()
    await asyncio.sleep(1)
    hosts.broker.start()
    await asyncio.sleep(60)
    assert (one.running, two.running) == (["a"], ["a"])
    assert hosts.broker.held("i.web:a") == [one.id]
    assert (await two.names.locate("web", "a"))[1].moving


# Where something is


@simulate
async def test_a_placed_one_is_found_from_everywhere_and_when_it_is_deleted_nowhere():
    one, two = await Hosts().join(2)
    await two.hosting.offer(offer("a", "r"))
    for host in (one, two):
        holder, here = await host.names.locate("web", "a")
        assert (holder, here.branch, here.request) == (two.me, "b2", "r")
    await two.delete("a")
    await two.gone("a")
    await asyncio.sleep(0.1)
    with pytest.raises(NotFound):
        await one.names.locate("web", "a")
    one.missing = ["b7", "b5"]
    with pytest.raises(Unavailable, match="b5, b7"):
        await one.names.locate("web", "a")


@simulate
async def test_a_pinned_one_is_found_where_it_is_the_only_one():
    one, two, three = await Hosts().join(3)
    await pin(two, "p")
    for host in (one, two):
        holder, here = await host.names.locate("web", "p")
        assert (holder, here.branch, here.request) == (two.me, "b2", "")
    await pin(three, "p")
    with pytest.raises(Conflict) as caught:
        await one.names.locate("web", "p")
    assert "b2/web:p, b3/web:p" in caught.value.hint
    assert accepted(await two.ask(one, offer("p")))
    assert (await two.names.locate("web", "p"))[0] == one.me, "a short name means the placed one"


@simulate
async def test_what_is_here_is_found_without_a_broker_and_nothing_else():
    hosts = Hosts()
    one, two = await hosts.join(2)
    await one.hosting.offer(offer("a"))
    await pin(one, "p")
    await two.hosting.offer(offer("b"))
    hosts.broker.stop()
    await asyncio.sleep(0.1)
    assert [(await one.names.locate("web", name))[0] for name in "ap"] == [one.me, one.me]
    with pytest.raises(Unavailable, match="no other can be asked"):
        await one.names.locate("web", "b")


@simulate
async def test_an_owner_that_hangs_is_neither_there_nor_gone():
    hosts = Hosts()
    one, two = await hosts.join(2)
    await two.hosting.offer(offer("a"))
    hosts.broker.partition(two.id)
    with pytest.raises(NoAnswer):
        await one.names.locate("web", "a")


# All of it


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_cut_and_killed_every_name_that_was_accepted_runs_once_in_the_end(seed):
    async def main():
        chance = Random(seed)
        broker = MemoryBroker(seed)
        broker.faults.jitter = 0.005
        hosts = await Hosts(broker).join(4, slots=20)
        names, made = ["a", "b", "c"], set()

        async def create(name):
            asking, target = chance.sample(hosts, 2)
            try:
                answer = await asking.ask(target, offer(name))
            except Exception:  # noqa: BLE001 - no route, no answer, no connection: all may be
                return
            if isinstance(answer, Accepted):
                made.add(name)

        for _ in range(12):
            at_work = [asyncio.create_task(create(chance.choice(names))) for _ in range(3)]
            await asyncio.sleep(chance.random())
            match chance.randrange(5):
                case 0:
                    broker.partition(chance.choice(hosts).id, at_once=chance.random() < 0.5)
                case 1:
                    broker.heal()
                case 2:
                    broker.stop()
                    await asyncio.sleep(chance.random())
                    broker.start()
                case 3:
                    victim = chance.randrange(4)
                    await hosts[victim].crash()
                    hosts[victim] = Host(broker, hosts[victim].number, hosts[victim], slots=20)
                    hosts[victim].known = 4
                    await hosts[victim].link.open()
                    await resume(hosts[victim].fleet)
            await asyncio.wait(at_work, timeout=chance.choice([0, 40]))
        broker.heal()
        await asyncio.sleep(200)
        running = Counter(name for host in hosts for name in host.running)
        assert all(number == 1 for number in running.values()), running
        assert made <= set(running)
        for name in running:
            [holder] = broker.held(f"i.web:{name}")
            assert name in next(host for host in hosts if host.id == holder).running

    run(main())
