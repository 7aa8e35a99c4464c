"""A TERM that comes while the daemon starts, with programs of an earlier one, which was killed, still running."""

import random
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.e2e.branch import RunningBranch, alive
from tests.e2e.conftest import Maker
from tests.signal_masks import OF_LIBC
from tests.waiting import until, until_sync

#: of the moments after its exec at which a start is told to end, in seconds; it is ready after about 0.4
LATEST = 0.8
MOMENTS = 6

#: lines of /proc/PID/status
MASKS = ("SigBlk:", "SigIgn:")


async def left_behind(branch: RunningBranch) -> list[int]:
    """Programs that run, whose daemon was killed."""
    await branch.start()

    async def running() -> list[int]:
        pids = list((await branch.pids()).values())
        return pids if len(pids) == 3 else []

    pids = await until(running, 60, "three programs")
    branch.kill()
    assert all(map(alive, pids))
    return pids


def masks(pid: int) -> dict[str, int]:
    """What the process holds back and what it ignores, signals as bits."""
    words = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {line[0]: int(line[1], 16) & ~OF_LIBC for line in words if line[0] in MASKS}


async def prepared(branch: RunningBranch) -> None:
    await branch.start()
    await branch.client.put_app("shop", {"kind": "command", "command": ["sleep", "100000"]})
    for name in ("a", "b", "c"):
        await branch.client.create_instance("shop", {"name": name}, wait=30)
    branch.kill()


async def test_one_that_comes_before_it_is_handled_stops_what_was_to_be_adopted(make_branch: Maker) -> None:
    branch = make_branch()
    await prepared(branch)
    pids = await left_behind(branch)
    assert masks(pids[0]) == {"SigBlk:": 0, "SigIgn:": 0}
    begun = branch.log.count("event=ready")
    process = branch.launch()

    def held() -> bool:
        # Or ready already, where this process was not given a CPU in the quarter of a second that they are held.
        mask = masks(process.pid)["SigBlk:"]
        return bool(mask & 1 << signal.SIGTERM - 1) or branch.log.count("event=ready") > begun

    until_sync(held, what="signals to be held")
    assert branch.stop() == 0
    assert not any(map(alive, pids))


async def test_at_whatever_moment_it_comes_all_is_stopped_or_nothing_is_touched(make_branch: Maker) -> None:
    branch = make_branch()
    await prepared(branch)
    for number in range(MOMENTS):
        pids = await left_behind(branch)
        moment = random.uniform(number, number + 1) * LATEST / MOMENTS
        process = branch.launch()
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)  # which it does not end by itself
        code = branch.stop()
        found = [alive(pid) for pid in pids]
        if code == 0:
            assert not any(found), f"TERM after {moment:.3f} s"
        else:  # Python itself was not up
            assert (code, found) == (-signal.SIGTERM, [True] * 3), f"TERM after {moment:.3f} s"
