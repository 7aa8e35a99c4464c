import asyncio
import time

import pytest

from tests.simulation.loop import BEGIN, EPOCH, Deadlock, WallClock, run, simulate


@simulate
async def test_hours_pass_in_moments():
    loop, wall, ahead = asyncio.get_running_loop(), WallClock(), WallClock(600)
    real = time.monotonic()
    await asyncio.sleep(100 * 3600)
    assert loop.time() == pytest.approx(BEGIN + 360_000)
    assert (wall(), ahead()) == pytest.approx((EPOCH + 360_000, EPOCH + 360_600))
    assert time.monotonic() - real < 60


@simulate
async def test_timers_come_in_their_order():
    seen = []

    async def one(delay):
        await asyncio.sleep(delay)
        seen.append(delay)

    await asyncio.gather(*(one(delay) for delay in (3, 0.1, 2, 0)))
    assert seen == [0, 0.1, 2, 3]


def test_who_waits_for_what_never_comes_is_told():
    async def main():
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="in main"):
        run(main())


@pytest.mark.parametrize("delay", [1, 2])
@simulate
async def test_arguments_reach_the_test(delay, tmp_path):
    await asyncio.wait_for(asyncio.sleep(delay), 3)
    assert tmp_path.exists()
