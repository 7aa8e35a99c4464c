"""What a monitor renews, as Celery's does with a worker that lost its consumer, is left to its restart policy."""

from branchd.core.findings import Renew
from branchd.core.lifecycle import State
from branchd.drivers.command import CommandMonitor
from tests.branch.test_service import create, state
from tests.waiting import until


async def test_a_worker_that_loses_its_consumer_again_and_again_is_fatal(service, house, monkeypatch):
    lost = "lost its consumer of q and did not take it up again"
    monkeypatch.setattr(CommandMonitor, "began", lambda self, now: [Renew(lost)])
    stop = [{"signal": "KILL", "patience": 1}]
    await create(service, "a", stop=stop, restart={"max_restarts": 1})
    await until(lambda: state(service, "a") is State.FATAL)
    status = service.instances.get("web", "a").status
    assert status.reason.startswith(f"{lost}; 2 times within")
    assert (status.restarts, len(house.processes.spawned)) == (1, 2)
