"""The event log over a store in memory: who is told what, from where on, and until when."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from branchd.branch.events import BACKLOG, CHUNK, EventLog, Reset
from branchd.branch.journal import Journal
from branchd.branch.records import EventRecord, Expire
from branchd.core.errors import StorageFailed
from tests.fakes.store import MemoryStore

Items = AsyncGenerator[EventRecord | Reset, None]


class Log:
    """What happens is told by number."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.events = EventLog(self.store, 0)
        self._journal = Journal(self.store, self.events, lambda: 0.0)

    async def happen(self, count: int = 1, *, regardless: bool = False) -> None:
        told = [("instance.state", "shop", "web", {})] * count
        await (self._journal.begin if regardless else self._journal.commit)(events=told)

    async def keep(self, count: int) -> None:
        await self.store.write(Expire(0.0, count))


@pytest.fixture
async def log() -> Log:
    log = Log()
    await log.happen(5)
    return log


def shown(item: EventRecord | Reset) -> int | str:
    return f"reset to {item.last}" if isinstance(item, Reset) else item.id


async def whole(items: Items) -> list[int | str]:
    """To its end."""
    async with asyncio.timeout(30):
        return [shown(item) async for item in items]


async def following(items: Items) -> asyncio.Task[int | str]:
    """What comes next, from a subscriber that waits for it."""
    task = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0)
    assert not task.done()

    async def told() -> int | str:
        async with asyncio.timeout(30):
            return shown(await task)

    return asyncio.create_task(told())


async def some(items: Items, count: int) -> list[int | str]:
    async with asyncio.timeout(30):
        return [shown(await anext(items)) for _ in range(count)]


async def test_it_begins_now_or_with_the_last_ones_or_after_an_id_and_goes_on(log: Log) -> None:
    streams = [log.events.subscribe(), log.events.subscribe(tail=2), log.events.subscribe(3)]
    await log.happen()
    assert await some(streams[0], 1) == [6]
    assert await some(streams[1], 3) == [4, 5, 6]
    assert await some(streams[2], 3) == [4, 5, 6]
    await log.happen(2)
    assert [await some(items, 2) for items in streams] == [[7, 8]] * 3
    for items in streams:
        await items.aclose()


async def test_it_resumes_after_an_id_across_many_events_and_misses_none_that_comes_meanwhile(log: Log) -> None:
    await log.happen(2 * CHUNK)
    items = log.events.subscribe(0)
    assert await some(items, 3) == [1, 2, 3]
    await log.happen(3)
    last = 2 * CHUNK + 8
    assert await some(items, last - 3) == list(range(4, last + 1))
    await items.aclose()


async def test_what_is_being_committed_when_it_begins_is_told_when_it_is(log: Log) -> None:
    record = log.events.number(0.0, "instance.state", "shop", "web", {})
    streams = [log.events.subscribe(), log.events.subscribe(5), log.events.subscribe(999)]
    assert await some(streams[2], 1) == ["reset to 5"]
    waiting = [await following(items) for items in streams]
    log.events.publish([record])
    assert await asyncio.gather(*waiting) == [6, 6, 6]
    for items in streams:
        await items.aclose()


@pytest.mark.parametrize(
    ("after", "told"),
    [(0, ["reset to 5"]), (1, ["reset to 5"]), (2, [3, 4, 5]), (5, []), (6, ["reset to 5"])],
    ids=["too old", "just too old", "the oldest", "the newest", "from the future"],
)
async def test_it_resets_where_something_would_be_left_out(log: Log, after: int, told: list[int | str]) -> None:
    await log.keep(3)
    assert await whole(log.events.subscribe(after, follow=False)) == told
    items = log.events.subscribe(after)
    assert await some(items, len(told)) == told
    waiting = await following(items)
    await log.happen()
    assert await waiting == 6
    await items.aclose()


async def test_an_empty_log_that_had_events_resets(log: Log) -> None:
    await log.keep(0)
    assert await whole(log.events.subscribe(4, follow=False)) == ["reset to 5"]
    assert await whole(log.events.subscribe(tail=4, follow=False)) == []


@pytest.mark.parametrize(("tail", "told"), [(0, []), (2, [4, 5]), (3, [3, 4, 5]), (999, [3, 4, 5])])
async def test_a_tail_is_of_what_is_kept_and_never_resets(log: Log, tail: int, told: list[int]) -> None:
    await log.keep(3)
    assert await whole(log.events.subscribe(tail=tail, follow=False)) == told


async def test_without_following_it_ends_though_more_happens(log: Log) -> None:
    items = log.events.subscribe(0, follow=False)
    assert await some(items, 1) == [1]
    await log.happen(CHUNK)
    assert await whole(items) == [2, 3, 4, 5]


async def test_ids_that_the_store_refused_are_left_out(log: Log) -> None:
    items = log.events.subscribe()
    waiting = await following(items)
    log.store.full = True
    with pytest.raises(StorageFailed):
        await log.happen()
    with pytest.raises(StorageFailed):
        await log.happen(regardless=True)
    log.store.full = False
    await log.happen()
    assert [await waiting, *await some(items, 1)] == [7, 8]
    assert await whole(log.events.subscribe(3, follow=False)) == [4, 5, 8]
    await items.aclose()


async def test_a_slow_subscriber_is_let_go_after_what_it_has(log: Log) -> None:
    slow, quick = log.events.subscribe(), log.events.subscribe()
    waiting = [await following(items) for items in (slow, quick)]
    await log.happen()
    assert await asyncio.gather(*waiting) == [6, 6]
    await log.happen(BACKLOG)
    assert await some(quick, BACKLOG) == list(range(7, BACKLOG + 7))
    await log.happen()
    assert await whole(slow) == list(range(7, BACKLOG + 7))
    assert await some(quick, 1) == [BACKLOG + 7]
    await quick.aclose()


async def test_closing_ends_those_that_wait_and_those_to_come(log: Log) -> None:
    idle, behind = log.events.subscribe(), log.events.subscribe()
    waiting = asyncio.create_task(whole(idle))
    first = await following(behind)
    await log.happen()
    assert await first == 6
    await log.happen()
    log.events.close()
    assert await waiting == [6, 7]
    assert await whole(behind) == [7]
    assert await whole(log.events.subscribe(0)) == []
