"""When an instance counts as ready, late, doubtful or not alive, with fakes for the process and for who asks it."""

import asyncio
from typing import Any

import pytest

from branchd.core.automaton import HINT
from branchd.core.health import Phase
from branchd.core.lifecycle import State
from branchd.core.spec import Probe
from branchd.core.values import Exit
from branchd.wire.agent import Heartbeat
from tests.branch.conftest import ADMIN
from tests.fakes.probes import SILENT
from tests.waiting import until

QUICK: dict[str, Any] = {"tcp": ":1", "period": 0.1, "timeout": 0.1, "failures": 2}
PROBE = Probe(tcp=":1", period=0.1, timeout=0.1, failures=2)
REFUSED = "connection refused"
KILL = [{"signal": "KILL", "patience": 1}]


def status(service, name="a", app="web"):
    return service.instances.get(app, name).status


def ready(service, name="a", app="web"):
    """The condition Ready: its status and its reason."""
    return next((one.status, one.reason) for one in status(service, name, app).conditions if one.type == "Ready")


async def create(service, app="web", **spec):
    await service.instances.create(ADMIN, app, {"name": "a", **spec})


def asking():
    """The tasks that ask."""
    tasks = asyncio.all_tasks()
    return [task for task in tasks if "Probing._ask" in repr(task.get_coro()) and not task.cancelling()]


async def state(service, wanted, app="web"):
    await until(lambda: status(service, app=app).state is wanted, what=f"it to be {wanted}")


async def events(service, **wanted):
    """The data of all changes of state that have these."""
    items = service.events.subscribe(0, follow=False)
    found = [item.data async for item in items if item.type == "instance.state"]
    return [data for data in found if all(data.get(name) == value for name, value in wanted.items())]


async def test_it_is_starting_until_the_probe_has_succeeded_and_says_why(service, house):
    house.prober.failing[PROBE] = REFUSED
    await create(service, ready={"probe": QUICK})
    await until(lambda: len(house.prober.asked) > 3)
    assert status(service).state is State.STARTING
    assert ready(service)[0] == "False"
    assert ready(service)[1].startswith("connect to :1: connection refused")
    del house.prober.failing[PROBE]
    await state(service, State.RUNNING)
    assert ready(service) == ("True", "")


async def test_it_is_not_ready_before_it_has_lived_so_long(service, house):
    await create(service, ready={"after": 0.3})
    assert ready(service) == ("False", "it has lived for less than 0.3 s")
    started = house.processes.spawned[0].identity.started
    await state(service, State.RUNNING)
    assert service._world.clock() * 100 - started >= 29
    assert house.prober.asked == []


async def test_one_that_ends_before_it_is_ready_has_failed(service, house):
    await create(service, ready={"after": 1000}, restart={"max_restarts": 1})
    for number in (1, 2):
        await until(lambda number=number: len(house.processes.spawned) == number)
        await until(lambda: status(service).pid)
        house.processes.end(status(service).pid, Exit(0))
    await state(service, State.FATAL)
    assert await events(service, to="RUNNING") == []


async def test_one_that_is_never_ready_is_stopped_by_its_plan_again_and_again_and_given_up(service, house):
    house.prober.failing[PROBE] = REFUSED
    restart = {"max_restarts": 1, "ceiling": 0.1}
    await create(service, ready={"probe": QUICK, "within": 0.3}, restart=restart, stop=KILL)
    await state(service, State.FATAL)
    assert len(house.processes.spawned) == 2
    assert len(house.processes.signals) == 2
    assert house.processes.killed_trees == []
    assert status(service).reason.startswith(f"not ready within 0.3 s: connect to :1: {REFUSED} (")
    assert status(service).reason.endswith(f"; 2 times within 300 s, which is too often{HINT}")


