"""The table of methods beside supervisord's own, what each says, and its faults."""

import inspect
import os
import re
import signal
import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest
from supervisor.rpcinterface import SupervisorNamespaceRPCInterface
from supervisor.states import ProcessStates
from supervisor.xmlrpc import Faults, SystemNamespaceRPCInterface

from branchd.api.door import logs, methods
from branchd.api.door.faults import Fault
from branchd.api.door.methods import MOST_CALLS, TABLE
from branchd.api.door.states import CODES
from branchd.branch.ending import Ending
from branchd.branch.own_log import KEPT, OwnLog
from branchd.branch.service import Service
from branchd.core.access import Scope
from branchd.core.file_apps import FileApp, FileDefinitions
from branchd.core.lifecycle import State
from branchd.core.spec import Logs
from branchd.core.values import Exit, Key
from tests.api.conftest import COMMAND, House
from tests.api.door.conftest import Rpc
from tests.waiting import until


def public(interface: type) -> dict[str, Any]:
    return {name: one for name, one in vars(interface).items() if callable(one) and not name.startswith("_")}


THEIRS = {f"supervisor.{name}": one for name, one in public(SupervisorNamespaceRPCInterface).items()}
SYSTEM = {f"system.{name}": one for name, one in public(SystemNamespaceRPCInterface).items()}

PAGE = Path(__file__).parents[3] / "docs" / "supervisor-door.md"

FAULTS = {name: code for name, code in vars(Faults).items() if not name.startswith("_")}
STATES = {name: code for name, code in vars(ProcessStates).items() if not name.startswith("_")}


def test_every_method_of_supervisord_is_in_the_table_and_no_other() -> None:
    assert set(TABLE) == {*THEIRS, *SYSTEM}


def test_the_page_has_every_method() -> None:
    rows = re.findall(r"^\| (`supervisor\..*?|`system\..*?) \|", PAGE.read_text(), re.MULTILINE)
    shown = []
    for row in rows:
        first, *others = re.findall(r"`(.+?)`", row)
        space = first.partition(".")[0]
        shown += [first, *(f"{space}.{name}" for name in others)]
    assert sorted(shown) == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_method_takes_what_supervisords_takes(name: str) -> None:
    theirs = list(inspect.signature({**THEIRS, **SYSTEM}[name]).parameters.values())[1:]
    ours = TABLE[name].params
    assert [param.name for param in ours] == [param.name for param in theirs]
    assert [param.needed for param in ours] == [param.default is param.empty for param in theirs]


def test_faults_and_states_have_supervisords_numbers() -> None:
    assert {fault.name: fault.value for fault in Fault} == FAULTS
    assert {state.value: code for state, code in CODES.items()} == {
        name: code for name, code in STATES.items() if name != "UNKNOWN"
    }
    assert set(CODES) == set(State)


async def test_the_table_tells_of_itself(rpc: Rpc) -> None:
    assert await rpc("system.listMethods") == sorted(TABLE)
    for name in TABLE:
        theirs = SystemNamespaceRPCInterface([("supervisor", SupervisorNamespaceRPCInterface(None))])
        if name != "system.multicall":
            assert await rpc("system.methodSignature", name) == theirs.methodSignature(name), name
        assert "@return" in await rpc("system.methodHelp", name)
    assert await rpc.fault("system.methodHelp", "supervisor.nothing") == "SIGNATURE_UNSUPPORTED"
    assert await rpc.fault("system.methodSignature", "nothing") == "SIGNATURE_UNSUPPORTED"


