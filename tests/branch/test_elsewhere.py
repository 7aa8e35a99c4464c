"""Whether other branches have instances of an app: asked of complete branches in virtual time."""

import pytest

from branchd.core.errors import Conflict
from branchd.wire import json
from tests.simulation import door
from tests.simulation.loop import simulate
from tests.simulation.neighbourhood import neighbourhood


@simulate
async def test_an_app_with_instances_elsewhere_is_kept_and_nobody_sends_all_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = []
    dumps = json.dumps
    monkeypatch.setattr(door.json, "dumps", lambda value: (sent.append(value), dumps(value))[1])
    async with neighbourhood(3, slots=[50, 50, 50]) as three:
        await three.advance(10)
        await three.put_app(0, "web")
        await three.advance(1)
        for number in range(20):
            assert await three.create_pinned(1, "web", f"a{number}") == f"a{number}"
        assert await three.create_pinned(2, "web", "b") == "b"
        sent.clear()
        refused = await three.delete_app(0, "web")
        assert isinstance(refused, Conflict)
        assert "instances on 2 other branches" in refused.detail
        lists = [len(value["items"]) for value in sent if isinstance(value, dict) and "items" in value]
        assert lists == [1, 1]