async def test_the_time_in_which_it_could_not_be_asked_is_not_its_own(service, house):
    house.prober.turn.clear()
    await create(service, ready={"probe": QUICK, "within": 0.2})
    await until(asking)
    started = house.processes.spawned[0].identity.started
    await until(lambda: service._world.clock() * 100 - started > 40)
    assert status(service).state is State.STARTING
    house.prober.turn.set()
    await state(service, State.RUNNING)
    assert len(house.processes.spawned) == 1


async def test_an_instance_has_one_of_its_programs_run_at_a_time(service, house):
    probes = {each: {"exec": [each], "period": 0.1, "timeout": 1000} for each in ("ready", "alive")}
    await create(service, ready={"probe": probes["ready"]}, alive=probes["alive"])
    await state(service, State.RUNNING)
    house.prober.failing[Probe(**{**probes["ready"], "exec": ("ready",)})] = SILENT
    await until(lambda: house.prober.asked and house.prober.asked[-1][0].exec == ("ready",))
    asked = len(house.prober.asked)
    await until(lambda: len(asking()) == 2)
    later = service._world.clock() + 0.4
    await until(lambda: service._world.clock() > later)
    assert len(house.prober.asked) <= asked + 2
    assert house.prober.asked[-1][0].exec == ("ready",)


async def test_while_it_runs_a_failing_probe_makes_it_not_ready_and_a_success_ready_again(service, house):
    await create(service, ready={"probe": QUICK})
    await state(service, State.RUNNING)
    pid = status(service).pid
    house.prober.failing[PROBE] = "no answer within 0.1 s"
    await until(lambda: ready(service)[0] == "False")
    assert ready(service)[1].startswith("connect to :1: no answer within 0.1 s (2 times in a row)")
    assert not service._fleet.get("web", "a").ready
    del house.prober.failing[PROBE]
    await until(lambda: ready(service) == ("True", ""))
    assert (status(service).pid, status(service).state) == (pid, State.RUNNING)


async def test_one_that_is_not_alive_is_killed_and_started_again(service, house):
    await create(service, alive=QUICK)
    await state(service, State.RUNNING)
    pid = status(service).pid
    house.prober.failing[PROBE] = SILENT
    await until(lambda: house.processes.killed_trees)
    house.prober.failing.clear()
    await until(lambda: status(service).pid not in (None, pid))
    [event] = await events(service, exit="killed by SIGKILL")
    assert event["reason"] == "not alive: connect to :1: no answer within 0.1 s (2 times in a row)"
    assert house.processes.killed_trees == [pid]


async def test_one_that_starts_is_not_asked_if_it_is_alive(service, house):
    slow = Probe(tcp=":2", period=0.1)
    house.prober.failing = {PROBE: REFUSED, slow: REFUSED}
    await create(service, ready={"probe": {"tcp": ":2", "period": 0.1}}, alive=QUICK)
    await until(lambda: len(house.prober.asked) > 5)
    assert {probe for probe, _ in house.prober.asked} == {slow}
    del house.prober.failing[slow]
    await until(lambda: house.processes.killed_trees)


async def test_one_that_is_being_stopped_is_asked_nothing(service, house):
    await create(service, ready={"probe": QUICK}, alive=QUICK, stop=[{"signal": "TERM", "patience": 1000}])
    await state(service, State.RUNNING)
    house.prober.failing[PROBE] = REFUSED
    await service.instances.stop("web", "a")
    await state(service, State.STOPPING)
    before = len(house.prober.asked)
    assert not asking()
    house.processes.end(status(service).pid, Exit(0))
    await state(service, State.STOPPED)
    assert len(house.prober.asked) == before
    assert house.processes.killed_trees == []


