"""What every Store must do; run for SQLite and for the fake by test_store.py."""

import asyncio
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from branchd.branch.ports import Store
from branchd.branch.records import (
    REQUEST,
    AppRecord,
    AuthoredRecord,
    EventRecord,
    Expire,
    InstanceRecord,
    OutcomeRecord,
    Placed,
    Put,
    QueueRecord,
    Raw,
    Remember,
    RemoveApp,
    RemoveAuthored,
    RemoveEntry,
    RemoveInstance,
    RemoveOutcome,
    RemoveQueue,
    RemoveToken,
    RunRecord,
    Snapshot,
    TokenRecord,
)
from branchd.core.errors import Conflict
from branchd.core.lifecycle import Machine, State
from branchd.core.spec import Wanted
from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.core.values import Exit, Identity, Key, QueueDeclaration

SHOP = AppRecord("shop", {"application": "proj"})
MAIL = QueueRecord("shop", QueueDeclaration("mail"))
KEY = Key("shop", "mail-1")
INSTANCE = InstanceRecord(KEY, {"queues": ["mail"]}, replica=True)
RUN = RunRecord(KEY, Machine(), boot="b")
TOKEN = TokenRecord("t1", "ci", "0" * 64, "operate", 1.0)


def events(*numbers: int) -> list[Put]:
    return [Put(EventRecord(number, 1.0, "instance.state")) for number in numbers]


def outcome(request: str, at: float, instance: str | None, ended: bool = False) -> Put:
    return Put(OutcomeRecord(request, "d", at, "shop", instance, ended))


_text = st.text(max_size=12)
_float = st.floats(allow_nan=False, allow_infinity=False)
_int = st.integers(-(2**63), 2**63 - 1)
_leaf = st.none() | st.booleans() | _int | _float | _text
_json = st.recursive(_leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3))
_raw: st.SearchStrategy[Raw] = st.dictionaries(_text, _json, max_size=4)
_key = st.builds(Key, _text, _text)
_identity = st.builds(Identity, _text, _int, _int)
_machine = st.builds(
    Machine,
    state=st.sampled_from(State),
    wanted=st.sampled_from(Wanted),
    run=_int,
    alive=st.booleans(),
    crashes=st.lists(_float, max_size=4).map(tuple),
    restarts=_int,
    step=_int,
    deadline=st.none() | _float,
    reason=_text,
    blamed=st.booleans(),
)
_exit = st.none() | st.builds(Exit, code=_int) | st.builds(Exit, signal=_int, why=_text) | st.just(Exit())
_apps = st.builds(AppRecord, _text, _raw, _int, _float, source=_text)
_queue = st.builds(QueueDeclaration, _text, st.none() | _text, _text, st.none() | _text, _raw)
_placed = st.none() | st.builds(Placed, _text, _text, st.booleans(), _float)
_instances = st.builds(InstanceRecord, _key, _raw, _int, _float, st.booleans(), _placed, _text, st.booleans())
_runs = st.builds(
    RunRecord,
    key=_key,
    machine=_machine,
    boot=_text,
    nonce=_text,
    intent=_float,
    identity=st.none() | _identity,
    started_at=st.none() | _float,
    observed_generation=_int,
    launched=_text,
    last_exit=_exit,
    last_exit_at=st.none() | _float,
    last_words=st.lists(_text, max_size=3).map(tuple),
)
_tokens = st.builds(TokenRecord, _text, _text, _text, _text, _float, st.none() | _float)
_events = st.builds(EventRecord, st.integers(1, 2**63 - 1), _float, _text, st.none() | _text, st.none() | _text, _raw)
_outcomes = st.builds(OutcomeRecord, _text, _text, _float, _text, st.none() | _text, st.booleans(), _text, _text)
_authored = st.builds(AuthoredRecord, _text, _text)
_stamp = st.builds(Stamp, _int, _text)
_entries = st.builds(Entry, st.sampled_from(EntryKind), _text, _text, _stamp, st.none() | _raw, st.booleans())


