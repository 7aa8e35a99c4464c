"""What is done in the background: nothing that fails there ends anything else, or goes unseen."""

import asyncio

from branchd.branch.tasks import Tasks
from branchd.core.errors import Conflict, NoRoute, StorageFailed, Unavailable
from tests.simulation.loop import simulate


async def fail(error: BaseException) -> None:
    raise error


@simulate
async def test_what_nobody_expected_is_counted_and_what_may_be_is_not() -> None:
    tasks = Tasks("part")
    for expected in (NoRoute("gone"), Unavailable("away"), StorageFailed("full")):
        tasks.begin(fail(expected))
    await asyncio.sleep(1)
    assert tasks.failures.count == 0
    tasks.begin(fail(KeyError("x")))
    tasks.begin(fail(Conflict("it contradicts")))
    await asyncio.sleep(1)
    assert (tasks.failures.part, tasks.failures.count, len(tasks)) == ("part", 2, 0)
    assert tasks.failures.last == "Conflict: it contradicts"


@simulate
async def test_a_step_that_fails_is_followed_by_the_next_after_a_pause() -> None:
    tasks, times = Tasks("part"), list[float]()

    async def step() -> None:
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1)
        if len(times) in (1, 2):
            raise ValueError(len(times)) if len(times) == 1 else Unavailable("away")

    tasks.repeat(step, lambda: 10.0)
    await asyncio.sleep(25)
    await tasks.end()
    assert [time - times[0] for time in times] == [0, 11, 22, 23, 24]
    assert (tasks.failures.count, tasks.failures.last, len(tasks)) == (1, "ValueError: 1", 0)


@simulate
async def test_when_it_ends_all_have_ended_and_more_may_begin() -> None:
    tasks, ended = Tasks("part"), list[str]()

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            ended.append(name)

    tasks.begin(work("a"))
    await asyncio.sleep(1)
    tasks.begin(fail(ValueError("it never begins")))
    await tasks.end()
    assert (ended, len(tasks), tasks.failures.count) == (["a"], 0, 0)
    tasks.begin(work("b"))
    assert len(tasks) == 1
    await tasks.end()
