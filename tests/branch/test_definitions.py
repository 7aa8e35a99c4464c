"""Two layers of definitions: which one is gone by, and what becomes of each."""

import pytest

from branchd.branch.layers import Layers, app_entry, queue_entry, readable, tombstone
from branchd.branch.records import AppRecord, InstanceRecord, Put, QueueRecord, RemoveApp, RemoveEntry, RemoveQueue
from branchd.core.errors import NotFound
from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.core.values import Key, QueueDeclaration
from tests.fakes.store import MemoryStore

ONE, TWO = Stamp(1, "one"), Stamp(2, "two")
WEB = AppRecord("web", {"weight": 1}, 4, 1.5)
MAIL, NEWS = (QueueRecord("web", QueueDeclaration(name, options={"durable": True})) for name in ("mail", "news"))


async def layers(*records: AppRecord | QueueRecord | InstanceRecord | Entry) -> Layers:
    store = MemoryStore("me")
    await store.write(*map(Put, records))
    return Layers(store.load())


async def test_records_come_back_from_their_entries():
    shared = await layers(app_entry(WEB, ONE), queue_entry(MAIL, ONE))
    assert shared.app("web") == AppRecord("web", {"weight": 1}, 4, 1.5, ONE)
    assert shared.queue("web", "mail") == MAIL
    assert shared.names() == ["web"]
    assert {entry.name for entry in shared.entries_of("web")} == {"", "mail"}
    assert (shared.tag(shared.app("web")), shared.tag(WEB)) == ("one.1", "me.4")


async def test_the_branchs_own_is_gone_by_with_its_own_queues():
    both = await layers(WEB, NEWS, app_entry(AppRecord("web", {}), ONE), queue_entry(MAIL, ONE))
    assert both.app("web") == WEB
    assert list(both.queues_of("web")) == ["news"]
    assert both.own("web")
    assert both.both("web")
    assert both.conflict("web")
    assert not both.twins("web")
    both.apply(RemoveApp("web"))
    assert (both.app("web").spec, list(both.queues_of("web")), both.conflict("web")) == ({}, ["mail"], False)
    with pytest.raises(NotFound):
        both.queue("web", "news")


async def test_layers_conflict_by_what_they_say_and_not_by_who_said_it_when():
    other = AppRecord("web", {"weight": 1}, 9, 2.0)
    both = await layers(WEB, MAIL, app_entry(other, TWO), queue_entry(MAIL, TWO))
    assert both.twins("web")
    assert not both.conflict("web")
    both.apply(Put(NEWS))
    assert both.conflict("web")
    both.apply(RemoveQueue("web", "news"), Put(tombstone(queue_entry(MAIL, ONE), Stamp(3, "one"))))
    assert both.conflict("web")


async def test_an_app_without_a_definition_is_bare_as_long_as_it_has_instances():
    some = await layers(
        InstanceRecord(Key("lost", "one"), {}), InstanceRecord(Key("web", "one"), {}), app_entry(WEB, ONE)
    )
    assert (some.bare("lost"), some.bare("web"), some.app("lost").spec) == (True, False, {})
    end = tombstone(app_entry(WEB, ONE), TWO)
    some.apply(Put(end))
    assert (some.bare("web"), some.app("web").spec, some.app("web").stamp) == (True, WEB.spec, None)
    assert some.shared("web") is None
    some.forget("web")
    assert some.names() == ["lost"]
    some.apply(Put(app_entry(WEB, ONE)))  # older than the tombstone
    assert some.find("web") is None
    some.apply(Put(app_entry(AppRecord("lost", {"weight": 2}), ONE)))
    assert (some.bare("lost"), some.app("lost").spec) == (False, {"weight": 2})


async def test_what_is_shared_can_be_made_the_branchs_own():
    shared = await layers(app_entry(WEB, ONE), queue_entry(MAIL, ONE))
    shared.apply(*shared.owned("web"))
    assert shared.app("web") == WEB
    assert shared.twins("web")
    assert shared.owned("web") == shared.owned("none") == ()


async def test_queues_of_a_deleted_app_are_seen_by_nobody():
    shared = await layers(tombstone(app_entry(WEB, ONE), TWO), queue_entry(MAIL, Stamp(3, "one")))
    assert (shared.queues_of("web"), shared.find_queue("web", "mail"), shared.entries_of("web")) == ({}, None, ())
    shared.apply(RemoveEntry(EntryKind.APP, "web", ""))
    assert shared.entries.get((EntryKind.APP, "web", "")) is None


async def test_replicas_are_those_of_the_neighbourhoods_apps():
    two, none = AppRecord("web", {"replicas": 2}), AppRecord("a", {})
    some = await layers(AppRecord("own", {"replicas": 3}), app_entry(two, ONE), app_entry(none, ONE))
    assert some.replicated() == {"web": (2, 60.0)}


@pytest.mark.parametrize(("absence", "seconds"), [(5, 5.0), (0.5, 0.5), ("never", None)])
async def test_how_long_a_replica_is_missed_is_the_apps_to_say(absence: object, seconds: float | None):
    some = await layers(app_entry(AppRecord("web", {"replicas": 2, "absence": absence}), ONE))
    assert some.replicated() == {"web": (2, seconds)}


@pytest.mark.parametrize("wrong", [10**9, 1001, -1, True, "3", 2.0])
async def test_a_number_of_replicas_that_nobody_can_write_here_is_passed_over(wrong: object):
    some = await layers(app_entry(AppRecord("web", {"replicas": wrong}), ONE))
    assert some.replicated() == {}


def entry(kind: EntryKind, name: str, value: object, app: str = "web") -> Entry:
    return Entry(kind, app, name, ONE, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        entry(EntryKind.APP, "x", dict(app_entry(WEB, ONE).value)),
        entry(EntryKind.APP, "", dict(app_entry(WEB, ONE).value), "../web"),
        entry(EntryKind.APP, "", {}),
        entry(EntryKind.APP, "", {"spec": [], "generation": 1, "created_at": 1.0}),
        entry(EntryKind.APP, "", {"spec": {}, "generation": "1", "created_at": 1.0}),
        entry(EntryKind.QUEUE, "", {"name": ""}),
        entry(EntryKind.QUEUE, "mail", {"name": "news"}),
        entry(EntryKind.QUEUE, "mail", {"name": "mail", "exchange": 1}),
        entry(EntryKind.QUEUE, "mail", {"name": "mail", "more": 1}),
        entry(EntryKind.QUEUE, "a,b", None),
    ],
)
def test_what_another_branch_wrote_is_read_strictly(wrong: Entry):
    assert not readable(wrong)


def test_what_this_branch_writes_is_readable():
    for one in (app_entry(WEB, ONE), queue_entry(MAIL, ONE)):
        assert readable(one)
        assert readable(tombstone(one, TWO))
