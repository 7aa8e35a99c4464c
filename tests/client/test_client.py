"""The client library against a real daemon."""

import pytest

from branchd.client import ApiProblem, BranchdClient
from tests.running_daemon import RunningDaemon
from tests.waiting import until

SLEEP = {"kind": "command", "command": ["sleep", "1000"]}


@pytest.fixture
def client(daemon: RunningDaemon) -> BranchdClient:
    return BranchdClient(daemon.url)


async def test_who_and_where(daemon: RunningDaemon, client: BranchdClient) -> None:
    assert await client.healthy()
    assert await client.ready()
    assert (await client.whoami())["branch"] == "here"
    assert (await client.openapi())["openapi"].startswith("3.1")
    assert [branch["name"] for branch in (await client.branches())["items"]] == ["here"]
    assert (await client.branch("here"))["state"] == "up"


async def test_the_life_of_an_instance(client: BranchdClient) -> None:
    await client.put_app("life", SLEEP)
    created = await client.create_instance("life", {"name": "one"}, key="k1", wait=10)
    assert created["status"]["state"] == "RUNNING"
    assert (await client.create_instance("life", {"name": "one"}, key="k1"))["created_at"] == created["created_at"]
    assert (await client.restart("life", "one", wait=10))["status"]["pid"] != created["status"]["pid"]
    assert (await client.stop("life", "one", wait=10))["status"]["state"] == "STOPPED"
    assert (await client.start("life", "one", wait=10))["status"]["state"] == "RUNNING"
    assert (await client.signal("life", "one", "CONT"))["name"] == "one"
    assert (await client.stats("life", "one"))["processes"] == 1
    assert (await client.patch_instance("life", "one", {"labels": {"a": "b"}}))["spec"]["labels"] == {"a": "b"}
    assert (await client.put_instance("life", "one", {}, wait=10))["spec"].get("labels") is None
    assert await client.delete_instance("life", "one", wait=10)
    with pytest.raises(ApiProblem) as caught:
        await client.instance("life", "one")
    assert caught.value.status == 404
    await client.delete_app("life")


async def test_apps_and_queues(client: BranchdClient) -> None:
    await client.put_app("defs", SLEEP)
    assert (await client.patch_app("defs", {"weight": 3}))["spec"]["weight"] == 3
    assert "defs" in [app["name"] for app in (await client.apps())["items"]]
    await client.put_queue("defs", "a b/c", {"exchange": "x"})
    assert (await client.queue("defs", "a b/c"))["exchange"] == "x"
    assert len((await client.queues("defs"))["items"]) == 1
    await client.delete_queue("defs", "a b/c")
    await client.create_instance("defs", {"name": "one"})
    with pytest.raises(ApiProblem) as caught:
        await client.delete_app("defs")
    assert caught.value.status == 409
    await client.delete_app("defs", cascade=True, patience=30)
    with pytest.raises(ApiProblem, match="defs"):
        await client.app("defs")


async def test_logs_and_events_are_followed(client: BranchdClient) -> None:
    await client.put_app("talk", {"kind": "command"})
    before = await client.last_event()
    command = ["sh", "-c", "echo hello; sleep 1000"]
    await client.create_instance("talk", {"name": "one", "command": command}, wait=10)

    async def said() -> bytes:
        return b"".join([piece async for piece in client.logs("talk", "one", tail=5)])

    await until(said, what="its output is there")
    assert await said() == b"hello\n"
    follower = client.logs("talk", "one", tail=1, follow=True)
    assert await anext(follower) == b"hello\n"
    await follower.aclose()
    events = client.events(before)
    assert {(await anext(events))["app"] for _ in range(2)} == {"talk"}
    await events.aclose()
    last = [event async for event in client.events(tail=2, follow=False)]
    assert [event["id"] for event in last] == [last[1]["id"] - 1, last[1]["id"]]
    await client.delete_app("talk", cascade=True, patience=30)


async def test_a_token_opens_what_its_scope_allows_until_it_is_revoked(daemon: RunningDaemon) -> None:
    admin = BranchdClient(daemon.tcp, daemon.token)
    made = await admin.create_token("ci", "read", 3600)
    assert made["id"] in [token["id"] for token in (await admin.tokens())["items"]]
    reader = BranchdClient(daemon.tcp, made["token"])
    assert (await reader.whoami())["scope"] == "read"
    with pytest.raises(ApiProblem) as denied:
        await reader.put_app("no", {})
    assert denied.value.status == 403
    await admin.revoke_token(made["id"])
    with pytest.raises(ApiProblem) as unknown:
        await reader.whoami()
    assert unknown.value.status == 401


async def test_what_only_a_worker_has_is_refused_for_a_program(client: BranchdClient) -> None:
    await client.put_app("plain", SLEEP)
    await client.create_instance("plain", {"name": "one", "wanted": "down"})
    for ask in (
        client.consumers("plain", "one"),
        client.add_consumer("plain", "one", "q"),
        client.cancel_consumer("plain", "one", "q"),
        client.autoscale("plain", "one"),
        client.set_autoscale("plain", "one", 1, 2),
    ):
        with pytest.raises(ApiProblem) as caught:
            await ask
        assert caught.value.status == 409
    await client.delete_app("plain", cascade=True, patience=30)


async def test_what_only_a_neighbourhood_can_do_is_refused_alone(client: BranchdClient) -> None:
    for asked in (client.drain("here", pinned=True), client.undrain("here"), client.confirm("here")):
        with pytest.raises(ApiProblem, match="this branch is alone") as refused:
            await asked
        assert refused.value.status == 409
    assert (await client.operations())["items"] == []
    for unknown in (client.operation("here-00"), client.cancel_operation("here-00"), client.explain("life", "none")):
        with pytest.raises(ApiProblem) as missing:
            await unknown
        assert missing.value.status == 404


async def test_what_is_wrong_is_told_with_what_to_do(client: BranchdClient) -> None:
    found = await client.doctor()
    assert found["branch"] == "here"
    assert all(one["cure"] for one in found["findings"] if one["level"] != "ok")


async def test_a_rolling_restart(client: BranchdClient) -> None:
    await client.put_app("roll", {**SLEEP, "replicas": 2})

    async def running() -> list[int]:
        pids = [one["status"]["pid"] for one in (await client.instances("roll"))["items"]]
        return pids if len(pids) == 2 and all(pids) else []

    before = await until(running)
    operation = await client.rolling_restart("roll", ["roll-1"])

    async def state() -> bool:
        return bool((await client.operation(operation["id"]))["state"] == "done")

    await until(state)
    after = await running()
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)
    assert (await client.operation((await client.rolling_restart("roll", outdated=True))["id"]))["steps"] == []
    with pytest.raises(ApiProblem, match="replicas"):
        await client.delete_instance("roll", "roll-1")
    await client.delete_app("roll", cascade=True, patience=30)
