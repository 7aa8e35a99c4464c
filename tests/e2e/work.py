"""The user of the project in tests: sends its tasks, waits for their results, looks at the queues."""

import sys
from pathlib import Path
from typing import Any

from amqp.exceptions import NotFound
from celery import Celery
from celery.result import AsyncResult
from kombu import Connection

from tests.e2e.branch import PROJECT
from tests.waiting import until

#: seconds for anything that takes one or two on an idle machine
PATIENCE = 60


class Work:
    def __init__(self, broker: str, folder: Path) -> None:
        """`folder` is where results go; it is made."""
        self.broker = broker
        self.results = folder / "results"
        self.results.mkdir(parents=True)
        self._app = Celery("sender", broker=broker, backend=f"file://{self.results}", set_as_current=False)

    @property
    def spec(self) -> dict[str, Any]:
        """Of an app whose workers run the project."""
        return {
            "application": "shop",
            "directory": str(PROJECT),
            "python": sys.executable,
            "broker": self.broker,
            "env": {"PROJECT_RESULTS": str(self.results), "PYTHONDONTWRITEBYTECODE": "1"},
        }

    def send(self, task: str, *arguments: Any, **where: str) -> AsyncResult:
        """`where`: queue=..., or exchange=... and routing_key=..."""
        with Connection(self.broker) as connection:
            return self._app.send_task(f"shop.{task}", arguments, connection=connection, **where)

    async def result(self, sent: AsyncResult, seconds: float = PATIENCE) -> Any:
        await until(sent.ready, seconds, f"the result of {sent.id}")
        return sent.get(disable_sync_subtasks=False)

    def queue(self, name: str) -> tuple[int, int]:
        """Messages that wait and consumers, as the broker counts them; zeros where it knows no such queue."""
        with Connection(self.broker) as connection:
            try:
                found = connection.default_channel.queue_declare(name, passive=True)
            except NotFound:
                return 0, 0
            return found.message_count, found.consumer_count


def truth(status: dict[str, Any], kind: str) -> tuple[str, str]:
    """A condition's status and reason."""
    return next((item["status"], item["reason"]) for item in status["conditions"] if item["type"] == kind)