async def test_what_is_not_in_the_table_is_unknown(rpc: Rpc) -> None:
    for name in ("supervisor.supervisord.options.execve", "supervisor._update", "supervisor.__class__", "shutdown",
                 "system.namespaces", "Supervisor.getPID"):  # fmt: skip
        assert await rpc.fault(name) == "UNKNOWN_METHOD"


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("getPID", (1,)),
        ("startProcess", ()),
        ("startProcess", (1,)),
        ("startProcess", (["shop:web"],)),
        ("startProcess", ("shop:web", "yes")),
        ("startProcess", ("shop:web", True, True)),
        ("readProcessStdoutLog", ("shop:web", "some", 0)),
        ("sendProcessStdin", ("shop:web", 3)),
        ("signalProcess", ("shop:web",)),
    ],
)
async def test_wrong_parameters_are_a_fault(rpc: Rpc, method: str, params: tuple[Any, ...]) -> None:
    assert (await rpc.fault(f"supervisor.{method}", *params)).startswith("INCORRECT_PARAMETERS")


async def test_the_daemon_tells_who_it_is(rpc: Rpc) -> None:
    assert await rpc("supervisor.getVersion") == await rpc("supervisor.getAPIVersion") == "3.0"
    major, minor, patch = map(int, (await rpc("supervisor.getSupervisorVersion")).split("."))
    assert (major, minor, patch) >= (4, 0, 0)
    assert await rpc("supervisor.getIdentification") == "here"
    assert await rpc("supervisor.getState") == {"statecode": 1, "statename": "RUNNING"}


async def test_the_fields_of_a_process_are_supervisords(rpc: Rpc, house: House) -> None:
    db, web = await rpc("supervisor.getAllProcessInfo")
    assert (db["name"], web["name"], web["group"]) == ("db", "web", "shop")
    assert set(web) == {
        *("name", "group", "description", "start", "stop", "now", "state", "statename", "spawnerr", "exitstatus"),
        *("logfile", "stdout_logfile", "stderr_logfile", "pid"),
    }
    assert web["pid"] in house.processes.running
    assert web["logfile"] == web["stdout_logfile"] == "/logs/shop/web/stdout.log"
    assert web["stderr_logfile"] == ""  # it is joined with the other
    assert (web["state"], web["statename"], web["stop"], web["exitstatus"]) == (20, "RUNNING", 0, 0)
    assert web["description"].startswith(f"pid {web['pid']}, uptime 0:00:0")
    assert 0 <= web["now"] - web["start"] < 60
    assert await rpc("supervisor.stopProcess", "shop:web") is True
    web = await rpc("supervisor.getProcessInfo", "shop:web")
    assert (web["state"], web["statename"], web["pid"], web["exitstatus"]) == (0, "STOPPED", 0, -1)
    assert web["start"] <= web["stop"] <= web["now"]
    assert web["description"].endswith(("AM", "PM"))


async def test_what_never_ran_says_so(rpc: Rpc) -> None:
    assert (await rpc.api("PUT", "/v1/apps/shop/instances/off", {"wanted": "down"})).status == 201
    info = await rpc("supervisor.getProcessInfo", "shop:off")
    assert (info["start"], info["stop"], info["description"]) == (0, 0, "Not started")


async def test_what_gave_up_says_why(rpc: Rpc, house: House) -> None:
    house.processes.missing.add("/nowhere")
    body = {"command": ["/nowhere"], "restart": {"max_restarts": 0}}
    assert (await rpc.api("PUT", "/v1/apps/shop/instances/lost", body)).status == 201
    info = await rpc("supervisor.getProcessInfo", "shop:lost")
    assert (info["state"], info["statename"]) == (200, "FATAL")
    assert "/nowhere" in info["spawnerr"]
    assert info["description"] == info["spawnerr"]
    assert (await rpc.fault("supervisor.startProcess", "shop:lost")).startswith("SPAWN_ERROR: shop:lost")
    (started,) = [one for one in await rpc("supervisor.startProcessGroup", "shop") if one["name"] == "lost"]
    assert (started["status"], started["group"]) == (Fault.SPAWN_ERROR, "shop")


