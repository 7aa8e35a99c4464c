"""The API of a simulated branch, as far as other branches carry requests to it: without HTTP, in virtual time."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from branchd.branch.ports import Served
from branchd.branch.service import Service
from branchd.core.access import Principal
from branchd.core.errors import BranchdError, NotFound
from branchd.wire import json
from branchd.wire.decode import encode


class SimulatedDoor:
    """Knows what mesh.py carries, and deletions; everything else is a bug of the test."""

    def __init__(self) -> None:
        self.service: Service | None = None

    @asynccontextmanager
    async def serve(
        self, principal: Principal, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[Served]:
        assert self.service is not None
        try:
            status, value = await self._answer(self.service, method, target)
        except NotFound:
            status, value = 404, {}
        except BranchdError as error:
            status, value = 503, {"detail": error.detail}
        yield Served(status, {}, _pieces(json.dumps(value)))

    async def _answer(self, service: Service, method: str, target: str) -> tuple[int, Any]:
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        match method, parts.path.split("/")[1:]:
            case "GET", ["v1", "instances"]:
                items = [item for item in service.instances.list() if item.app == query["app"]]
                return 200, {"items": encode(items[: int(query["limit"])]), "next": None}
            case "GET", ["v1", "apps", app, "instances", name]:
                await service.instances.wait(app, name, "ready", float(query.get("wait", "0").removesuffix("s")))
                return 200, encode(service.instances.get(app, name))
            case "DELETE", ["v1", "apps", app, "instances", name]:
                await service.instances.delete(app, name)
                return 202, {}
            case other:
                raise AssertionError(f"nobody answers {other}")


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body
