"""Definitions in files: what they change here, whose they are, and what is never done for them."""

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from branchd.branch import files
from branchd.branch.file_definitions import faults
from branchd.branch.layers import Layers, app_entry
from branchd.branch.records import AppRecord
from branchd.core.differences import Action, Thing
from branchd.core.errors import Conflict, Fault, FileOwned, Invalid, NotFound
from branchd.core.file_apps import FileApp, FileDefinitions
from branchd.core.lifecycle import State
from branchd.core.spec import Spec, Wanted
from branchd.core.stamps import Stamp
from branchd.core.values import Exit
from branchd.wire.resources import OperationState
from tests.api.conftest import COMMAND
from tests.branch.conftest import ADMIN
from tests.waiting import until

FILE = "/etc/branchd/conf.d/shop.toml"


class Disk:
    """The files, as their author leaves them."""

    def __init__(self):
        self.apps, self.faults = {}, ()

    def app(self, name, spec=COMMAND, instances=None, queues=None, source=FILE):
        self.apps[name] = FileApp(name, source, spec, instances or {}, queues or {})

    async def read(self):
        return FileDefinitions(dict(self.apps), self.faults, (FILE,))


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
async def begin(house, disk):
    services = []

    async def start(**more):
        service = house.service(read_files=disk.read, **more)
        services.append(service)
        await service.begin()
        return service

    yield start
    for service in services:
        service.close()


@asynccontextmanager
async def again(house, begin):
    """The next daemon, after a kill -9."""
    house.processes.crash()
    yield await begin()


async def running(service, name, app="shop"):
    await until(lambda: service.instances.get(app, name).status.state is State.RUNNING, what=f"{app}:{name} to run")
    return service.instances.get(app, name).status.pid


def spec(service, name, app="shop"):
    return service.instances.get(app, name).spec


def told(difference):
    return [(item.thing, item.name or item.app, item.action, item.restart) for item in difference.items]


async def test_what_files_define_is_there_and_runs_when_the_daemon_has_started(begin, disk):
    disk.app("shop", instances={"web": {}, "mail": {"wanted": "down"}}, queues={"slow": {"exchange": "x"}})
    service = await begin()
    await running(service, "web")
    assert service.instances.get("shop", "mail").status.state is State.STOPPED
    assert service.queues.get("shop", "slow").exchange == "x"
    assert service.apps.get("shop").source == service.instances.get("shop", "web").source == FILE
    assert (await service.files.reread()).items == ()


async def test_root_may_define_in_a_file_what_runs_as_root(begin, disk):
    disk.app("shop", instances={"web": {}})
    service = await begin()
    assert not service.instances.get("shop", "web").status.reason


async def test_the_api_changes_nothing_of_what_a_file_defines(begin, disk):
    disk.app("shop", instances={"web": {}}, queues={"slow": {}})
    service = await begin()
    await running(service, "web")
    for attempt in (
        service.apps.put("shop", COMMAND),
        service.apps.patch("shop", {"labels": {"a": "b"}}),
        service.apps.delete("shop", cascade=True),
        service.apps.publish("shop"),
        service.apps.adopt("shop"),
        service.queues.put("shop", "fast", {}),
        service.queues.delete("shop", "slow"),
        service.instances.put("shop", "web", {}),
        service.instances.patch("shop", "web", {"labels": {"a": "b"}}),
        service.instances.edit("shop", "web", lambda: {"queues": ["x"]}),
        service.instances.delete("shop", "web"),
    ):
        with pytest.raises(FileOwned, match=FILE):
            await attempt
    assert (await service.files.reread()).items == ()


async def test_more_instances_of_a_files_app_are_the_apis(begin, disk):
    disk.app("shop", instances={"web": {}})
    service = await begin()
    await service.instances.create(ADMIN, "shop", {"name": "extra"})
    await running(service, "extra")
    await service.instances.patch("shop", "extra", {"labels": {"a": "b"}})
    assert (await service.files.reread()).items == ()
    await service.instances.delete("shop", "extra")


