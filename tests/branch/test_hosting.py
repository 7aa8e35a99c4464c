"""The target of an offer: never above its slots, never twice, on disk before it is answered."""

import asyncio

import pytest
from msgspec.structs import replace

from branchd.branch.layers import tombstone
from branchd.branch.records import AppRecord, InstanceRecord, OutcomeRecord, Put, RemoveInstance
from branchd.core.access import Scope
from branchd.core.admission import Guards, Probe, Reason, Refusal
from branchd.core.errors import NoAnswer, StorageFailed, Unavailable
from branchd.core.stamps import Stamp, at
from branchd.core.values import Key
from branchd.wire.mesh import Accepted, Cancel, Cancelled, Handover
from tests.branch.hosts import APP, WEB, Host, Hosts, offer
from tests.fakes.bus import MemoryBroker
from tests.simulation.loop import EPOCH, simulate
from tests.waiting import until


def reason(answer):
    assert isinstance(answer, Refusal), answer
    return answer.reason


@simulate
async def test_what_is_accepted_is_placed_started_and_named():
    one, two = await Hosts().join(2)
    answer = await one.ask(two, offer("a"))
    assert isinstance(answer, Accepted)
    assert answer.made
    assert (answer.instance["name"], answer.instance["branch"], answer.instance["placement"]) == ("a", "b2", "placed")
    assert two.running == ["a"]
    assert one.broker.held("i.web:a") == [two.id]
    record = two.fleet.get("web", "a").record
    assert record.placed.named
    assert record.placed.accepted_at == record.created_at


@simulate
async def test_it_is_on_disk_with_its_outcome_before_it_is_started():
    [one] = await Hosts().join(1)
    seen = []
    spawn = one.processes.spawn

    def spying(key, *rest):
        stored = one.store.load()
        seen.append(([it.key for it in stored.instances], [it.request for it in stored.outcomes]))
        return spawn(key, *rest)

    one.processes.spawn = spying
    await one.hosting.offer(offer("a", "r"))
    assert seen == [([Key("web", "a")], ["r"])]


@simulate
@pytest.mark.parametrize("named", [True, False])
async def test_offers_at_one_time_never_pass_the_slots(named):
    one, two = await Hosts().join(2, slots=7)
    offers = [offer(f"a{number}", named=named, spec={"weight": 1 + number % 2}) for number in range(30)]
    answers = await asyncio.gather(*(one.ask(two, each) for each in offers))
    taken = [each.spec["weight"] for each, answer in zip(offers, answers, strict=True) if isinstance(answer, Accepted)]
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    assert sum(taken) == two.capacity.reserved == 7
    assert {answer.reason for answer in refused} == {Reason.NO_ROOM}
    assert len(two.running) == len(taken)


@simulate
async def test_the_last_slot_is_not_counted_twice_while_it_is_taken():
    [one] = await Hosts().join(1, slots=2)
    answers = await asyncio.gather(*(one.hosting.offer(offer(name)) for name in "ab"))
    assert [type(answer) for answer in answers] == [Accepted, Accepted]


@simulate
async def test_one_request_makes_one_instance_however_often_it_is_offered():
    one, two = await Hosts().join(2)
    same = offer("a", "r")
    answers = await asyncio.gather(*(one.ask(two, same) for _ in range(5)))
    assert sorted(answer.made for answer in answers) == [False, False, False, False, True]
    assert len(two.processes.spawned) == 1
    assert reason(await one.ask(two, replace(same, digest="other"))) is Reason.MISMATCH


@simulate
async def test_a_daemon_killed_between_the_commit_and_the_answer_answers_the_same_request_with_the_same_instance():
    one, two = await Hosts().join(2)
    two.store.hung = True
    with pytest.raises(NoAnswer):
        await one.link.ask(two.me, offer("a", "r"), 1)
    assert two.running == []
    await two.crash()
    two = await two.again()
    answer = await one.ask(two, offer("a", "r"))
    assert isinstance(answer, Accepted)
    assert (answer.made, answer.instance["name"]) == (False, "a")
    assert len(two.processes.spawned) == 1
    assert two.capacity.reserved == 1


@simulate
async def test_what_was_cancelled_before_it_came_makes_nothing_at_this_daemon_and_the_next():
    one, two = await Hosts().join(2)
    assert await one.link.ask(two.me, Cancel("r"), 1) == Cancelled()
    assert await one.link.ask(two.me, Cancel("r"), 1) == Cancelled()
    assert reason(await one.ask(two, offer("a", "r"))) is Reason.CANCELLED
    await two.crash()
    two = await two.again()
    assert reason(await one.ask(two, offer("a", "r"))) is Reason.CANCELLED
    assert two.processes.spawned == []