async def test_a_bare_name_is_of_a_group_of_that_name(rpc: Rpc) -> None:
    assert (await rpc.api("PUT", "/v1/apps/cron", COMMAND)).status == 201
    assert (await rpc.api("PUT", "/v1/apps/cron/instances/cron", {})).status == 201
    assert (await rpc("supervisor.getProcessInfo", "cron"))["group"] == "cron"
    assert await rpc.fault("supervisor.getProcessInfo", "web") == "BAD_NAME: web"


@pytest.mark.parametrize("name", ["shop:nothing", "nothing", "nothing:web", "shop:*", "shop:", "", ":", "../x:y"])
async def test_names_of_nothing_are_bad(rpc: Rpc, name: str) -> None:
    for method in ("getProcessInfo", "clearProcessLogs"):
        assert await rpc.fault(f"supervisor.{method}", name) == f"BAD_NAME: {name}"
    assert await rpc.fault("supervisor.readProcessStdoutLog", name, 0, 0) == f"BAD_NAME: {name}"
    if not name.startswith("shop:") or name.endswith("nothing"):
        for method in ("startProcess", "stopProcess"):
            assert (await rpc.fault(f"supervisor.{method}", name)).startswith("BAD_NAME")


async def test_a_process_is_stopped_and_started_once(rpc: Rpc) -> None:
    assert await rpc.fault("supervisor.startProcess", "shop:web") == "ALREADY_STARTED: shop:web"
    assert await rpc("supervisor.stopProcess", "shop:web", False) is True
    await until(lambda: state(rpc, "shop:web", "STOPPED"))
    assert await rpc.fault("supervisor.stopProcess", "shop:web") == "NOT_RUNNING: shop:web"
    assert await rpc("supervisor.startProcess", "shop:web") is True
    assert (await rpc("supervisor.getProcessInfo", "shop:web"))["statename"] == "RUNNING"


async def state(rpc: Rpc, name: str, state: str) -> bool:
    return bool((await rpc("supervisor.getProcessInfo", name))["statename"] == state)


async def test_a_stop_is_remembered_of_what_does_not_run_either(rpc: Rpc, branch: Service, house: House) -> None:
    body = {"restart": {"policy": "never"}}
    assert (await rpc.api("PUT", "/v1/apps/shop/instances/once", body)).status == 201
    house.processes.end(branch.instances.get("shop", "once").status.pid or 0, Exit(code=0))
    await until(lambda: state(rpc, "shop:once", "EXITED"))
    assert await rpc.fault("supervisor.stopProcess", "shop:once") == "NOT_RUNNING: shop:once"
    assert branch.instances.get("shop", "once").status.wanted == "down"


async def test_groups_and_all_answer_for_each_that_was_touched(rpc: Rpc) -> None:
    stopped = await rpc("supervisor.stopProcess", "shop:*")
    assert stopped == [
        {"name": name, "group": "shop", "status": Fault.SUCCESS, "description": "OK"} for name in ("db", "web")
    ]
    assert await rpc("supervisor.stopAllProcesses") == []
    assert [one["name"] for one in await rpc("supervisor.startProcessGroup", "shop")] == ["db", "web"]
    assert await rpc("supervisor.startAllProcesses", True) == []
    assert [one["name"] for one in await rpc("supervisor.stopAllProcesses")] == ["db", "web"]
    for method in ("startProcessGroup", "stopProcessGroup"):
        assert await rpc.fault(f"supervisor.{method}", "nothing") == "BAD_NAME: nothing"


async def test_signals_go_by_name_and_number(rpc: Rpc, house: House) -> None:
    pid = (await rpc("supervisor.getProcessInfo", "shop:web"))["pid"]
    for given in ("HUP", "SIGHUP", "hup", "1", 1):
        assert await rpc("supervisor.signalProcess", "shop:web", given) is True
    assert house.processes.signals == [(pid, signal.SIGHUP)] * 5
    for given in ("NOPE", "99", "", "-1"):
        assert await rpc.fault("supervisor.signalProcess", "shop:web", given) == f"BAD_SIGNAL: {given}"
    await rpc("supervisor.stopProcess", "shop:web")
    assert await rpc.fault("supervisor.signalProcess", "shop:web", "HUP") == "NOT_RUNNING: shop:web"
    assert [one["name"] for one in await rpc("supervisor.signalProcessGroup", "shop", "USR1")] == ["db"]
    assert [one["status"] for one in await rpc("supervisor.signalAllProcesses", "NOPE")] == [Fault.BAD_SIGNAL]