async def test_a_stop_is_remembered_over_restarts_of_the_daemon_and_updates(begin, disk, house):
    disk.app("shop", instances={"web": {}, "mail": {"wanted": "down"}})
    service = await begin()
    await running(service, "web")
    await service.instances.stop("shop", "web")
    assert await service.instances.wait("shop", "web", "stopped", 5)
    await service.instances.start("shop", "mail")
    await running(service, "mail")
    async with again(house, begin) as later:
        await running(later, "mail")
        assert later.instances.get("shop", "web").status.wanted is Wanted.DOWN
        disk.app("shop", instances={"web": {"labels": {"a": "b"}}, "mail": {"wanted": "down", "labels": {"a": "b"}}})
        await later.files.update()
        assert later.instances.get("shop", "web").status.state is State.STOPPED
        await running(later, "mail")
        assert spec(later, "web")["labels"] == {"a": "b"}


async def test_reread_tells_every_field_and_no_secret_and_changes_nothing(begin, disk):
    disk.app("shop", COMMAND | {"env": {"A": "1", "P": {"secret": "s3cret"}}}, {"web": {}, "old": {}}, {"slow": {}})
    disk.app("gone", instances={"one": {}})
    service = await begin()
    await running(service, "web")
    del disk.apps["gone"]
    disk.app("new", instances={"one": {}})
    disk.app(
        "shop",
        COMMAND | {"env": {"A": "2", "P": {"secret": "0ther"}}, "priority": 5},
        {"web": {"directory": "/tmp"}, "mail": {}},
        {"slow": {"routing_key": "k"}},
    )
    found = await service.files.reread()
    assert (found.added, found.changed, found.removed) == (("new",), ("shop",), ("gone",))
    fields = {(item.label, one.field): (one.before, one.after) for item in found.items for one in item.fields}
    assert fields["app shop", "env.A"] == ("1", "2")
    assert fields["app shop", "env.P"] == ({"secret": "<hidden>"}, {"secret": "<hidden>"})
    assert fields["app shop", "priority"] == (None, 5)
    assert fields["shop:web", "directory"] == (None, "/tmp")
    assert fields["queue slow of shop", "routing_key"] == (None, "k")
    assert "s3cret" not in repr(found)
    assert "0ther" not in repr(found)
    assert (Thing.INSTANCE, "web", Action.CHANGE, True) in told(found)
    assert (Thing.INSTANCE, "old", Action.DELETE, False) in told(found)
    assert (Thing.INSTANCE, "mail", Action.CREATE, False) in told(found)
    assert await service.files.reread() == found
    assert service.instances.get("gone", "one").status.state is State.RUNNING


async def test_update_creates_deletes_and_restarts_only_what_needs_it(begin, disk, house):
    disk.app("shop", instances={"web": {}, "mail": {}, "old": {}})
    disk.app("gone", instances={"one": {}})
    service = await begin()
    pids = {name: await running(service, name) for name in ("web", "mail", "old")}
    del disk.apps["gone"]
    disk.app("shop", instances={"web": {"env": {"A": "1"}}, "mail": {"priority": 7}, "new": {}})
    done = await service.files.update()
    assert (done.changed, done.removed) == (("shop",), ("gone",))
    assert await running(service, "mail") == pids["mail"]
    assert await running(service, "web") != pids["web"]
    await running(service, "new")
    assert [app.name for app in service.apps.list()] == ["shop"]
    with pytest.raises(NotFound):
        service.instances.get("shop", "old")
    assert (await service.files.reread()).items == ()
    spawned = len(house.processes.spawned)
    assert (await service.files.update()).items == ()
    assert len(house.processes.spawned) == spawned


