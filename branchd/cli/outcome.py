"""Whether what was asked of an instance has come to be, and waiting until it has.

The API waits too, but answers early where the daemon stops, or where a state is reached that is not yet what was asked
for; so its answer is looked at again until the time is really over.
"""

import asyncio
import time

from branchd.cli.exits import TimedOut
from branchd.cli.output import neutral
from branchd.cli.selectors import label
from branchd.client import ApiProblem, BranchdClient, Object
from branchd.core.errors import BranchdError

#: seconds between two looks, once the API has answered
PAUSE = 0.5

#: seconds: the most that the API waits
LONGEST_WAIT = 3600.0


class DidNotStart(BranchdError):
    """It was started and is not up, and waiting does not mend that."""


def state(instance: Object) -> str:
    """In a few words."""
    status = instance["status"]
    words: str = status["state"]
    if status["pid"] is not None:
        words += f" (pid {status['pid']})"
    return f"{words}: {neutral(status['reason'])}" if status["reason"] else words


class Patience:
    """So many seconds from now on; each method returns, or raises TimedOut when they are over."""

    def __init__(self, client: BranchdClient, seconds: float) -> None:
        self.ask = min(seconds, LONGEST_WAIT)  #: for how long to let the API wait
        self._client = client
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    async def up(self, instance: Object) -> Object:
        """The instance when it is ready, or has done what it had to, or is not wanted up; DidNotStart."""
        while not _is_up(instance):
            instance = await self._later(instance, f"not ready within {self._seconds:g} seconds: {_lacking(instance)}")
        return instance

    async def down(self, instance: Object) -> Object:
        """The instance when it has no process and none is about to be started."""
        while instance["status"]["pid"] is not None or instance["status"]["state"] in {
            "STOPPING", "STARTING", "BACKOFF",
        }:  # fmt: skip
            instance = await self._later(instance, f"not stopped within {self._seconds:g} seconds: {state(instance)}")
        return instance

    async def gone(self, instance: Object, gone: bool) -> Object:
        """`gone` is what the API said; the instance as it was."""
        found = instance
        while not gone:
            late = f"not gone within {self._seconds:g} seconds: its stop plan still runs"
            try:
                found = await self._later(found, late)
            except ApiProblem as problem:
                if problem.status != 404:
                    raise
                break
            gone = not found["status"]["deleting"]  # then it is another of that name
        return instance

    async def _later(self, instance: Object, late: str) -> Object:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimedOut(late)
        await asyncio.sleep(min(PAUSE, left))
        return await self._client.instance(instance["app"], instance["name"])


def _is_up(instance: Object) -> bool:
    status = instance["status"]
    last = status["last_exit"] or {}
    if status["wanted"] == "down" or (status["state"] == "RUNNING" and _ready(instance)["status"] == "True"):
        return True
    if status["state"] == "EXITED" and last.get("code") == 0:
        return True
    if status["state"] in {"FATAL", "EXITED"}:
        raise DidNotStart(state(instance), f"branchctl logs {label(instance)} shows what it wrote")
    return False


def _ready(instance: Object) -> Object:
    conditions: list[Object] = instance["status"]["conditions"]
    return next((one for one in conditions if one["type"] == "Ready"), {"status": "Unknown", "reason": ""})


def _lacking(instance: Object) -> str:
    """Its state, and of one that runs what keeps it from being ready."""
    reason = _ready(instance)["reason"] if instance["status"]["state"] == "RUNNING" else ""
    return f"{state(instance)}, but {neutral(reason)}" if reason else state(instance)
