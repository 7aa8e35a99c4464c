"""Definitions over three branches and a broker in memory, in virtual time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from branchd.branch.mesh.sharing import AGAIN_WITHIN
from branchd.branch.records import Put
from branchd.branch.supervisor import Supervisor
from branchd.core.access import Scope
from branchd.core.errors import Conflict, Invalid, NotFound, Stale, StorageFailed, Unavailable
from branchd.core.lifecycle import State
from branchd.core.spec import Unusable
from branchd.core.stamps import MOST_AHEAD, Entry, EntryKind, Stamp, at
from branchd.wire.mesh import Wrote
from branchd.wire.resources import ConditionType
from tests.branch.sharers import WEB, Branch, exchange, own
from tests.fakes.bus import MemoryBroker
from tests.fakes.store import MemoryStore
from tests.simulation.loop import EPOCH, simulate
from tests.waiting import until


@asynccontextmanager
async def branches(*made: Branch) -> AsyncIterator[tuple[Branch, ...]]:
    try:
        for branch in made:
            await branch.begin()
        yield made
    finally:
        for branch in made:
            await branch.close()


@asynccontextmanager
async def three(**more: object) -> AsyncIterator[tuple[MemoryBroker, Branch, Branch, Branch]]:
    broker = MemoryBroker()
    async with branches(*(Branch(broker, number, **more) for number in range(3))) as (a, b, c):  # type: ignore[arg-type]
        yield broker, a, b, c


def agree(*members: Branch) -> bool:
    first, *others = (branch.view() for branch in members)
    return all(view == first for view in others)


@simulate
async def test_a_write_is_known_everywhere_within_a_second():
    async with three() as (_, a, b, c):
        await a.apps.put("web", WEB)
        await b.apps.put("post", {**WEB, "weight": 2})
        await a.queues.put("web", "mail", {"exchange": "post"})
        await asyncio.sleep(1)
        assert agree(a, b, c)
        assert sorted(c.view()) == ["post", "web"]
        assert c.queues.get("web", "mail").exchange == "post"
        assert c.condition("web", ConditionType.SHARED) == "True"
        await c.apps.patch("web", {"weight": 3})
        await b.queues.delete("web", "mail")
        await asyncio.sleep(1)
        assert agree(a, b, c)
        assert (a.apps.get("web").generation, a.apps.get("web").spec["weight"], a.queues.list("web")) == (2, 3, [])
        assert sorted(a.events()[-2:]) == ["app.changed", "queue.deleted"]


@simulate
async def test_of_two_writes_at_once_one_stays_everywhere():
    async with three() as (_, a, b, c):
        await asyncio.gather(a.apps.put("web", {**WEB, "weight": 1}), b.apps.put("web", {**WEB, "weight": 2}))
        await asyncio.sleep(1)
        assert agree(a, b, c)
        assert c.apps.tag("web").split(".")[0] in {a.id, b.id}


@simulate
async def test_the_tag_is_the_same_at_every_branch_and_is_compared_where_it_is_given():
    async with three() as (_, a, b, _c):
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        tag = a.apps.tag("web")
        assert b.apps.tag("web") == tag
        await b.apps.put("web", {**WEB, "weight": 2}, match=tag)
        await asyncio.sleep(1)
        with pytest.raises(Conflict, match="nothing to publish"):
            await a.apps.publish("web")
        with pytest.raises(Stale, match="generation 2"):
            await a.apps.put("web", {**WEB, "weight": 3}, match=tag)


@simulate
async def test_a_branch_that_was_cut_off_writes_all_the_same_and_all_agree_when_it_is_back():
    async with three() as (broker, a, b, c):
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        broker.partition(c.id, at_once=True)
        await c.apps.put("mine", WEB)
        await c.apps.patch("web", {"weight": 5})
        await asyncio.sleep(5)
        await a.apps.put("yours", WEB)
        await a.apps.delete("web")
        assert sorted(c.view()) == ["mine", "web"]
        broker.heal()
        await asyncio.sleep(5)
        new = await exchange(c, a)
        await exchange(b, c)
        assert {(entry.app, entry.value is None) for entry in new} == {("yours", False), ("web", True)}
        assert agree(a, b, c)
        assert sorted(a.view()) == ["mine", "yours"]


@simulate
async def test_what_was_deleted_never_comes_back_by_a_branch_that_was_away_longer():
    async with three() as (broker, a, b, c):
        await a.apps.put("web", WEB)
        await a.queues.put("web", "mail", {})
        await asyncio.sleep(1)
        broker.partition(c.id, at_once=True)
        await a.apps.delete("web")
        await asyncio.sleep(3600)
        broker.heal()
        await asyncio.sleep(5)
        await exchange(a, c)
        assert not a.view()
        assert not c.view()
        assert not b.view()
        again = await Branch(None, 2, c.store).begin()
        assert not again.view()
        # Under its old name another one begins anew, without the old one's queues.
        await b.apps.put("web", WEB)
        await asyncio.sleep(1)
        assert agree(a, b, c)
        assert c.queues.list("web") == []
        await again.close()


@simulate
async def test_a_queue_that_was_written_while_its_app_was_deleted_does_not_come_back_with_the_name():
    async with three() as (broker, a, b, c):
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        broker.partition(c.id, at_once=True)
        await a.apps.delete("web")
        await c.queues.put("web", "late", {})
        broker.heal()
        await asyncio.sleep(5)
        await exchange(a, c)
        await exchange(b, c)
        assert not c.view()
        await b.apps.put("web", WEB)
        await asyncio.sleep(1)
        assert agree(a, b, c)
        assert a.queues.list("web") == []


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8), st.integers(0, 3)), max_size=25))
@simulate
async def test_whatever_is_lost_doubled_and_late_branches_agree_when_they_have_compared(seed, steps):
    broker = MemoryBroker(seed)
    members = [Branch(broker, number) for number in range(3)]
    async with branches(*members):
        broker.faults.loss = broker.faults.duplication = broker.faults.reordering = 0.3
        for number, what, weight in steps:
            branch = members[number]
            branch.wall.offset = weight * 10.0 - 15
            name, queue = ("web", "post")[what % 2], f"q{weight}"
            with suppress(NotFound):
                match what // 2:
                    case 0:
                        await branch.apps.put(name, {**WEB, "weight": weight})
                    case 1:
                        await branch.apps.delete(name)
                    case 2:
                        await branch.queues.put(name, queue, {"exchange": str(weight)})
                    case 3:
                        await branch.queues.delete(name, queue)
                    case _:
                        broker.partition(branch.id, at_once=True)
            await asyncio.sleep(weight / 3)
        broker.faults.loss = broker.faults.duplication = broker.faults.reordering = 0.0
        broker.heal()
        await asyncio.sleep(30)
        for one, two in ((0, 1), (1, 2), (2, 0), (0, 1)):
            await exchange(members[one], members[two])
        assert agree(*members)
        assert len({branch.sharing.digests() for branch in members}) == 1
        assert Branch(None, 0, members[0].store).view() == members[0].view()


# What it means for instances


@simulate
async def test_a_definition_reaches_the_instances_of_every_branch_at_once():
    async with three() as (_, a, b, _c):
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        one = await b.pinned("web", "one")
        await a.apps.patch("web", {"labels": {"team": "pay"}, "command": ["serve", "more"]})
        await asyncio.sleep(1)
        assert one.spec.labels == {"team": "pay"}
        assert {view.type: view.status.value for view in one.view().status.conditions}["ConfigCurrent"] == "False"
        assert one.state is State.RUNNING


@simulate
async def test_a_definition_from_elsewhere_that_is_wrong_here_is_taken_and_makes_its_instances_unusable():
    async with three() as (_, a, b, c):
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        one = await b.pinned("web", "one")
        await a.apps.patch("web", {"command": None})
        await asyncio.sleep(1)
        assert agree(a, b, c)
        assert isinstance(one.spec, Unusable)
        assert "/command" in one.view().status.reason
        assert len(b.processes.running) == 1  # what runs goes on
        two = await b.pinned("web", "two", command=["serve"], pool="threads")
        with pytest.raises(Invalid, match="instance web:two would be invalid"):
            await b.apps.patch("web", {"autoscale": {"min": 1, "max": 2}})
        await a.apps.patch("web", {"command": ["serve"]})
        await asyncio.sleep(1)
        assert not isinstance(one.spec, Unusable)
        assert not isinstance(two.spec, Unusable)


@simulate
async def test_no_other_branch_makes_an_instance_run_as_root():
    broker = MemoryBroker()
    a, b, c = Branch(broker, 0), Branch(broker, 1), Branch(broker, 2, peer_scope=Scope.ADMIN)
    async with branches(a, b, c):
        await a.apps.put("web", {**WEB, "user": None})
        await asyncio.sleep(1)
        with pytest.raises(Invalid):
            await b.pinned("web", "one")
        assert not isinstance((await a.pinned("web", "mine")).spec, Unusable)
        two = await b.pinned("web", "two", user="worker")
        three_ = await c.pinned("web", "three")
        await a.apps.patch("web", {"command": ["evil"]})
        await asyncio.sleep(1)
        assert two.spec.command == ("evil",) == three_.spec.command
        await b.apps.put("post", {**WEB, "user": None})
        four = await b.pinned("post", "four")
        await asyncio.sleep(1)
        await a.apps.patch("post", {"command": ["evil"]})
        await asyncio.sleep(1)
        assert isinstance(four.spec, Unusable)
        assert "as root" in four.spec.why


ROOTS = {**WEB, "user": "root", "command": ["evil"]}


@asynccontextmanager
async def rewritten() -> AsyncIterator[tuple[Branch, Branch, Supervisor]]:
    """An app with an instance at the second branch, which the first has written anew so that it would run as root."""
    async with three() as (_, a, b, _c):
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        one = await b.pinned("web", "one")
        await a.apps.put("web", ROOTS)
        await asyncio.sleep(1)
        assert isinstance(one.spec, Unusable)
        why = "the app's definition comes from another branch, and other branches may run nothing as root here"
        assert why in one.spec.why
        yield a, b, one


@pytest.mark.parametrize("cascade", [False, True])
@simulate
async def test_a_foreign_definition_stays_foreign_when_a_deletion_makes_this_branch_write_it_again(cascade):
    async with rewritten() as (a, b, one):
        await a.apps.delete("web", cascade=cascade)
        await asyncio.sleep(2)
        assert b.definitions.app("web").spec["command"] == ["evil"]
        assert b.definitions.own("web") is cascade
        assert isinstance(one.spec, Unusable)
        await one.idle()
        assert isinstance(Branch(None, 1, b.store).fleet.get("web", "one").spec, Unusable)


@simulate
async def test_a_stamp_with_this_branchs_id_makes_nothing_its_own():
    async with three() as (_, a, b, c):
        await b.apps.put("web", {**WEB, "user": "root"})
        one = await b.pinned("web", "one")
        await asyncio.sleep(1)
        entry = a.definitions.shared("web")
        forged = replace(entry, stamp=Stamp(entry.stamp.time + 1, b.id), value={**entry.value, "spec": ROOTS})
        a.link.broadcast(Wrote((forged,)))
        await asyncio.sleep(1)
        assert b.definitions.app("web").spec["command"] == ["evil"]
        assert isinstance(one.spec, Unusable)
        await c.apps.put("web", {**WEB, "user": "root"})
        await asyncio.sleep(1)
        assert not isinstance(one.spec, Unusable)  # the very words of this branch's operator


@simulate
async def test_who_patches_what_another_branch_wrote_answers_for_none_of_it_and_who_puts_it_for_all():
    async with rewritten() as (_, b, one):
        await b.apps.patch("web", {"weight": 2})
        assert isinstance(one.spec, Unusable)
        spec = dict(b.definitions.app("web").spec)
        generation = b.apps.get("web").generation
        await b.apps.put("web", spec)
        assert (one.spec.command, one.spec.weight) == (("evil",), 2)
        assert b.apps.get("web").generation == generation  # nothing of it changed
        await b.apps.patch("web", {"weight": 3})
        assert not isinstance(one.spec, Unusable)
        assert not isinstance(Branch(None, 1, b.store).fleet.get("web", "one").spec, Unusable)
        await b.instances.delete("web", "one")
        await until(lambda: not b.fleet.all())
        await b.apps.delete("web")
        assert b.store.load().authored == ()


# Clocks


@simulate
async def test_a_branch_whose_clock_is_off_refuses_to_write_and_says_why():
    async with three() as (_, a, b, c):
        await a.apps.put("web", WEB)
        a.offset = 61.0
        for write in (
            a.apps.put("post", WEB), a.apps.patch("web", {"weight": 2}), a.apps.delete("web"),
            a.queues.put("web", "mail", {}),
        ):  # fmt: skip
            with pytest.raises(Unavailable, match=r"clock-skew: this branch's clock is 61 s ahead"):
                await write
        a.offset = -3600.0
        with pytest.raises(Unavailable, match="behind"):
            await a.apps.put("post", WEB)
        a.offset = 60.0
        await a.apps.put("post", WEB)
        await asyncio.sleep(1)
        assert agree(a, b, c)


@simulate
async def test_a_write_that_comes_after_another_wins_though_its_clock_is_behind():
    async with three() as (_, a, b, c):
        b.wall.offset = -50.0
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        await b.apps.patch("web", {"weight": 2})
        await asyncio.sleep(1)
        assert agree(a, b, c)
        assert a.apps.get("web").spec["weight"] == 2
        await b.close()
        later = Branch(b.broker, 1, b.store)  # its next life
        later.wall.offset = -500.0
        await later.begin()
        await later.apps.patch("web", {"weight": 3})
        await asyncio.sleep(1)
        assert agree(a, later, c)
        assert a.apps.get("web").spec["weight"] == 3
        await later.close()


@simulate
async def test_definitions_from_the_far_future_and_unreadable_ones_are_dropped_and_counted():
    async with three() as (_, a, _b, c):
        ahead = Stamp(at(EPOCH + 2 * MOST_AHEAD), a.id)
        good = {"spec": WEB, "generation": 1, "created_at": 1.0}
        now = Stamp(at(EPOCH), a.id)
        a.link.broadcast(
            Wrote(
                (
                    Entry(EntryKind.APP, "ahead", "", ahead, good),
                    Entry(EntryKind.APP, "../up", "", now, good),
                    Entry(EntryKind.APP, "named", "x", now, good),
                    Entry(EntryKind.APP, "empty", "", now, {}),
                    Entry(EntryKind.QUEUE, "web", "q", now, {"name": "other"}),
                    Entry(EntryKind.QUEUE, "web", "a,b", now, {"name": "a,b"}),
                    Entry(EntryKind.APP, "header", "", Stamp(now.time, "x\r\nSet-Cookie: y"), good),
                    Entry(EntryKind.APP, "counted", "", now, {**good, "generation": 1 << 64}),
                    Entry(EntryKind.APP, "good", "", now, good),
                )
            )
        )
        await asyncio.sleep(1)
        assert list(c.view()) == ["good"]
        assert c.sharing.dropped == {"from the future": 1, "not readable": 7}
        await c.apps.put("web", WEB)
        assert c.definitions.shared("web").stamp.time < ahead.time


# Two layers


@simulate
async def test_joining_changes_nothing_and_a_difference_is_told():
    broker = MemoryBroker()
    a = Branch(broker, 0)
    b = Branch(broker, 1, await own(MemoryStore(f"{1:032x}"), "web", {**WEB, "weight": 7}, "mail"))
    async with branches(a, b):
        one = await b.pinned("web", "one")
        assert b.condition("web", ConditionType.SHARED) == "False"
        assert b.condition("web", ConditionType.DEFINITION_CONFLICT) is None
        assert "publish" in b.apps.get("web").conditions[0].reason
        assert b.definitions.shared("web") is None
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        assert b.definitions.conflict("web")
        assert b.condition("web", ConditionType.DEFINITION_CONFLICT) == "True"
        assert (b.apps.get("web").spec["weight"], one.spec.weight, a.apps.get("web").spec.get("weight")) == (7, 7, None)
        assert [queue.name for queue in b.queues.list("web")] == ["mail"]
        with pytest.raises(Conflict, match="in the neighbourhood too"):
            await b.apps.delete("web", cascade=True)
        # What is written here stays here until an operator says otherwise.
        await b.apps.patch("web", {"weight": 8})
        await asyncio.sleep(1)
        assert (one.spec.weight, "weight" in a.apps.get("web").spec) == (8, False)
        adopted = await b.apps.adopt("web")
        assert ("weight" in adopted.spec, one.spec.weight, b.queues.list("web")) == (False, 1, [])
        assert agree(a, b)
        with pytest.raises(Conflict, match="nothing to drop"):
            await b.apps.adopt("web")
        assert len(b.processes.spawned) == 1


@simulate
async def test_publishing_makes_it_the_neighbourhoods_with_its_queues():
    broker = MemoryBroker()
    a = Branch(broker, 0)
    b = Branch(broker, 1, await own(MemoryStore(f"{1:032x}"), "web", {**WEB, "weight": 7}, "mail"))
    async with branches(a, b):
        await a.apps.put("web", WEB)
        await a.queues.put("web", "other", {})
        for weight in range(3):
            await a.apps.patch("web", {"weight": weight})
        with pytest.raises(Conflict, match="nothing to publish"):
            await a.apps.publish("web")
        await asyncio.sleep(1)
        published = await b.apps.publish("web")
        await asyncio.sleep(1)
        assert agree(a, b)
        assert (published.generation, a.apps.get("web").spec["weight"]) == (5, 7)
        assert [queue.name for queue in a.queues.list("web")] == ["mail"]
        later = await Branch(None, 1, b.store).begin()
        assert later.view() == b.view()
        assert not later.definitions.own("web")
        await later.close()


@simulate
async def test_a_definition_of_this_branch_alone_is_published_and_not_adopted():
    broker = MemoryBroker()
    a = Branch(broker, 0)
    b = Branch(broker, 1, await own(MemoryStore(f"{1:032x}"), "web", WEB))
    async with branches(a, b):
        with pytest.raises(Conflict, match="only this branch has it"):
            await b.apps.adopt("web")
        await b.apps.publish("web")
        await asyncio.sleep(1)
        assert agree(a, b)
        assert a.definitions.entries_of("web") == b.definitions.entries_of("web") != ()


@simulate
async def test_where_both_say_the_same_the_own_one_is_dropped_silently():
    broker = MemoryBroker()
    stores = [await own(MemoryStore(f"{number:032x}"), "web", WEB, "mail") for number in (1, 2)]
    a, b, c = Branch(broker, 0), Branch(broker, 1, stores[0]), Branch(broker, 2, stores[1])
    async with branches(a, b, c):
        one = await c.pinned("web", "one")
        await b.apps.publish("web")
        await asyncio.sleep(1)
        assert not c.definitions.own("web")
        assert agree(a, b, c)
        assert not isinstance(one.spec, Unusable)
        assert "app.changed" not in c.events()
        assert "app.deleted" not in c.events()
        later = await Branch(broker, 3, await own(MemoryStore(f"{3:032x}"), "web", WEB, "mail")).begin()
        await exchange(later, a)
        assert not later.definitions.own("web")
        await later.close()


@simulate
async def test_what_was_written_here_is_allowed_here_also_as_the_shared_one_that_says_the_same():
    broker = MemoryBroker()
    root = {**WEB, "user": "root"}
    a, b = Branch(broker, 0), Branch(broker, 1, await own(MemoryStore(f"{1:032x}"), "web", root))
    async with branches(a, b):
        one = await b.pinned("web", "one")
        await a.apps.put("web", root)
        await asyncio.sleep(1)
        assert not b.definitions.own("web")
        assert not isinstance(one.spec, Unusable)
    assert not isinstance(Branch(broker, 1, b.store).fleet.get("web", "one").spec, Unusable)


@simulate
async def test_without_a_broker_a_shared_app_becomes_this_branchs_own_when_it_is_written():
    broker = MemoryBroker()
    async with branches(Branch(broker, 0)) as (a,):
        await a.apps.put("web", WEB)
        await a.queues.put("web", "mail", {})
    alone = await Branch(None, 0, a.store).begin()
    assert alone.apps.get("web").conditions == ()
    with pytest.raises(Conflict, match="no broker"):
        await alone.apps.delete("web")
    with pytest.raises(Conflict, match="no broker"):
        await alone.apps.publish("web")
    await alone.apps.patch("web", {"weight": 4})
    await alone.queues.put("web", "news", {})
    assert [queue.name for queue in alone.queues.list("web")] == ["mail", "news"]
    assert (alone.apps.get("web").generation, alone.apps.get("web").conditions[1].status) == (2, "True")
    await alone.close()
    back = await Branch(broker, 0, a.store).begin()
    assert back.definitions.conflict("web")
    await back.close()


# Deleting


@simulate
async def test_an_app_that_has_instances_anywhere_is_not_deleted():
    answers = {"web": (2, ()), "post": (0, ("far", "away"))}

    async def elsewhere(app):
        return answers[app]

    broker = MemoryBroker()
    async with branches(Branch(broker, 0, elsewhere=elsewhere)) as (a,):
        await a.apps.put("web", WEB)
        await a.apps.put("post", WEB)
        with pytest.raises(Conflict, match="instances on 2 other branches"):
            await a.apps.delete("web")
        with pytest.raises(Unavailable, match="far, away"):
            await a.apps.delete("post")
        await a.apps.delete("post", cascade=True)
        assert list(a.view()) == ["web"]


@simulate
async def test_an_owner_of_live_instances_publishes_a_deleted_app_again():
    async with three() as (_, a, b, c):
        await a.apps.put("web", WEB)
        await a.queues.put("web", "mail", {})
        await asyncio.sleep(1)
        one = await b.placed("web", "one")
        await a.apps.delete("web")  # nobody told that it has an instance
        await asyncio.sleep(AGAIN_WITHIN + 1)
        assert agree(a, b, c)
        assert [queue.name for queue in c.queues.list("web")] == ["mail"]
        assert c.apps.tag("web").startswith(b.id)
        assert one.state is State.RUNNING
        assert "app.deleted" not in b.events()


@simulate
async def test_what_was_deleted_before_its_app_is_not_published_again():
    async with three() as (broker, a, b, c):
        await a.apps.put("web", WEB)
        for name in ("mail", "news", "post"):
            await a.queues.put("web", name, {})
        await asyncio.sleep(1)
        await b.placed("web", "one")
        broker.partition(b.id, at_once=True)
        await a.queues.delete("web", "mail")
        await asyncio.sleep(1)
        await c.apps.delete("web")
        await asyncio.sleep(1)
        broker.heal()
        await asyncio.sleep(5)
        await exchange(b, a)
        await asyncio.sleep(AGAIN_WITHIN + 1)
        assert agree(a, b, c)
        assert [queue.name for queue in c.queues.list("web")] == ["news", "post"]


@simulate
async def test_of_many_owners_one_publishes_a_deleted_app_again() -> None:
    broker = MemoryBroker()
    many = [Branch(broker, number) for number in range(8)]
    async with branches(*many):
        await many[0].apps.put("web", WEB)
        await asyncio.sleep(1)
        for owner in many[1:]:
            await owner.placed("web", f"of-{owner.id}")
        written = []
        for owner in many[1:]:
            owner.sharing._tell = lambda entries, tell=owner.sharing._tell: (written.extend(entries), tell(entries))
        await many[0].apps.delete("web")
        await asyncio.sleep(AGAIN_WITHIN + 1)
        assert agree(*many)
        assert [entry.stamp.branch for entry in written] == [many[1].id]
        assert all(len(owner.fleet.of("web")) == 1 for owner in many[1:])


@simulate
async def test_an_app_that_is_being_deleted_gets_no_new_instances():
    async with three() as (_, a, _b, _c):
        await a.apps.put("web", WEB)
        one = await a.pinned("web", "one")
        deletion = asyncio.create_task(a.apps.delete("web", cascade=True))
        while not one.record.deleting:
            await one.changed()
        with pytest.raises(Conflict, match="app web was deleted"):
            await a.pinned("web", "two")
        await deletion
        assert not a.fleet.all()


@simulate
async def test_a_daemon_that_ends_in_the_middle_of_a_cascade_leaves_no_instance_without_its_app(monkeypatch):
    async with three() as (_, a, _b, _c):
        await a.apps.put("web", WEB)
        one = await a.pinned("web", "one")

        async def killed(*_: object, **__: object) -> None:
            raise StorageFailed("killed")

        monkeypatch.setattr(a.sharing, "write", killed)
        with pytest.raises(StorageFailed):
            await a.apps.delete("web", cascade=True)
        assert one.record.deleting
        assert a.definitions.shared("web") is not None


@simulate
async def test_a_cascade_that_is_overtaken_by_a_new_definition_takes_nothing():
    async with three() as (_, a, b, _c):
        await a.apps.put("web", WEB)
        await a.apps.delete("web", cascade=True)
        end = a.definitions.entries.get((EntryKind.APP, "web", ""))
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        one = await b.placed("web", "one")
        await b.sharing._bury(end)
        assert not one.record.deleting


@simulate
async def test_a_cascade_takes_placed_instances_everywhere_and_leaves_pinned_ones_of_others_their_definition():
    async with three() as (_, a, b, c):
        await a.apps.put("web", WEB)
        await a.queues.put("web", "mail", {})
        await asyncio.sleep(1)
        await a.pinned("web", "here")
        await b.placed("web", "one")
        await c.placed("web", "two")
        kept = await c.pinned("web", "kept")
        await a.apps.delete("web", cascade=True)
        await asyncio.sleep(10)
        assert not a.view()
        assert not b.view()
        assert not a.fleet.all()
        assert not b.fleet.all()
        assert c.fleet.all() == [kept]
        assert kept.state is State.RUNNING
        assert c.condition("web", ConditionType.SHARED) == "False"
        assert [queue.name for queue in c.queues.list("web")] == ["mail"]
        assert len(c.processes.spawned) == 2


@pytest.mark.parametrize(("scope", "user"), [(Scope.OPERATE, "root"), (Scope.READ, "worker")])
@simulate
async def test_a_cascade_from_elsewhere_takes_nothing_that_others_may_not_have_here(scope, user):
    broker = MemoryBroker()
    async with branches(Branch(broker, 0), Branch(broker, 1, peer_scope=scope)) as (a, b):
        await b.apps.put("web", {**WEB, "user": user})
        await asyncio.sleep(1)
        one = await b.placed("web", "one")
        await a.apps.delete("web", cascade=True)
        await asyncio.sleep(10)
        assert (b.fleet.all(), one.record.deleting, one.state) == ([one], False, State.RUNNING)
        assert not isinstance(one.spec, Unusable)
        assert b.definitions.own("web")
    async with branches(Branch(broker, 1, b.store, peer_scope=scope)) as (later,):
        await asyncio.sleep(10)
        assert [str(it.key) for it in later.fleet.all()] == ["web:one"]
        await later.apps.delete("web", cascade=True)
        assert not later.fleet.all()
        assert later.store.load().authored == ()


@simulate
async def test_a_cascade_that_a_daemon_did_not_finish_is_finished_by_the_next():
    broker = MemoryBroker()
    async with branches(Branch(broker, 0), Branch(broker, 1)) as (a, b):
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        await b.placed("web", "one")
        await asyncio.sleep(1)
        record = b.store.load().instances[0]
        await a.apps.delete("web", cascade=True)
        await asyncio.sleep(10)
        assert not b.fleet.all()
    await b.store.write(Put(record))  # as if it had been killed between the two commits
    async with branches(Branch(broker, 1, b.store)) as (later,):
        await asyncio.sleep(10)
        assert not later.fleet.all()
        assert not later.view()


@simulate
async def test_what_the_disk_does_not_take_is_not_believed_and_comes_again():
    async with three() as (_, a, b, c):
        b.store.full = True
        await a.apps.put("web", WEB)
        await asyncio.sleep(1)
        assert not b.view()
        with pytest.raises(StorageFailed):
            await exchange(b, a)
        b.store.full = False
        await exchange(b, a)
        assert agree(a, b, c)


@simulate
async def test_the_oldest_of_too_many_tombstones_are_forgotten_on_disk_too():
    broker = MemoryBroker()
    async with branches(Branch(broker, 0), Branch(broker, 1)) as (a, b):
        for branch in (a, b):
            branch.definitions.entries._most_tombstones = 2
        for name in ("web", "post", "shop"):
            await a.apps.put(name, WEB)
            await a.apps.delete(name)
            await asyncio.sleep(1)
        for branch in (a, b):
            assert {entry.app for entry in branch.store.load().entries} == {"post", "shop"}
        assert a.sharing.digests() == b.sharing.digests()