async def test_update_of_one_app_leaves_the_others_as_they_are(begin, disk):
    disk.app("shop", instances={"web": {}})
    disk.app("mail", instances={"one": {}})
    service = await begin()
    disk.app("shop", instances={"web": {}, "new": {}})
    disk.app("mail", instances={})
    await service.files.update(["shop"])
    await running(service, "new")
    await running(service, "one", "mail")
    with pytest.raises(NotFound, match="absent"):
        await service.files.update(["absent"])


async def test_a_changed_file_bounces_nobody_at_the_daemons_start_and_update_takes_it_up(begin, disk, house):
    disk.app("shop", instances={"web": {}, "old": {}})
    service = await begin()
    pid = await running(service, "web")
    await running(service, "old")
    disk.app("shop", COMMAND | {"env": {"A": "1"}}, {"web": {}, "new": {}})
    async with again(house, begin) as later:
        assert await running(later, "web") == pid
        await running(later, "new")
        await running(later, "old")
        current = {one.type: one.status for one in later.instances.get("shop", "web").status.conditions}
        assert current["ConfigCurrent"] == "False"
        assert told(await later.files.reread()) == [
            (Thing.INSTANCE, "old", Action.DELETE, False), (Thing.INSTANCE, "web", Action.RESTART, True)
        ]  # fmt: skip
        await later.files.update()
        assert await running(later, "web") != pid
        assert (await later.files.reread()).items == ()


async def test_what_does_not_run_starts_with_what_the_files_say_now(begin, disk, house):
    disk.app("shop", instances={"web": {}})
    service = await begin()
    await running(service, "web")
    disk.app("shop", COMMAND | {"command": ["other"]}, {"web": {}})
    house.processes.crash()
    for pid in list(house.processes.running):
        house.processes.end(pid, Exit(signal=9))
    later = await begin()
    await running(later, "web")
    assert house.processes.spawned[-1].launch.argv == ("other",)


async def test_a_start_of_the_daemon_takes_nothing_away_and_tells_what_the_files_have_no_more(begin, disk, house):
    disk.app("shop", instances={"web": {}}, queues={"slow": {}})
    disk.app("mail", instances={"one": {}, "two": {}}, queues={"slow": {}})
    service = await begin()
    pids = [await running(service, "web"), await running(service, "two", "mail")]
    del disk.apps["shop"]
    disk.app("mail", instances={"one": {}})
    async with again(house, begin) as later:
        assert [await running(later, "web"), await running(later, "two", "mail")] == pids
        assert [one.name for one in later.queues.list("shop")] == ["slow"]
        finding = next(one for one in later.diagnoses() if one.check == "definition files")
        assert finding.level == "warning"
        assert "queue slow of mail, mail:two, app shop, shop:web" in finding.detail
        assert (await later.files.reread()).removed == ("shop",)
        await later.files.update(["mail"])
        assert later.files.left == ("app shop", "shop:web")
        await later.files.update()
        assert [app.name for app in later.apps.list()] == ["mail"]
        assert not any(one.check == "definition files" for one in later.diagnoses())


async def test_a_start_finds_no_files_at_all_and_stops_nothing(begin, disk, house):
    disk.app("shop", instances={"web": {}}, queues={"slow": {}})
    service = await begin()
    pid = await running(service, "web")
    disk.apps.clear()
    async with again(house, begin) as later:
        assert await running(later, "web") == pid
        await later.files.update()
        assert not later.apps.list()
        assert not house.processes.running
    snapshot = house.store.load()
    assert [*snapshot.apps, *snapshot.queues, *snapshot.instances, *snapshot.authored] == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_a_number_that_json_has_not_is_a_fault_also_in_what_nobody_reads_here(begin, disk, number):
    disk.app("shop", COMMAND, {}, {"q": {"options": {"queue_arguments": [{"x": number}]}}})
    service = await begin()
    [fault] = (await service.files.reread()).faults
    assert fault.pointer == f"{FILE}: [apps.shop.queues.q].options"