@simulate
async def test_what_is_cancelled_afterwards_goes_with_its_name_and_does_not_come_back():
    one, two = await Hosts().join(2)
    await one.ask(two, offer("a", "r"))
    assert await one.link.ask(two.me, Cancel("r"), 1) == Cancelled()
    assert one.broker.held("i.web:a") == []
    await two.gone("a")
    assert (two.running, two.capacity.reserved) == ([], 0)
    await two.crash()
    two = await two.again()
    assert two.stored() == []
    assert reason(await one.ask(two, offer("a", "r"))) is Reason.CANCELLED
    assert isinstance(await one.ask(two, offer("a")), Accepted)


@simulate
async def test_only_the_branch_that_offered_an_instance_may_cancel_it_and_the_event_says_so():
    one, two, other = await Hosts().join(3)
    await one.ask(two, offer("a", "r", principal="uid:7"))
    for _ in range(2):
        with pytest.raises(NoAnswer):
            await other.link.ask(two.me, Cancel("r"), 1)
        assert two.running == ["a"]
        await two.crash()
        two = await two.again()
    assert await one.link.ask(two.me, Cancel("r"), 1) == Cancelled()
    await two.gone("a")
    assert await other.link.ask(two.me, Cancel("r"), 1) == Cancelled()  # nothing is left to be protected
    [created], [deleting] = await two.events("instance.created"), await two.events("instance.deleting")
    assert created.data == {"principal": "uid:7", "branch": one.id}
    assert deleting.data == {"reason": "its creation was cancelled", "branch": one.id}


@simulate
async def test_the_first_request_finds_what_it_made_also_where_that_has_moved():
    one, two, three = await Hosts().join(3)
    moved = offer("a", "move", moving=True, origin="first")
    assert isinstance(await one.ask(two, moved), Accepted)
    await one.link.ask(two.me, Handover("web", "a"), 1)
    first = offer("a", "first")
    for target in (two, three):
        answer = await one.ask(target, first)
        assert isinstance(answer, Accepted)
        assert (answer.made, answer.instance["branch"], answer.owner or two.me) == (False, "b2", two.me)
    assert reason(await one.ask(three, offer("a", "second"))) is Reason.NAME_TAKEN
    assert reason(await one.ask(two, offer("a", "first", digest="other"))) is Reason.MISMATCH
    await two.crash()
    two = await two.again()
    assert isinstance(await one.ask(two, first), Accepted)
    # Moved on to a third one, and deleted there.
    again = offer("a", "move-on", moving=True, origin=two.fleet.outcomes.origin("move"))
    assert isinstance(await two.ask(three, again), Accepted)
    assert three.fleet.outcomes.origin("move-on") == "first"
    await three.delete("a")
    await three.gone("a")
    assert reason(await one.ask(three, first)) is Reason.ENDED


@simulate
async def test_a_replacement_that_was_taken_back_says_nothing_of_its_elders_request():
    one, two = await Hosts().join(2)
    await one.ask(two, offer("a", "move", moving=True, origin="first"))
    await one.link.ask(two.me, Cancel("move"), 1)
    await two.gone("a")
    assert isinstance(await one.ask(two, offer("a", "first")), Accepted)


@simulate
async def test_a_cancellation_that_meets_its_offer_at_work_undoes_it():
    one, two = await Hosts().join(2)
    _, cancelled = await asyncio.gather(one.ask(two, offer("a", "r")), one.link.ask(two.me, Cancel("r"), 5))
    assert cancelled == Cancelled()
    await two.gone("a")
    assert two.running == []


@simulate
async def test_a_cancellation_that_meets_the_end_of_a_deletion_does_not_give_the_next_one_of_that_name_up():
    one, two = await Hosts().join(2)
    key = Key("web", "a")
    await one.ask(two, offer("a", "r"))
    async with two.fleet.lock("web"):  # for which the cancellation waits, behind the removal
        await two.fleet.begin_delete(two.fleet.get("web", "a"))
        await asyncio.sleep(5)
        cancelled = asyncio.create_task(two.hosting.cancel(Cancel("r")))
        await asyncio.sleep(1)
    assert await cancelled == Cancelled()
    await two.gone("a")
    assert isinstance(await one.ask(two, offer("a", "s")), Accepted)
    assert two.names.here(key).request == "s"
    await until(lambda: one.broker.held("i.web:a") == [two.id])
    assert two.running == ["a"]
    assert reason(await one.ask(two, offer("a", "r"))) is Reason.ENDED