def _entry_key(entry: Entry) -> tuple[str, str, str]:
    return entry.kind, entry.app, entry.name


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[Snapshot, list[EventRecord]]:
    """A whole store, in which what belongs to something finds it."""
    apps = draw(st.lists(_apps, max_size=3, unique_by=lambda app: app.name))
    authored = draw(st.lists(_authored, max_size=3, unique_by=lambda it: it.app))
    instances = draw(st.lists(_instances, max_size=3, unique_by=lambda instance: instance.key))
    queues = [QueueRecord(app.name, draw(_queue)) for app in apps]
    runs = [replace(draw(_runs), key=instance.key) for instance in instances]
    tokens = draw(st.lists(_tokens, max_size=3, unique_by=lambda token: token.id))
    outcomes = draw(st.lists(_outcomes, max_size=3, unique_by=lambda outcome: outcome.request))
    entries = draw(st.lists(_entries, max_size=3, unique_by=_entry_key))
    kept = draw(st.lists(_events, max_size=3, unique_by=lambda event: event.id))
    snapshot = Snapshot(
        branch_id="",
        apps=tuple(sorted(apps, key=lambda app: app.name)),
        authored=tuple(sorted(authored, key=lambda it: it.app)),
        queues=tuple(sorted(queues, key=lambda queue: (queue.app, queue.queue.name))),
        instances=tuple(sorted(instances, key=lambda instance: instance.key)),
        runs=tuple(sorted(runs, key=lambda run: run.key)),
        tokens=tuple(sorted(tokens, key=lambda token: token.id)),
        outcomes=tuple(sorted(outcomes, key=lambda outcome: outcome.request)),
        entries=tuple(sorted(entries, key=_entry_key)),
        last_event=max([event.id for event in kept], default=0),
        facts=draw(st.dictionaries(_text, _text, max_size=3)),
    )
    return snapshot, sorted(kept, key=lambda event: event.id)


