"""What is measured, and how: each measure brings one supervisor up, looks from outside, and leaves nothing behind.

A figure is a median, and where a tail matters a 95th percentile too. Less is better in all of them.
"""

import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial

from tests.bench import observe
from tests.bench.supervisors import Supervisor, fork

Figures = dict[str, float]

#: services in the comparison of sizes
COUNTS = (1, 100, 500)
LARGEST = COUNTS[-1]

#: cold starts of which the median is taken
STARTS = 5
#: kills of one child each; each child is killed once, for a second crash soon after the first is delayed on purpose
KILLS = 40
#: mass crashes of which the median is taken
CRASHES = 3
#: seconds that a child has lived before it is killed: supervisord calls anything below one second a failed start
LIVED = 3.0
#: seconds over which an idle supervisor's CPU time is read
IDLE = 30.0
#: services of which the supervisor is killed
MANY = 100
#: bytes of output, and the line of which it is made
OUTPUT = 200_000_000
LINE = "x" * 99
#: seconds after which a start or a restart counts as lost
LOST = 120.0


def api_start(supervisor: Supervisor) -> Figures:
    """From the daemon's start until its API has answered, with no services."""
    took = []
    for _ in range(STARTS):
        supervisor.prepare(0)
        began = time.monotonic()
        supervisor.start()
        supervisor.wait_for_api()
        took.append(1000 * (time.monotonic() - began))
        supervisor.end()
    return {"daemon start until its API answers, ms": statistics.median(took)}


def respawn(supervisor: Supervisor) -> Figures:
    """From kill -9 of a child to the exec of its replacement."""
    bring_up(supervisor, KILLS)
    time.sleep(LIVED)
    took = []
    with observe.Watch() as watch:
        for pid, index in observe.children().items():
            time.sleep(random.uniform(0.1, 1.1))  # in no step with a supervisor that looks once a second
            began = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            seen = watch.starts({index}, began, LOST)
            took.append((seen[index].nanoseconds - began) / 1e6)
    supervisor.end()
    return {
        "kill -9 of a child until its replacement has exec'd, ms (p50)": statistics.median(took),
        "kill -9 of a child until its replacement has exec'd, ms (p95)": p95(took),
    }


def start_and_memory(supervisor: Supervisor) -> Figures:
    """Cold starts with 1, 100 and 500 services until the last child has exec'd, and the supervisor's memory then."""
    starts, sizes = {}, {}
    for count in COUNTS:
        took = []
        for turn in range(STARTS):
            took.append(bring_up(supervisor, count))
            if turn == 0:
                supervisor.wait_for_api()
                time.sleep(LIVED)
                sizes[f"memory (PSS) with {count}, MiB"] = observe.memory(observe.overhead())
            supervisor.end()
        starts[f"cold start until {count} run, s"] = statistics.median(took)
    return starts | sizes


def many(supervisor: Supervisor) -> Figures:
    """With 500 services up: status of all and of one, and idle CPU."""
    bring_up(supervisor, LARGEST)
    supervisor.wait_for_api()
    deadline = time.monotonic() + LOST
    while supervisor.status_of_all() < LARGEST:
        if time.monotonic() > deadline:
            raise RuntimeError(f"it never reported {LARGEST} running")
        time.sleep(0.2)
    time.sleep(LIVED)

    pids = observe.overhead()
    before, began = observe.cpu_seconds(pids), time.monotonic()
    time.sleep(IDLE)
    idle = (observe.cpu_seconds(pids) - before) / (time.monotonic() - began)
    of_all = [timed(supervisor.status_of_all) for _ in range(20)]
    names = [f"s{index:04d}" for index in range(0, LARGEST, 2)]
    of_one = [timed(partial(supervisor.status_of_one, name)) for name in names]
    supervisor.end()
    return {
        "status of all 500, ms (p50)": statistics.median(of_all),
        "status of all 500, ms (p95)": p95(of_all),
        "status of one of 500, ms (p50)": statistics.median(of_one),
        "status of one of 500, ms (p95)": p95(of_one),
        "idle CPU with 500, ms per minute": 60_000 * idle,
    }


def mass_crash(supervisor: Supervisor) -> Figures:
    """500 children are killed at once: until each has its replacement."""
    took = []
    for _ in range(CRASHES):
        bring_up(supervisor, LARGEST)
        time.sleep(LIVED)
        victims = observe.children()
        with observe.Watch() as watch:
            began = time.monotonic_ns()
            observe.kill(victims)
            seen = watch.starts(victims.values(), began, LOST)
        if len(seen) < LARGEST:
            raise RuntimeError(f"{len(seen)} of {LARGEST} came back within {LOST} s")
        took.append((max(start.nanoseconds for start in seen.values()) - began) / 1e9)
        supervisor.end()
    return {"kill -9 of all 500 until all run again, s": statistics.median(took)}