@simulate
async def test_a_request_whose_instance_was_deleted_makes_no_second_one():
    [one] = await Hosts().join(1)
    await one.hosting.offer(offer("a", "r"))
    await one.delete("a")
    await one.gone("a")
    assert reason(await one.hosting.offer(offer("a", "r"))) is Reason.ENDED
    assert isinstance(await one.hosting.offer(offer("a", "s")), Accepted)
    assert reason(await one.hosting.offer(offer("a", "r"))) is Reason.ENDED


@simulate
async def test_a_request_that_another_branch_has_taken_is_answered_with_what_it_made_there():
    one, two, three = await Hosts().join(3)
    same = offer("a", "r")
    await one.ask(two, same)
    answer = await one.ask(three, same)
    assert isinstance(answer, Accepted)
    assert (answer.made, answer.instance["branch"], answer.owner) == (False, "b2", two.me)
    assert reason(await one.ask(three, replace(same, digest="other"))) is Reason.MISMATCH
    assert reason(await one.ask(three, offer("a"))) is Reason.NAME_TAKEN
    assert three.stored() == []


@simulate
async def test_it_is_refused_with_the_reason():
    broker = MemoryBroker()
    [one] = await Hosts(broker).join(1)
    two = await Host(broker, 2, slots=3, labels={"zone": "a"}, guards=Guards(disk_free=0.5)).begin()
    await two.hosting.offer(offer("first", spec={"weight": 2}))

    async def refused(**given):
        return reason(await one.ask(two, offer("b", **given)))

    assert await refused(spec={"weight": 2}) is Reason.NO_ROOM
    assert await refused(spec={"constraints": {"zone": "b"}}) is Reason.LABELS
    assert await refused(spec={"umask": "9"}) is Reason.INVALID
    assert await refused(app="other", entries=()) is Reason.INVALID
    assert await refused(app="../x") is Reason.INVALID
    two.draining = True
    assert await refused() is Reason.DRAINING
    two.draining = False
    two.figures.figures = {"disk_free": 0.4}
    await asyncio.sleep(2)
    assert await refused() is Reason.GUARD
    two.figures.figures = {}
    await asyncio.sleep(2)
    two.fleet.stopping = True
    assert await refused() is Reason.STOPPING
    two.fleet.stopping = False
    two.store.broken = lambda _: True
    assert await refused() is Reason.STORAGE
    two.store.broken = lambda _: False
    assert isinstance(await one.ask(two, offer("b")), Accepted)


@simulate
async def test_a_probe_tells_the_room_and_what_stands_in_the_way():
    one, two = await Hosts().join(2, slots=2)
    await two.hosting.offer(offer("a"))
    room = await one.link.ask(two.me, Probe("web", 1), 1)
    assert (room.slots, room.reserved, room.load, room.siblings, room.obstacle) == (2, 1, 0.5, 1, "")
    assert "no-room" in (await one.link.ask(two.me, Probe("web", 2), 1)).obstacle
    assert two.hosting.room(Probe("web", 1)) == room


@simulate
async def test_a_definition_comes_with_the_offer_and_a_newer_tombstone_beats_it():
    one, two = await Hosts().join(2)
    assert isinstance(await one.ask(two, offer("a")), Accepted)
    await two.delete("a")
    await two.gone("a")
    gone = tombstone(WEB, Stamp(at(EPOCH + 10), "0" * 32))
    assert reason(await one.ask(two, offer("a", entries=(gone,)))) is Reason.TOMBSTONE
    assert reason(await one.ask(two, offer("a"))) is Reason.TOMBSTONE
    newer = replace(WEB, stamp=Stamp(at(EPOCH + 20), "0" * 32))
    assert isinstance(await one.ask(two, offer("a", entries=(newer,))), Accepted)


@simulate
async def test_a_branch_with_another_definition_of_its_own_takes_nothing_of_the_app():
    one, two = await Hosts().join(2)
    own = Put(AppRecord("web", {**APP, "command": ["other"]}))
    await two.store.write(own)
    two.fleet.definitions.apply(own)
    assert reason(await one.ask(two, offer("a"))) is Reason.DEFINITION_CONFLICT