async def test_with_any_fault_nothing_is_applied_and_what_was_goes_on(begin, disk, house):
    disk.app("shop", instances={"web": {}})
    service = await begin()
    pid = await running(service, "web")
    disk.app("shop", COMMAND | {"umask": "9"}, {"web": {"nonsense": 1}, "a b": {}}, {"q": {"exchange_type": "no"}})
    disk.app("fine", instances={"one": {}})
    disk.faults = (Fault("/etc/branchd/conf.d/x.toml", "is not TOML"),)
    with pytest.raises(Invalid) as caught:
        await service.files.update()
    assert [fault.pointer for fault in caught.value.faults] == [
        "/etc/branchd/conf.d/x.toml", f"{FILE}: [apps.shop].umask", f"{FILE}: [apps.shop.queues.q].exchange_type",
        f"{FILE}: [apps.shop.instances.web].nonsense", f"{FILE}: [apps.shop.instances.a b]",
    ]  # fmt: skip
    assert (await service.files.reread()).faults == tuple(caught.value.faults)
    async with again(house, begin) as later:
        assert await running(later, "web") == pid
        assert [app.name for app in later.apps.list()] == ["shop"]
        finding = next(one for one in later.diagnoses() if one.check == "definition files")
        assert finding.level == "failure"
        assert "x.toml" in finding.detail
        disk.faults = ()
        disk.app("shop", instances={"web": {}})
        await later.files.update()
        await running(later, "one", "fine")
        assert not any(one.check == "definition files" for one in later.diagnoses())


async def test_a_fault_says_no_value_that_may_be_secret(begin, disk):
    disk.app("shop", COMMAND | {"env": {"A": ["s3cret"]}, "broker": 7}, {"web": {"env": {"B": {"secret": 17}}}})
    disk.app("env", COMMAND | {"env": "PASSWORD=s3cret", "hooks": {"on_exit": "https://chat.example/s3cret"}})
    disk.app("hook", COMMAND | {"hooks": {"on_exit": {"url": "chat.example/s3cret"}}})
    service = await begin()
    with pytest.raises(Invalid) as caught:
        await service.files.update()
    told = {fault.pointer.rpartition("]")[2] for fault in caught.value.faults}
    assert told >= {".env.A", ".broker", ".env", ".hooks.on_exit", ".hooks.on_exit.url"}
    assert "s3cret" not in str([(fault.detail, fault.hint) for fault in caught.value.faults])


async def test_a_full_store_at_the_start_leaves_what_was_applied(begin, disk, house):
    disk.app("shop", instances={"web": {}})
    service = await begin()
    pid = await running(service, "web")
    disk.app("shop", instances={})
    house.processes.crash()
    house.store.full = True
    later = house.service(read_files=disk.read)
    await later.files.settle()
    house.store.full = False
    await later.begin()
    later.close()
    assert pid


async def test_a_file_takes_over_what_the_api_made_and_lets_it_run(begin, disk):
    service = await begin()
    await service.apps.put("shop", COMMAND)
    await service.instances.create(ADMIN, "shop", {"name": "web"})
    await service.instances.create(ADMIN, "shop", {"name": "extra"})
    pid = await running(service, "web")
    disk.app("shop", instances={"web": {}})
    assert told(await service.files.reread()) == [
        (Thing.APP, "shop", Action.TAKE, False), (Thing.INSTANCE, "web", Action.TAKE, False)
    ]  # fmt: skip
    await service.files.update()
    assert await running(service, "web") == pid
    with pytest.raises(FileOwned):
        await service.instances.delete("shop", "web")
    disk.apps.clear()
    assert told(await service.files.reread())[0] == (Thing.APP, "shop", Action.RELEASE, False)
    await service.files.update()
    assert [one.name for one in service.instances.list()] == ["extra"]
    assert service.apps.get("shop").source == ""
    await service.apps.patch("shop", {"labels": {"a": "b"}})