async def test_nothing_is_written_to_standard_inputs(rpc: Rpc) -> None:
    assert await rpc.fault("supervisor.sendProcessStdin", "shop:web", "x") == "NO_FILE: shop:web"
    await rpc("supervisor.stopProcess", "shop:web")
    assert await rpc.fault("supervisor.sendProcessStdin", "shop:web", "x") == "NOT_RUNNING: shop:web"
    assert await rpc("supervisor.sendRemoteCommEvent", "kind", "data") is True


async def test_several_calls_come_in_one_and_none_in_them(rpc: Rpc) -> None:
    calls: list[Any] = [
        {"methodName": "supervisor.getIdentification", "params": []},
        {"methodName": "supervisor.stopProcess", "params": ["shop:web"]},
        {"methodName": "supervisor.getProcessInfo", "params": ["shop:gone"]},
        {"methodName": "system.multicall", "params": [[]]},
        {"params": []},
        {"methodName": "supervisor.getPID", "params": "x"},
        "nonsense",
        {"methodName": "supervisor.nothing"},
    ]
    identification, stopped, *faults = await rpc("system.multicall", calls)
    assert (identification, stopped) == ("here", True)
    assert [one["faultCode"] for one in faults] == [10, 2, 2, 2, 2, 1]
    many = [{"methodName": "supervisor.getIdentification", "params": []}] * MOST_CALLS
    assert await rpc("system.multicall", many) == ["here"] * MOST_CALLS
    assert (await rpc.fault("system.multicall", [*many, many[0]])).startswith("INCORRECT_PARAMETERS")


async def test_a_small_request_makes_no_answer_without_end(rpc: Rpc, house: House, monkeypatch: Any) -> None:
    monkeypatch.setattr(methods, "LONGEST_ANSWER", 1000)
    write(house, b"x" * 600)
    calls = [{"methodName": "supervisor.readProcessStdoutLog", "params": ["shop:web", 0, 0]}] * 4
    *read, third, fourth = await rpc("system.multicall", calls)
    assert read == ["x" * 600] * 2
    assert third["faultCode"] == fourth["faultCode"] == Fault.FAILED


async def test_each_method_needs_its_scope(rpc: Rpc, tokens: dict[Scope, str]) -> None:
    for name, method in TABLE.items():
        for scope, token in tokens.items():
            if not scope.includes(method.scope):
                answer = await rpc.post(xmlrpc.client.dumps((), name), Authorization=f"Bearer {token}")
                assert (answer.status, answer.slug) == (403, "denied"), name
    calls = [{"methodName": "supervisor.stopAllProcesses", "params": []}]
    (refused,) = await rpc("system.multicall", calls, token=tokens[Scope.READ])
    assert refused["faultCode"] == Fault.FAILED
    assert "operate" in refused["faultString"]
    assert [one["statename"] for one in await rpc("supervisor.getAllProcessInfo")] == ["RUNNING"] * 2


async def test_shutdown_ends_the_daemon_and_from_then_on_nothing_else_is_done(rpc: Rpc, branch: Service) -> None:
    assert await rpc("supervisor.shutdown") is True
    assert branch.endings.chosen is Ending.STOP
    assert await rpc.fault("supervisor.getState") == "SHUTDOWN_STATE"
    assert await rpc.fault("supervisor.shutdown") == "SHUTDOWN_STATE"


