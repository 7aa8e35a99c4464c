"""branchctl app publish and adopt."""

import json

import pytest
from click.testing import CliRunner

from branchd.cli.control import main
from branchd.client import BranchdClient, Object
from branchd.core.errors import Conflict
from tests.running_daemon import RunningDaemon


@pytest.mark.parametrize("action", ["publish", "adopt"])
def test_a_branch_without_a_broker_shares_nothing(action: str, daemon: RunningDaemon) -> None:
    runner = CliRunner()
    assert runner.invoke(main, ["--url", daemon.url, "app", "set", "shop", "--", "sleep", "1"]).exit_code == 0
    result = runner.invoke(main, ["--url", daemon.url, "app", action, "shop"])
    assert result.exit_code == 1
    assert "no broker" in result.stderr
    assert runner.invoke(main, ["--url", daemon.url, "app", action, "nosuch"]).exit_code == 4
    assert runner.invoke(main, ["--url", daemon.url, "app", "rm", "shop"]).exit_code == 0


@pytest.mark.parametrize(("action", "done"), [("publish", "published"), ("adopt", "adopted")])
def test_several_are_told_one_by_one_and_one_failure_keeps_no_other(
    action: str, done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(_: BranchdClient, app: str) -> Object:
        if app == "post":
            raise Conflict("there is nothing to do")
        return {"name": app, "generation": 4}

    monkeypatch.setattr(BranchdClient, f"{action}_app", act)
    call = ["--url", "http://127.0.0.1:1", "app", action, "web", "post", "shop"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 7
    assert result.stdout.splitlines() == [f"web: {done}, generation 4", f"shop: {done}, generation 4"]
    assert "post" in result.stderr
    assert "there is nothing to do" in result.stderr
    shown = CliRunner().invoke(main, [*call, "-o", "json"])
    assert [one["name"] for one in json.loads(shown.stdout)["items"]] == ["web", "shop"]


def test_show_tells_the_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    condition = {"type": "Shared", "status": "False", "reason": "branchctl app publish web"}

    async def app(_: BranchdClient, name: str) -> Object:
        rest = {"generation": 1, "created_at": "now", "spec": {}, "instances": 0, "conditions": [condition]}
        return {"name": name, **rest}

    monkeypatch.setattr(BranchdClient, "app", app)
    shown = CliRunner().invoke(main, ["--url", "http://127.0.0.1:1", "app", "show", "web", "-o", "wide"])
    assert shown.exit_code == 0
    assert "Shared: False  branchctl app publish web" in shown.stdout
    assert "Shared=False" in shown.stdout