async def test_a_changed_probe_takes_effect_at_once(service, house):
    house.prober.failing[PROBE] = REFUSED
    await create(service, ready={"probe": QUICK})
    await until(lambda: len(house.prober.asked) > 1)
    await service.instances.patch("web", "a", {"ready": {"probe": {"tcp": ":2"}}})
    await state(service, State.RUNNING)
    await service.instances.patch("web", "a", {"alive": QUICK})
    await until(lambda: house.processes.killed_trees)
    await service.instances.patch("web", "a", {"alive": None, "ready": None})
    await state(service, State.RUNNING)
    assert not [
        task for task in asyncio.all_tasks() if "Probing._ask" in repr(task.get_coro()) and not task.cancelling()
    ]


async def test_that_nothing_can_be_asked_is_held_against_nobody(service, house):
    await create(service, ready={"probe": QUICK}, alive=QUICK)
    await state(service, State.RUNNING)
    house.prober.unavailable = True
    before = len(house.prober.asked)
    await until(lambda: len(house.prober.asked) > before + 8)
    assert ready(service) == ("True", "")
    assert house.processes.killed_trees == []


async def test_a_program_that_asks_is_run_as_the_instance(service, house):
    spec = {"env": {"PORT": "8"}, "directory": "/srv", "user": "www", "umask": "027"}
    await create(service, ready={"probe": {"exec": ["check", "x"]}}, **spec)
    await state(service, State.RUNNING)
    _, launch = house.prober.asked[0]
    assert (launch.argv, launch.directory, launch.user, launch.umask) == (("check", "x"), "/srv", "www", 0o27)
    assert launch.env["PORT"] == "8"
    assert not any(name.startswith("BRANCHD_") for name in launch.env)


async def test_a_worker_is_ready_when_its_agent_and_its_probe_say_so(service, house):
    await service.apps.put("jobs", {"kind": "celery", "application": "proj", "queues": ["one"]})
    await create(service, "jobs", ready={"probe": QUICK, "within": 1000})
    worker = service._fleet.get("jobs", "a")
    await until(lambda: len(house.prober.asked) > 2)
    assert worker.state is State.STARTING
    house.prober.failing[PROBE] = REFUSED
    worker.attendance.heard(Heartbeat(phase=Phase.UP, queues=("one",)))
    await state(service, State.RUNNING, "jobs")  # it had succeeded before
    await until(lambda: ready(service, app="jobs")[0] == "False")
    assert REFUSED in ready(service, app="jobs")[1]
    worker.attendance.heard(Heartbeat(phase=Phase.DOWN, queues=("one",)))
    await until(lambda: "its broker is unreachable" in ready(service, app="jobs")[1])


async def test_an_adopted_process_that_was_ready_is_so_still_and_its_age_goes_on(service, house):
    await create(service, ready={"probe": QUICK, "within": 0.5}, alive=QUICK)
    await state(service, State.RUNNING)
    pid = status(service).pid
    house.prober.failing[PROBE] = REFUSED
    house.processes.crash()
    for task in asking():
        task.cancel()
    house.prober.failing.clear()
    later = house.service()
    await later.begin()
    await state(later, State.RUNNING)
    assert status(later).pid == pid
    house.prober.failing[PROBE] = REFUSED
    await until(lambda: house.processes.killed_trees == [pid])
    later.close()


async def test_one_that_was_starting_is_late_by_the_time_of_its_start_also_for_the_next_daemon(service, house):
    house.prober.failing[PROBE] = REFUSED
    await create(service, ready={"probe": QUICK, "within": 0.4}, restart={"max_restarts": 0}, stop=KILL)
    await until(lambda: house.prober.asked)
    first = service._fleet.get("web", "a")
    house.processes.crash()
    first.attendance.stopping()
    later = house.service()
    await later.begin()
    await state(later, State.FATAL)
    assert status(later).reason.startswith("not ready within 0.4 s")
    assert len(house.processes.spawned) == 1
    later.close()


@pytest.mark.parametrize("spec", [{}, {"ready": {"within": 1000}}, {"ready": {"after": 0.01}}])
async def test_no_task_exists_where_nothing_is_asked(service, spec):
    await create(service, **spec)
    await state(service, State.RUNNING)
    assert not asking()
