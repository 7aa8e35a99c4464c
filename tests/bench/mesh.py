"""Placements over a real RabbitMQ: complete branches, their stores on disk and in memory, and beside them bare ones.

The bare ones say what probing and offering costs over this bus on this machine, whatever is done with it: the floor.
What the branches are is said in branches.py.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.measures import Figures
from tests.rabbitmq import SERVER, RabbitMQ

#: of the neighbourhood, and processes that they are spread over
BRANCHES = 100
PROCESSES = 2

#: seconds of placing as much as goes, and creates under way at any time for each process
SECONDS = 10.0
AT_ONCE = 32

#: creates one after the other, of which the percentiles are taken
SINGLES = 400

#: instances in one request
TOGETHER = 200

#: seconds over which idle branches' CPU time is read
IDLE = 10.0

#: where memory is a file system
SHARED_MEMORY = Path("/dev/shm")

#: bytes and times of the write by which a disk is tried
PAGE = 4096
SYNCS = 200


@dataclass(frozen=True, slots=True)
class Column:
    """One neighbourhood of those that are compared."""

    name: str
    kind: str
    folder: Path | None  #: where the stores are; None: among the harness's own files


DISK, MEMORY, BARE = "stores on disk", "stores in memory", "bare"

COLUMNS = (
    Column(DISK, "complete", None),
    Column(MEMORY, "complete", SHARED_MEMORY),
    Column(BARE, "bare", None),
)


class Process:
    def __init__(self, column: Column, broker: str, folder: Path, number: int) -> None:
        with (folder / f"output-{number}").open("wb") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.bench.branches", column.kind, broker, column.name.replace(" ", "-"),
                    str(folder), f"--count={BRANCHES}", f"--first={number}", f"--step={PROCESSES}",
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True,
            )  # fmt: skip
        self._output = folder / f"output-{number}"

    def tell(self, what: str, **options: float) -> None:
        assert self._process.stdin is not None
        print(json.dumps([what, options]), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """RuntimeError with its last words where it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"it ended: {self._output.read_text(errors='replace')[-2000:]}")
        told: dict[str, Any] = json.loads(line)
        return told

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def placements(scratch: Path) -> Mapping[str, Figures]:
    """By column; one after the other over one broker."""
    if not SERVER.exists():
        raise RuntimeError(f"RabbitMQ is not installed: there is no {SERVER} (Debian: rabbitmq-server)")
    (scratch / "rabbitmq").mkdir()
    rabbitmq = RabbitMQ(scratch / "rabbitmq")
    rabbitmq.start()
    try:
        return {column.name: _measure(column, rabbitmq.url, scratch) for column in COLUMNS}
    finally:
        rabbitmq.stop()


def stores(scratch: Path) -> str:
    """On what they are, in words."""
    told = [f"{column.name}: {_told(column.folder or scratch)}" for column in COLUMNS if column.kind == "complete"]
    return "; ".join(told)


def _measure(column: Column, broker: str, scratch: Path) -> Figures:
    with contextlib.ExitStack() as stack:
        scratch = column.folder or scratch
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="branchd-bench-", dir=scratch)))
        processes = []
        for number in range(PROCESSES):
            processes.append(process := Process(column, broker, folder, number))
            stack.callback(process.end)
        for process in processes:
            process.answer()  # all of them know each other
        return _figures(column, processes)


def _figures(column: Column, processes: Sequence[Process]) -> Figures:
    figures: Figures = {}

    def single(which: str, **options: float) -> None:
        took = _ask(processes[:1], "single", times=SINGLES, **options)[0]["took"]
        figures[f"one {which}, ms (p50)"] = statistics.median(took)
        figures[f"one {which}, ms (p99)"] = sorted(took)[int(0.99 * len(took))]

    idle = sum(told["cpu"] for told in _ask(processes, "idle", seconds=IDLE)) / IDLE
    figures["idle CPU of a branch, ms per minute"] = 60_000 * idle / BRANCHES
    single("create", named=False)
    if column.kind == "complete":
        single("named create", named=True)
    told = _ask(processes[:1], "together", count=TOGETHER)
    figures[f"{TOGETHER} in one request, a second"] = TOGETHER / told[0]["took"]
    began = time.monotonic()
    told = _ask(processes, "busy", seconds=SECONDS, at_once=AT_ONCE)
    took, made = time.monotonic() - began, sum(each["made"] for each in told)
    figures["placements a second"] = made / took
    figures["CPU of the branches for a placement, ms"] = 1000 * sum(each["cpu"] for each in told) / made
    return figures


def _ask(processes: Sequence[Process], what: str, **options: float) -> list[dict[str, Any]]:
    """All of them at one time."""
    for process in processes:
        process.tell(what, **options)
    return [process.answer() for process in processes]


def _told(folder: Path) -> str:
    """File system, device, and what a durable write takes there."""
    lines = Path("/proc/mounts").read_text().splitlines()
    mounts = {mount: f"{kind} on {device}" for device, mount, kind, *_ in map(str.split, lines)}
    within = max((mount for mount in mounts if folder.resolve().is_relative_to(mount)), key=len)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        began = time.monotonic()
        for number in range(SYNCS):
            os.pwrite(file.fileno(), bytes(PAGE), PAGE * number)
            os.fdatasync(file.fileno())
        took = 1000 * (time.monotonic() - began) / SYNCS
    return f"{mounts[within]}, {took:.2g} ms for a write with fdatasync"