async def test_changes_leave_a_record_and_questions_leave_none(rpc: Rpc, branch: Service) -> None:
    await rpc("supervisor.getAllProcessInfo")
    await rpc("supervisor.stopProcess", "shop:web")
    await rpc.fault("supervisor.stopProcess", "shop:gone")
    await rpc("system.multicall", [{"methodName": "supervisor.startProcess", "params": ["shop:web"]}])

    async def records() -> list[Any]:
        told = [event async for event in branch.events.subscribe(tail=100, follow=False)]
        return [one for one in told if one.type == "request" and one.data["path"] == "/RPC2"]  # type: ignore[union-attr]

    async def all_of_them() -> list[Any] | None:
        found = await records()
        return found if len(found) >= 3 else None

    found = await until(all_of_them)
    assert [(one.data["method"], one.data["status"], one.app, one.instance) for one in found] == [
        ("supervisor.stopProcess", 200, "shop", "web"),
        ("supervisor.stopProcess", 404, "shop", "gone"),
        ("supervisor.startProcess", 200, "shop", "web"),
    ]
    assert {one.data["principal"] for one in found} == {"token:admin"}


async def test_what_processes_are_to_be_is_told_in_supervisords_words(rpc: Rpc) -> None:
    body = {
        "command": ["/bin/echo", "a b"], "priority": 7, "stop": [{"signal": "INT", "patience": 3}], "directory": "/tmp",
        "logs": {"stderr": "file", "keep": 2, "rotate_at": "1MiB"}, "wanted": "down",
    }  # fmt: skip
    assert (await rpc.api("PUT", "/v1/apps/shop/instances/echo", body)).status == 201
    (echo,) = [one for one in await rpc("supervisor.getAllConfigInfo") if one["name"] == "echo"]
    assert echo == {
        "autostart": False, "command": "/bin/echo 'a b'", "directory": "/tmp", "exitcodes": [0], "group": "shop",
        "group_prio": 7, "inuse": True, "killasgroup": True, "name": "echo", "process_prio": 7,
        "redirect_stderr": False, "serverurl": "none", "startretries": 10, "startsecs": 0, "stopsignal": 2,
        "stopwaitsecs": 3, "uid": "none",
        "stdout_capture_maxbytes": 0, "stdout_events_enabled": False, "stdout_logfile": "/logs/shop/echo/stdout.log",
        "stdout_logfile_backups": 2, "stdout_logfile_maxbytes": 1 << 20, "stdout_syslog": False,
        "stderr_capture_maxbytes": 0, "stderr_events_enabled": False, "stderr_logfile": "/logs/shop/echo/stderr.log",
        "stderr_logfile_backups": 2, "stderr_logfile_maxbytes": 1 << 20, "stderr_syslog": False,
    }  # fmt: skip