def crash_loop(supervisor: Supervisor) -> Figures:
    """What the API takes while 500 services end as soon as they have started, and are started again."""
    supervisor.prepare(LARGEST, crashing_argv)
    supervisor.start()
    supervisor.wait_for_api()
    time.sleep(LIVED)
    names = [f"s{index:04d}" for index in range(0, LARGEST, 2)]
    took = []
    for name in names:
        took.append(timed(partial(supervisor.status_of_one, name)))
        time.sleep(0.05)
    supervisor.end()
    return {
        "status of one while 500 crash, ms (p50)": statistics.median(took),
        "status of one while 500 crash, ms (p95)": p95(took),
    }


def crashing_argv(index: int) -> list[str]:
    return ["/bin/false", *observe.child_argv(index)[1:]]


def logs(supervisor: Supervisor) -> Figures:
    """A child that writes lines as fast as it can, and what its supervisor works for that."""
    times = supervisor.home.with_name("times")
    write = f"yes {LINE} | head -c {OUTPUT}"
    script = f"date +%s%N >{times}; {write}; date +%s%N >>{times}; exec {' '.join(observe.child_argv(0))}"
    rates, used = [], []
    for _ in range(CRASHES):
        times.unlink(missing_ok=True)
        supervisor.prepare(1, lambda _: ["/bin/sh", "-c", script])
        with observe.Watch() as watch:
            supervisor.start()
            watch.starts({0}, time.monotonic_ns(), LOST)
        time.sleep(LIVED)  # what is left to read, to rotate, to compress
        began, ended = map(int, times.read_text().split())
        rates.append(OUTPUT / (ended - began) * 1e3)
        used.append(observe.cpu_seconds(observe.overhead()))
        supervisor.end()
    idle = []
    for _ in range(CRASHES):
        supervisor.prepare(1)
        supervisor.start()
        supervisor.wait_for_api()
        time.sleep(LIVED)
        idle.append(observe.cpu_seconds(observe.overhead()))
        supervisor.end()
    return {
        "a child's output of 200 MB, MB/s (more is better)": statistics.median(rates),
        "CPU of the supervisor for 200 MB of output, s": max(0.0, statistics.median(used) - statistics.median(idle)),
    }


def doubled(supervisor: Supervisor) -> Figures:
    """kill -9 of the supervisor with 100 services, and its next start: services that run twice then."""
    bring_up(supervisor, MANY)
    supervisor.wait_for_api()
    time.sleep(LIVED)
    supervisor.crash()
    supervisor.start()
    supervisor.wait_for_api()
    deadline = time.monotonic() + LOST
    while supervisor.status_of_all() < MANY and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(LIVED)
    running = observe.children()
    supervisor.end()
    return {"services doubled by kill -9 of the supervisor, of 100": float(len(running) - len(set(running.values())))}


Measure = Callable[[Supervisor], Figures]

MEASURES: dict[str, Measure] = {
    "api_start": api_start,
    "respawn": respawn,
    "start_and_memory": start_and_memory,
    "many": many,
    "mass_crash": mass_crash,
    "crash_loop": crash_loop,
    "logs": logs,
    "doubled": doubled,
}


def floors(loop: Supervisor) -> Figures:
    """What this machine and plain Python allow: nothing that supervises can be quicker."""
    figures = {f"pidfd loop: {label}": value for label, value in respawn(loop).items()}
    figures[f"Popen: {LARGEST} started, s"] = bare_start(subprocess.Popen)
    figures[f"posix_spawn: {LARGEST} started, s"] = bare_start(lambda argv: os.posix_spawn(argv[0], argv, os.environ))
    return figures


def bare_start(spawn: Callable[[list[str]], object]) -> float:
    """Median seconds until 500 children have exec'd that a plain loop starts."""

    def all_of_them() -> None:
        for index in range(LARGEST):
            spawn(observe.child_argv(index))

    took = []
    for _ in range(STARTS):
        with observe.Watch() as watch:
            began = time.monotonic_ns()
            fork(all_of_them)
            seen = watch.starts(range(LARGEST), began, LOST)
        took.append((max(start.nanoseconds for start in seen.values()) - began) / 1e9)
        observe.clean_up()
    return statistics.median(took)


def bring_up(supervisor: Supervisor, count: int) -> float:
    """A cold start; seconds from the daemon's start to the exec of the last child."""
    supervisor.prepare(count)
    with observe.Watch() as watch:
        began = time.monotonic_ns()
        supervisor.start()
        seen = watch.starts(range(count), began, LOST)
    if len(seen) < count:
        raise RuntimeError(f"{len(seen)} of {count} ran after {LOST} s")
    return (max(start.nanoseconds for start in seen.values()) - began) / 1e9


def timed(question: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    began = time.monotonic()
    question()
    return 1000 * (time.monotonic() - began)


def p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]