async def test_a_file_may_not_make_invalid_what_the_api_made(begin, disk):
    disk.app("shop")
    service = await begin()
    await service.instances.create(ADMIN, "shop", {"name": "extra"})
    disk.app("shop", {"kind": "command"})
    with pytest.raises(Invalid) as caught:
        await service.files.update()
    assert "shop:extra, which the API made" in caught.value.faults[0].detail


async def test_the_daemons_allow_list_holds_for_files(begin, disk):
    disk.app("shop", instances={"web": {"user": "mallory"}})
    service = await begin(allow_users=("root",))
    found = await service.files.reread()
    assert [fault.pointer for fault in found.faults] == [f"{FILE}: [apps.shop.instances.web].user"]
    assert not service.apps.list()


async def test_an_app_that_moves_to_another_file_is_that_files_and_nothing_is_restarted(begin, disk):
    disk.app("shop", instances={"web": {}})
    service = await begin()
    pid = await running(service, "web")
    disk.app("shop", instances={"web": {}}, source="/other.toml")
    assert [item.detail for item in (await service.files.reread()).items] == [f"it was in {FILE}"] * 2
    await service.files.update()
    assert service.instances.get("shop", "web").source == "/other.toml"
    assert await running(service, "web") == pid


async def test_add_and_remove_are_of_one_app_as_supervisord_has_them(begin, disk, house):
    service = await begin()
    disk.app("shop", instances={"web": {}})
    with pytest.raises(NotFound):
        await service.files.add("absent")
    await service.files.add("shop")
    await running(service, "web")
    with pytest.raises(Conflict, match="is here already"):
        await service.files.add("shop")
    with pytest.raises(Conflict, match="still runs"):
        await service.files.remove("shop")
    await service.instances.stop("shop", "web")
    assert await service.instances.wait("shop", "web", "stopped", 5)
    await service.files.remove("shop")
    with pytest.raises(NotFound):
        await service.files.remove("shop")
    assert (await service.files.reread()).added == ("shop",)
    await service.files.add("shop")
    await running(service, "web")


async def test_instances_of_an_app_are_restarted_one_after_the_other_and_not_beyond_one_that_fails(begin, disk, house):
    disk.app("shop", COMMAND | {"restart": {"max_restarts": 0}}, {"a": {}, "b": {}})
    service = await begin()
    pids = {name: await running(service, name) for name in "ab"}
    disk.app("shop", COMMAND | {"restart": {"max_restarts": 0}, "command": ["broken"]}, {"a": {}, "b": {}})
    house.processes.missing.add("broken")
    with pytest.raises(Conflict, match="shop:a: "):
        await service.files.update()
    assert await running(service, "b") == pids["b"]
    house.processes.missing.clear()
    await service.instances.start("shop", "a")
    await service.files.update()
    assert await running(service, "b") != pids["b"]


async def test_two_updates_at_once_do_it_once(begin, disk, house):
    service = await begin()
    disk.app("shop", instances={"web": {}})
    await asyncio.gather(service.files.update(), service.files.update())
    await running(service, "web")
    assert len(house.processes.spawned) == 1


async def test_the_environment_file_is_read_at_each_start_and_the_spec_beats_it(begin, disk, house):
    disk.app("shop", COMMAND | {"env_file": "/env", "env": {"BOTH": "of-spec"}}, {"web": {}})
    disk.app("lost", COMMAND | {"env_file": "/absent", "restart": {"max_restarts": 0}}, {"one": {}})
    service = await begin()
    await running(service, "web")
    env = house.processes.spawned[-1].launch.env
    assert (env["OF_FILE"], env["BOTH"]) == ("of-file", "of-spec")
    await until(lambda: service.instances.get("lost", "one").status.state is State.FATAL, what="lost:one to be FATAL")
    assert "/absent cannot be read" in service.instances.get("lost", "one").status.reason