@simulate
async def test_a_pinned_instance_of_that_name_keeps_it():
    one, two = await Hosts().join(2)
    await two.hosting.offer(offer("a"))
    async with two.fleet.lock("web"):
        await two.fleet.add(InstanceRecord(Key("web", "p"), {}))
    assert reason(await one.ask(two, offer("p"))) is Reason.NAME_PINNED
    assert isinstance(await one.ask(one, offer("p")), Accepted)


@simulate
@pytest.mark.parametrize(
    ("given", "spec", "taken"),
    [
        ({}, {}, True),
        ({}, {"user": "root"}, False),
        ({}, {"group": "disk"}, False),
        ({"peer_scope": Scope.ADMIN}, {"user": "root"}, True),
        ({"peer_scope": Scope.READ}, {}, False),
        ({"allow_users": ("worker",)}, {}, True),
        ({"allow_users": ("other",)}, {}, False),
        ({"allow_users": ("root",)}, {"user": "root"}, False),
    ],
)
async def test_other_branches_run_here_what_the_policy_lets_them(given, spec, taken):
    one, two = await Hosts().join(2, **given)
    answer = await one.ask(two, offer("a", spec=spec))
    assert isinstance(answer, Accepted) is taken
    if not taken:
        assert answer.reason in (Reason.POLICY, Reason.INVALID)
        assert two.stored() == []


@simulate
async def test_an_instance_without_a_user_is_the_daemons_which_is_root():
    one, two = await Hosts().join(2)
    await two.author({**APP, "user": None})
    assert reason(await one.ask(two, offer("a"))) is Reason.POLICY


@simulate
async def test_the_rule_for_peers_does_not_bind_what_came_to_this_branch_itself():
    [one] = await Hosts().join(1, peer_scope=Scope.READ)
    await one.author()
    assert isinstance(await one.hosting.offer(offer("a", spec={"user": "root"})), Accepted)
    assert one.hosting.room(Probe("web", 1)).obstacle == ""


@simulate
async def test_a_branch_that_lets_peers_read_lets_them_cancel_nothing():
    one, two = await Hosts().join(2, peer_scope=Scope.READ)
    await two.author()
    await two.hosting.offer(offer("a", "r"))
    with pytest.raises(NoAnswer):
        await one.link.ask(two.me, Cancel("r"), 1)
    assert two.running == ["a"]


@simulate
async def test_a_branch_that_lets_peers_read_runs_nothing_that_another_one_defined():
    [one] = await Hosts().join(1, peer_scope=Scope.READ)
    answer = await one.hosting.offer(offer("a", entries=(replace(WEB, stamp=Stamp(WEB.stamp.time, "0" * 32)),)))
    assert isinstance(answer, Refusal)
    assert (answer.reason, "peer_scope" in answer.detail or "define nothing" in answer.detail) == (Reason.INVALID, True)


class Lost(Unavailable):
    pass


def lose_claims(host):
    """The connection of each claim is lost before its end."""
    claim = host.bus.claim

    async def losing(name):
        made = await claim(name)

        async def release():
            raise Lost("the connection was lost")

        made.release = release
        return made

    host.bus.claim = losing


@simulate
async def test_a_name_that_is_not_sure_in_the_end_takes_the_commit_back():
    one, two = await Hosts().join(2)
    lose_claims(two)
    assert reason(await one.ask(two, offer("a", "r"))) is Reason.UNSURE
    stored = two.store.load()
    assert (stored.instances, stored.outcomes, two.processes.spawned) == ((), (), [])
    assert (one.broker.held("i.web:a"), two.capacity.reserved) == ([], 0)


@simulate
async def test_a_commit_that_cannot_be_taken_back_is_no_refusal():
    one, two = await Hosts().join(2)
    lose_claims(two)
    two.store.broken = lambda changes: any(isinstance(change, RemoveInstance) for change in changes)
    with pytest.raises(Lost):
        await two.hosting.offer(offer("a", "r"))
    answer = await one.ask(two, offer("a", "r"))
    assert isinstance(answer, Accepted)
    assert not answer.made
    await asyncio.sleep(1)
    assert two.running == ["a"]


@simulate
async def test_a_cancellation_that_cannot_be_kept_is_not_acknowledged():
    one, two = await Hosts().join(2)
    two.store.broken = lambda changes: any(isinstance(it, Put) and isinstance(it.record, OutcomeRecord)
                                           for it in changes)  # fmt: skip
    with pytest.raises(NoAnswer):
        await one.link.ask(two.me, Cancel("r"), 1)
    with pytest.raises(StorageFailed):
        await two.hosting.cancel(Cancel("r"))