class StoreConformance:
    """Subclasses say how a store is opened."""

    def opened(self, folder: Path) -> AbstractContextManager[Store]:
        """The store that is kept in a folder: a new one, or what an earlier one of the same folder left."""
        raise NotImplementedError

    async def test_a_new_store_is_empty_and_has_an_id_of_its_own_that_stays(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            first = store.load()
            assert first == Snapshot(first.branch_id, (), (), (), (), (), (), (), (), 0, {})
            assert len(bytes.fromhex(first.branch_id)) == 16
            assert not await store.events(0, 10)
            assert await store.first_event() == 1
        with self.opened(tmp_path) as store:
            assert store.load() == first

    # The same method runs in two classes here, which hypothesis takes for a mistake.
    @settings(max_examples=60, suppress_health_check=[HealthCheck.differing_executors])
    @given(everything=snapshots())
    def test_what_was_written_is_there_when_it_is_opened_again(
        self, everything: tuple[Snapshot, list[EventRecord]]
    ) -> None:
        snapshot, kept = everything
        records = (*snapshot.apps, *snapshot.authored, *snapshot.queues, *snapshot.instances, *snapshot.runs)
        records += (*snapshot.tokens, *snapshot.outcomes, *snapshot.entries, *kept)
        changes = [Put(record) for record in records]
        changes += [Remember(name, value) for name, value in snapshot.facts.items()]

        async def scenario(folder: Path) -> None:
            with self.opened(folder) as store:
                store.load()
                await store.write(*changes)
                await store.write(*reversed(changes))
            with self.opened(folder) as store:
                found = store.load()
                assert replace(found, branch_id="") == snapshot
                assert list(await store.events(0, 10)) == kept

        # In memory: what a disk does to it is not the question here, and its pace is.
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            asyncio.run(scenario(Path(folder)))

    async def test_a_put_replaces_what_has_the_same_key_and_keeps_what_belongs_to_it(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(Put(SHOP), Put(MAIL), Put(INSTANCE), Put(RUN))
            app, instance = replace(SHOP, generation=2), replace(INSTANCE, deleting=True)
            await store.write(Put(app), Put(instance))
        with self.opened(tmp_path) as store:
            found = store.load()
        assert (found.apps, found.queues) == ((app,), (MAIL,))
        assert (found.instances, found.runs) == ((instance,), (RUN,))

    async def test_writes_are_applied_in_the_order_of_the_calls(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            store.load()
            await asyncio.gather(*(store.write(Put(replace(SHOP, generation=number))) for number in range(200)))
            await asyncio.gather(store.write(RemoveApp("shop")), store.write(Put(replace(SHOP, generation=500))))
            await asyncio.gather(store.write(Put(TOKEN)), store.write(RemoveToken("t1")))
            await asyncio.gather(*(store.write(Put(replace(INSTANCE, generation=number))) for number in range(200)))
        with self.opened(tmp_path) as store:
            found = store.load()
        assert [app.generation for app in found.apps] == [500]
        assert [instance.generation for instance in found.instances] == [199]
        assert found.tokens == ()

    @pytest.mark.parametrize("orphan", [MAIL, RUN], ids=["queue", "run"])
    async def test_a_write_is_kept_whole_or_not_at_all_and_its_neighbours_do_not_feel_it(
        self, tmp_path: Path, orphan: QueueRecord | RunRecord
    ) -> None:
        before, after = replace(SHOP, name="before"), replace(SHOP, name="after")
        with self.opened(tmp_path) as store:
            store.load()
            results = await asyncio.gather(
                store.write(Put(before)),
                store.write(Put(TOKEN), *events(7), Put(orphan)),
                store.write(Put(after)),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [type(None), Conflict, type(None)]
            assert not await store.events(0, 10)
        with self.opened(tmp_path) as store:
            found = store.load()
        assert found.apps == (after, before)
        assert (found.tokens, found.last_event) == ((), 0)

    async def test_a_removed_app_takes_its_queues_and_leaves_its_instances(self, tmp_path: Path) -> None:
        other = replace(SHOP, name="other")
        others = replace(MAIL, app="other")
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(Put(SHOP), Put(MAIL), Put(other), Put(others), Put(INSTANCE), Put(RUN))
            await store.write(RemoveApp("shop"))
        with self.opened(tmp_path) as store:
            found = store.load()
        assert (found.apps, found.queues) == ((other,), (others,))
        assert (found.instances, found.runs) == ((INSTANCE,), (RUN,))

    async def test_a_removed_instance_takes_its_run_alone(self, tmp_path: Path) -> None:
        other = replace(INSTANCE, key=Key("shop", "mail-2"))
        others = replace(RUN, key=other.key)
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(Put(INSTANCE), Put(RUN), Put(other), Put(others))
            await store.write(RemoveInstance(KEY))
        with self.opened(tmp_path) as store:
            found = store.load()
        assert (found.instances, found.runs) == ((other,), (others,))

    async def test_queues_and_tokens_are_removed_one_by_one_and_what_is_gone_may_be_removed_again(
        self, tmp_path: Path
    ) -> None:
        bulk = QueueRecord("shop", QueueDeclaration("bulk"))
        other = replace(TOKEN, id="t2")
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(Put(SHOP), Put(MAIL), Put(bulk), Put(TOKEN), Put(other))
            for _ in range(2):
                await store.write(RemoveQueue("shop", "mail"), RemoveToken("t1"), RemoveApp("no"), RemoveInstance(KEY))
        with self.opened(tmp_path) as store:
            found = store.load()
        assert (found.queues, found.tokens) == ((bulk,), (other,))

    async def test_entries_are_replaced_and_removed_by_kind_app_and_name(self, tmp_path: Path) -> None:
        app = Entry(EntryKind.APP, "shop", "", Stamp(1, "b1"), {"spec": {}})
        queue = Entry(EntryKind.QUEUE, "shop", "mail", Stamp(1, "b1"), {"name": "mail"})
        gone = replace(app, stamp=Stamp(2, "b2"), value=None, cascade=True)
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(Put(app), Put(queue))
            await store.write(Put(gone))
        with self.opened(tmp_path) as store:
            assert store.load().entries == (gone, queue)
            for _ in range(2):
                await store.write(RemoveEntry(EntryKind.APP, "shop", ""))
        with self.opened(tmp_path) as store:
            assert store.load().entries == (queue,)

    async def test_events_come_in_pages_oldest_first(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(*events(3, 1, 2, 5, 8))
            pages = [await store.events(after, 2) for after in (0, 2, 5, 8)]
            assert [[event.id for event in page] for page in pages] == [[1, 2], [3, 5], [8], []]
            assert await store.first_event() == 1

    async def test_the_last_events_are_counted_though_ids_have_gaps(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(*events(3, 5, 8, 900))
            assert [await store.event_before(8, count) for count in (0, 1, 2, 3, 4)] == [8, 5, 3, 0, 0]

    async def test_a_reader_sees_what_was_asked_to_be_written_before(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            store.load()
            writes = [asyncio.create_task(store.write(*events(number))) for number in range(1, 51)]
            reader = asyncio.create_task(store.events(0, 100))
            assert [event.id for event in await reader] == list(range(1, 51))
            await asyncio.gather(*writes)

    async def test_old_outcomes_without_an_instance_and_old_events_expire(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(outcome("cancelled", 9.0, None), outcome("cancelled late", 10.0, None))
            await store.write(outcome("ended", 9.0, "mail-1", True), outcome("ended late", 10.0, "mail-1", True))
            await store.write(outcome("lives", 9.0, "mail-1"), *events(*range(1, 11)))
            await store.write(Expire(outcomes_before=10.0, events=3))
            assert [event.id for event in await store.events(0, 100)] == [8, 9, 10]
            assert await store.first_event() == 8
            await store.write(Expire(outcomes_before=10.0, events=100))
            assert await store.first_event() == 8
        with self.opened(tmp_path) as store:
            store.load()
            assert await store.first_event() == 8
        with self.opened(tmp_path) as store:
            assert [found.request for found in store.load().outcomes] == ["cancelled late", "ended late", "lives"]

    async def test_requests_and_other_events_do_not_drive_each_other_out(self, tmp_path: Path) -> None:
        asked = [Put(EventRecord(number, 1.0, REQUEST)) for number in (1, 2, 5)]
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(*events(3, 4, 6, 7, 8, 9), *asked)
            await store.write(Expire(outcomes_before=0.0, events=3))
            assert [event.id for event in await store.events(0, 100)] == [1, 2, 5, 7, 8, 9]
            assert await store.first_event() == 7  # from there on nothing is missing
            await store.write(*(Put(EventRecord(number, 1.0, REQUEST)) for number in (10, 11)))
            await store.write(Expire(outcomes_before=0.0, events=3))
            assert [event.id for event in await store.events(0, 100)] == [5, 7, 8, 9, 10, 11]
            assert await store.first_event() == 7

    async def test_who_wrote_an_app_is_kept_beside_it(self, tmp_path: Path) -> None:
        shop, other = AuthoredRecord("shop", "d"), AuthoredRecord("other", "d")
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(Put(SHOP), Put(other), Put(shop), Put(replace(shop, digest="e")))
            await store.write(RemoveApp("shop"), RemoveAuthored("other"))
        with self.opened(tmp_path) as store:
            assert store.load().authored == (replace(shop, digest="e"),)

    async def test_an_outcome_is_removed_alone(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(outcome("one", 9.0, "mail-1"), outcome("two", 9.0, "mail-2"))
            await store.write(RemoveOutcome("one"), RemoveOutcome("none"))
        with self.opened(tmp_path) as store:
            assert [found.request for found in store.load().outcomes] == ["two"]

    async def test_a_fact_is_what_was_remembered_last(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            branch_id = store.load().branch_id
            await store.write(Remember("branch_id", "1"), Remember("incarnation", "1"))
            await store.write(Remember("incarnation", "2"))
        with self.opened(tmp_path) as store:
            found = store.load()
        assert found.facts == {"branch_id": "1", "incarnation": "2"}
        assert found.branch_id == branch_id

    async def test_the_highest_event_id_outlives_its_event(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            store.load()
            await store.write(*events(1, 2, 3))
            await store.write(Expire(outcomes_before=0.0, events=0))
            assert await store.first_event() == 4
        with self.opened(tmp_path) as store:
            assert store.load().last_event == 3

    async def test_a_caller_that_is_cancelled_harms_neither_the_store_nor_the_others(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as store:
            store.load()
            tasks = [asyncio.create_task(store.write(Put(replace(SHOP, name=f"a{n}")))) for n in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        with self.opened(tmp_path) as store:
            # They had begun, and what has begun is not taken back.
            assert len(store.load().apps) == 20