async def test_what_a_file_defines_and_is_not_taken_up_is_told_with_all_that_its_app_says(
    rpc: Rpc, branch: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = COMMAND | {"logs": {"keep": 3, "stderr": "file"}, "restart": {"max_restarts": 5}}
    app = FileApp("mail", "/etc/branchd/mail.toml", spec, {"out": {"logs": {"keep": 4}}})

    async def read() -> FileDefinitions:
        return FileDefinitions({"mail": app})

    monkeypatch.setattr(branch.files, "_read", read)
    (out,) = [one for one in await rpc("supervisor.getAllConfigInfo") if one["name"] == "out"]
    assert (out["inuse"], out["stdout_logfile_backups"], out["redirect_stderr"]) == (False, 4, False)
    assert (out["stderr_logfile"], out["startretries"]) == ("/logs/mail/out/stderr.log", 5)


async def test_groups_of_the_api_are_left_to_it(rpc: Rpc) -> None:
    assert await rpc("supervisor.reloadConfig") == [[[], [], []]]
    assert await rpc.fault("supervisor.addProcessGroup", "shop") == "BAD_NAME: shop"  # no file has it
    assert (await rpc.fault("supervisor.removeProcessGroup", "shop")).startswith("FAILED")
    assert await rpc.fault("supervisor.removeProcessGroup", "nothing") == "BAD_NAME: nothing"


# Logs


def write(house: House, data: bytes) -> None:
    """As the program does."""
    with house.logs.open(Key("shop", "web"), Logs()) as (stdout, _):
        os.write(stdout, data)


async def test_logs_are_read_by_offsets_as_supervisord_reads_them(rpc: Rpc, branch: Service, house: House) -> None:
    write(house, b"0123456789")
    for method in ("readProcessStdoutLog", "readProcessLog"):
        for (offset, length), expected in {
            (0, 0): "0123456789", (3, 0): "3456789", (3, 4): "3456", (8, 10): "89", (10, 5): "", (20, 5): "",
            (-4, 0): "6789", (-40, 0): "0123456789",
        }.items():  # fmt: skip
            assert await rpc(f"supervisor.{method}", "shop:web", offset, length) == expected, (offset, length)
        for offset, length in ((-1, 1), (0, -1)):
            assert await rpc.fault(f"supervisor.{method}", "shop:web", offset, length) == "BAD_ARGUMENTS"
    assert await rpc.fault("supervisor.readProcessStderrLog", "shop:web", 0, 0) == "NO_FILE: shop:web"
    assert await rpc("supervisor.tailProcessStderrLog", "shop:web", 0, 10) == ["", 0, False]


async def test_tails_are_those_of_supervisords_arithmetic(rpc: Rpc, house: House, tmp_path: Any) -> None:
    from supervisor.options import tailFile

    content = b"0123456789"
    write(house, content)
    (tmp_path / "log").write_bytes(content)
    for offset in (0, 1, 5, 9, 10, 11, 30):
        for length in (0, 1, 5, 10, 11, 30):
            theirs = tailFile(str(tmp_path / "log"), offset, length)
            assert await rpc("supervisor.tailProcessStdoutLog", "shop:web", offset, length) == theirs, (offset, length)


async def test_a_long_log_is_read_in_parts(rpc: Rpc, house: House) -> None:
    write(house, b"x" * logs.MOST + b"end")
    assert await rpc("supervisor.readProcessStdoutLog", "shop:web", 0, 0) == "x" * logs.MOST
    assert await rpc("supervisor.readProcessStdoutLog", "shop:web", logs.MOST, 0) == "end"


async def test_logs_are_cleared_by_an_admin_alone(rpc: Rpc, house: House, tokens: dict[Scope, str]) -> None:
    write(house, b"old\n")
    for method, params in (("clearProcessLogs", ("shop:web",)), ("clearAllProcessLogs", ())):
        body = xmlrpc.client.dumps(params, f"supervisor.{method}")
        answer = await rpc.post(body, Authorization=f"Bearer {tokens[Scope.OPERATE]}")
        assert (answer.status, answer.slug) == (403, "denied")
    assert await rpc("supervisor.readProcessStdoutLog", "shop:web", 0, 0) == "old\n"
    assert await rpc("supervisor.clearProcessLogs", "shop:web") is True
    assert await rpc("supervisor.readProcessStdoutLog", "shop:web", 0, 0) == ""
    write(house, b"new\n")
    assert await rpc("supervisor.readProcessStdoutLog", "shop:web", -100, 0) == "new\n"
    assert [one["status"] for one in await rpc("supervisor.clearAllProcessLogs")] == [Fault.SUCCESS] * 2


async def test_the_daemons_own_log_is_its_last_lines(rpc: Rpc, own_log: OwnLog) -> None:
    own_log.write("one\n")
    own_log.write("two\n")
    assert await rpc("supervisor.readLog", 0, 0) == "one\ntwo\n"
    assert await rpc("supervisor.readMainLog", -4, 0) == "two\n"
    assert await rpc("supervisor.clearLog") is True
    assert await rpc("supervisor.readLog", 0, 0) == ""
    for number in range(KEPT):
        own_log.write(f"{number}\n")
    read = await rpc("supervisor.readLog", 0, 0)
    assert KEPT <= len(read) <= 2 * KEPT
    assert read.endswith(f"{KEPT - 1}\n")