async def test_the_replicas_of_a_files_app_come_and_go_with_it(begin, disk, house):
    disk.app("shop", COMMAND | {"replicas": 2})
    service = await begin()
    await until(lambda: len(house.processes.running) == 2, what="two replicas to run")
    disk.app("shop", COMMAND | {"replicas": 1})
    await service.files.update()
    await until(lambda: [one.name for one in service.instances.list()] == ["shop-0"], what="one replica to be left")
    disk.app("shop", COMMAND | {"replicas": 0})
    async with again(house, begin) as later:
        await running(later, "shop-0")
        assert later.files.left == ("app shop",)
        disk.apps.clear()
        await later.files.update()
        assert not later.apps.list()
        assert not house.processes.running


async def test_what_would_wait_for_itself_is_a_fault_of_the_files(begin, disk):
    disk.app("shop", instances={"a": {"depends_on": ["mail:b"]}})
    disk.app("mail", instances={"b": {"depends_on": ["shop:a"]}})
    service = await begin()
    assert not service.instances.list()
    assert "shop:a" in (await service.files.reread()).faults[0].detail


async def test_what_other_branches_define_may_have_no_file_read_here(house):
    service = house.service()
    faults = service._fleet.definitions.peer_faults(Spec(user="www", env_file="/etc/secrets"))
    assert [fault.pointer for fault in faults] == ["/env_file"]
    service.close()


@pytest.mark.parametrize(("source", "twins"), [("", True), (FILE, False)])
def test_what_a_file_defines_stays_this_branchs_own_where_the_neighbourhood_says_the_same(house, source, twins):
    app = AppRecord("shop", COMMAND, source=source)
    snapshot = replace(house.store.load(), apps=(app,), entries=(app_entry(app, Stamp(1, "0" * 32)),))
    assert Layers(snapshot).twins("shop") is twins


async def test_an_update_that_is_cancelled_while_it_commits_leaves_here_what_is_in_the_store(
    begin, disk, house, monkeypatch
):
    service = await begin()
    disk.app("shop", instances={"a": {}})
    committed, told, write = asyncio.Event(), asyncio.Event(), house.store.write

    async def slowly(*changes, durable=True):
        await write(*changes, durable=durable)
        committed.set()
        await told.wait()

    monkeypatch.setattr(house.store, "write", slowly)
    operation = service.operations.begin("update", ADMIN, lambda progress: service.files.update(None, progress))
    await committed.wait()
    cancelling = asyncio.ensure_future(service.operations.cancel(operation.id))
    await asyncio.sleep(0)
    told.set()
    assert (await cancelling).state is OperationState.CANCELLED
    assert [app.name for app in house.store.load().apps] == [app.name for app in service.apps.list()] == ["shop"]
    assert [one.key.name for one in house.store.load().instances] == [one.name for one in service.instances.list()]


async def test_of_many_files_the_loop_is_left_to_others_between_two_apps(begin, disk, monkeypatch):
    for number in range(30):
        disk.app(f"app{number}", instances={"one": {}})
    service = await begin()
    threads = []

    def watched(*given):
        threads.append(threading.current_thread())
        return faults(*given)

    monkeypatch.setattr(files, "faults", watched)
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    read = disk.read

    async def begins():
        nonlocal turns
        turns = 0
        return await read()

    monkeypatch.setattr(service.files, "_read", begins)
    assert (await service.files.reread()).items == ()
    beside.cancel()
    assert turns >= 30
    assert threading.main_thread() not in threads


async def test_a_look_at_the_files_survives_an_update_that_takes_apps_away_meanwhile(begin, disk):
    for number in range(30):
        disk.app(f"app{number}", instances={"one": {"wanted": "down"}})
    service = await begin()
    disk.apps.clear()
    looks = [asyncio.create_task(service.files.reread()) for _ in range(20)]
    update = asyncio.create_task(service.files.update())
    while not update.done():
        looks.append(asyncio.create_task(service.files.reread()))
        await asyncio.sleep(0)
    assert len((await update).removed) == 30
    for look in await asyncio.gather(*looks):
        assert look.added == look.changed == look.faults == ()
    assert (await service.files.reread()).items == service.files.left == ()
