"""How the tours ask a branch: a request is told as it is sent, and what takes a while is waited for."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from branchd.cli.demo.steps import Failed, Voice, until
from branchd.client import BranchdClient

#: seconds that a Celery worker has to become ready on a busy machine
WORKER = 60.0


def shop(folder: Path, queue: str, broker: str | None) -> dict[str, Any]:
    """The app whose application is shop.py in the folder. `queue`: its default. `broker`: URL, None for files."""
    return {
        "application": "shop", "directory": str(folder), "python": sys.executable,
        "env": {"SHOP_FOLDER": str(folder / "shop"), "SHOP_QUEUE": queue}, **({"broker": broker} if broker else {}),
    }  # fmt: skip


class Asking:
    def __init__(self, client: BranchdClient, voice: Voice) -> None:
        self._client = client
        self._voice = voice

    async def put_app(self, app: str, spec: Mapping[str, Any]) -> None:
        shown = {name: "<hidden>" if name == "broker" else value for name, value in spec.items()}
        self._voice.did(f"PUT /v1/apps/{app} {json.dumps(shown)}")
        await self._client.put_app(app, dict(spec))

    async def put_queue(self, app: str, queue: str, declaration: Mapping[str, Any]) -> None:
        self._voice.did(f"PUT /v1/apps/{app}/queues/{queue} {json.dumps(declaration)}")
        await self._client.put_queue(app, queue, dict(declaration))

    async def create(self, app: str, body: Mapping[str, Any]) -> Any:
        self._voice.did(f"POST /v1/apps/{app}/instances {json.dumps(body)}")
        return await self._client.create_instance(app, dict(body))

    async def status(self, app: str, name: str) -> Any:
        return (await self._client.instance(app, name))["status"]

    async def running(self, app: str, name: str) -> Any:
        """Its status, once it is ready."""

        async def ready() -> Any:
            status = await self.status(app, name)
            if status["state"] == "FATAL":
                raise Failed(f"{app}:{name} is FATAL: {status['reason']}")
            truths = {condition["type"]: condition["status"] for condition in status["conditions"]}
            return status if truths["Ready"] == "True" and status["state"] == "RUNNING" else None

        return await until(ready, WORKER, f"{app}:{name} to be ready")

    async def pids(self) -> dict[str, int]:
        """Of all that run, by "app:name"."""
        items = (await self._client.instances())["items"]
        return {f"{item['app']}:{item['name']}": item["status"]["pid"] for item in items if item["status"]["pid"]}
