"""branchctl against a real daemon: what it prints, where, and how it exits."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from branchd.api.handlers.logs import TAIL
from branchd.cli.control import main
from branchd.cli.watching import LONGEST_TAIL
from tests.running_daemon import RunningDaemon
from tests.waiting import until_sync

Control = Callable[..., Result]


@pytest.fixture
def control(daemon: RunningDaemon) -> Iterator[Control]:
    def call(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(main, ["--url", daemon.url, *arguments], input=stdin)
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
        return result

    call("app", "set", "shop", "--label", "team=pay", "--", "sleep", "1000")
    call("app", "set", "post", "--replace", "--", "sleep", "1000")
    for app, name in (("shop", "mail-1"), ("shop", "mail-2"), ("shop", "web"), ("post", "web")):
        call("create", app, name)
    yield call
    call("app", "rm", "shop", "--cascade")
    call("app", "rm", "post", "--cascade")


def names(result: Result) -> list[str]:
    return result.stdout.split()


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        (["shop:mail-1"], ["shop:mail-1"]),
        (["shop:mail-2", "shop:mail-1"], ["shop:mail-2", "shop:mail-1"]),
        (["shop:*"], ["shop:mail-1", "shop:mail-2", "shop:web"]),
        (["shop:mail-*", "web*"], ["post:web", "shop:mail-1", "shop:mail-2", "shop:web"]),
        (["here/shop:mail-?"], ["shop:mail-1", "shop:mail-2"]),
        (["mail-1"], ["shop:mail-1"]),
        (["-l", "team=pay", "web*"], ["shop:web"]),
        (["--state", "running", "post:*"], ["post:web"]),
        (["--all"], ["post:web", "shop:mail-1", "shop:mail-2", "shop:web"]),
        ([], ["post:web", "shop:mail-1", "shop:mail-2", "shop:web"]),
    ],
)
def test_selectors(control: Control, selectors: list[str], expected: list[str]) -> None:
    assert names(control("ps", "-o", "name", *selectors)) == expected


@pytest.mark.parametrize(
    ("selectors", "words"),
    [
        (["shop:mail-3"], "did you mean shop:mail-"),
        (["shop:mail-1", "nosuch:*"], "no instance matches nosuch:*"),
        (["shop"], "did you mean shop:*?"),
        (["there/shop:*"], "no instance matches"),
        (["--state", "FATAL"], "no instance matches --state FATAL"),
        (["-l", "team=none"], "no instance matches -l team=none"),
    ],
)
def test_what_matches_nothing_is_an_error(control: Control, selectors: list[str], words: str) -> None:
    result = control("ps", *selectors, code=4)
    assert words in result.stderr
    assert not result.stdout


def test_a_name_that_several_apps_have_is_told_with_the_candidates(control: Control) -> None:
    assert "one of post:web, shop:web" in control("stop", "web", code=1).stderr


def test_nothing_is_done_where_one_selector_matches_nothing(control: Control) -> None:
    control("stop", "shop:mail-1", "shop:nosuch", code=4)
    assert "RUNNING" in control("ps", "shop:mail-1").stdout


def test_lines_are_aligned_without_colour_or_tabs(control: Control) -> None:
    head, *rows = control("ps", "shop:*").stdout.splitlines()
    assert head.split() == ["NAME", "BRANCH", "STATE", "PID", "UP", "RESTARTS", "REASON"]
    assert {row.index("RUNNING") for row in rows} == {head.index("STATE")}
    assert "\x1b" not in head + "".join(rows)
    assert "\t" not in head + "".join(rows)


def test_json_is_what_the_api_says(control: Control) -> None:
    listing = json.loads(control("ps", "-o", "json").stdout)
    assert set(listing) == {"items", "next", "partial", "unreachable"}
    one = json.loads(control("show", "shop:web", "-o", "json").stdout)
    assert one["effective"]["labels"] == {"team": "pay"}
    assert [json.loads(line)["name"] for line in control("ps", "shop:*", "-o", "jsonl").stdout.splitlines()] == [
        "mail-1", "mail-2", "web",
    ]  # fmt: skip


def test_what_does_not_run_is_told_by_the_exit_code_when_it_was_named(control: Control) -> None:
    control("stop", "shop:mail-1")
    assert "STOPPED" in control("ps", "shop:mail-*", code=3).stdout
    assert "STOPPED" in control("show", "mail-1", code=3).stdout
    control("ps")
    control("start", "mail-1")
    control("ps", "shop:mail-*")


def test_many_are_acted_on_and_one_that_fails_keeps_none(control: Control) -> None:
    control("create", "shop", "broken", "--no-wait", "--", "/nonexistent/program")
    result = control("restart", "shop:*", "--timeout", "1s", code=7)
    assert [line.split(":")[1] for line in result.stdout.splitlines()] == ["mail-1", "mail-2", "web"]
    assert "1 of 4 failed: shop:broken" in result.stderr
    assert "/nonexistent/program" in result.stderr
    control("start", "shop:broken", "--timeout", "10ms", code=124)
    assert [item["name"] for item in json.loads(control("stop", "shop:*", "-o", "json").stdout)["items"]] == [
        "broken", "mail-1", "mail-2", "web",
    ]  # fmt: skip


def test_a_rolling_restart_tells_of_each_and_ends_at_the_first_that_is_not_ready(control: Control) -> None:
    def pids() -> dict[str, int]:
        found = json.loads(control("ps", "-o", "json", "*:*").stdout)["items"]
        return {f"{one['app']}:{one['name']}": one["status"]["pid"] for one in found}

    before = pids()
    told = control("restart", "--rolling", "*:web", "shop:mail-1").stdout
    for name in ("post:web", "shop:mail-1", "shop:web"):
        assert f"{name}: done, restarted, and ready" in told
    after = pids()
    assert {name for name in before if before[name] != after[name]} == {"post:web", "shop:mail-1", "shop:web"}
    control("set", "shop:mail-1", "--json", '{"ready": {"after": 60}}', "--", "false")
    told = control("restart", "--rolling", "shop:*", code=1).stdout
    assert "shop:mail-1: failed, its new process ended" in told
    assert "shop:mail-2: kept, shop:mail-1 is not ready" in told
    assert pids()["shop:mail-2"] == after["shop:mail-2"]


def test_a_stop_that_takes_too_long_is_told_apart(control: Control) -> None:
    control("create", "shop", "slow", "--", "sh", "-c", "trap '' TERM; echo set; while :; do sleep 1; done")
    until_sync(lambda: "set" in control("logs", "shop:slow").stdout)
    assert "not stopped within" in control("stop", "shop:slow", "--timeout", "50ms", code=124).stderr
    control("signal", "kill", "shop:slow")
    until_sync(lambda: "STOPPED" in control("ps", "-o", "wide", "--all").stdout)


def test_create_takes_json_a_file_flags_and_a_program(control: Control) -> None:
    spec = {
        "kind": "celery",
        "env": {"A": "1", "B": "2"},
        "weight": 3,
        "wanted": "down",
        "autoscale": {"min": 1, "max": 9},
    }
    control("create", "shop", "c", "-f", "-", "--application", "proj", "--env", "B=x=y", "--queue", "a", "--queue", "b",
            "--autoscale", "2,4", "--pool", "prefork", stdin=json.dumps(spec))  # fmt: skip
    made = json.loads(control("show", "shop:c", "-o", "json", code=3).stdout)["spec"]
    assert made["env"] == {"A": "1", "B": "x=y"}
    assert made["queues"] == ["a", "b"]
    assert (made["autoscale"], made["weight"], made["application"]) == ({"min": 2, "max": 4}, 3, "proj")
    unnamed = json.loads(control("create", "shop", "-o", "json", "--", "sh", "-c", "sleep 1000", "--", "-n").stdout)
    assert unnamed["spec"]["command"] == ["sh", "-c", "sleep 1000", "--", "-n"]
    assert unnamed["name"]


def test_every_wrong_field_is_told_with_its_hint(control: Control) -> None:
    result = control("create", "shop", "../x", "--json", '{"poool": 1, "umask": "9"}', code=1)
    assert "/poool: unknown field (did you mean pool?)" in result.stderr
    assert "/umask" in result.stderr
    assert "/name" in result.stderr


def test_app_set_changes_unsets_and_replaces(control: Control) -> None:
    control("app", "set", "shop", "--env", "A=1", "--unset", "labels")
    shown = json.loads(control("app", "show", "shop", "-o", "json").stdout)["spec"]
    assert (shown["env"], shown.get("labels"), shown["command"]) == ({"A": "1"}, None, ["sleep", "1000"])
    control("app", "set", "shop", "--replace", "--", "sleep", "1")
    assert json.loads(control("app", "show", "shop", "-o", "json").stdout)["spec"] == {
        "kind": "command", "command": ["sleep", "1"],
    }  # fmt: skip
    assert {"shop", "post"} <= set(names(control("app", "ls", "-o", "name")))
    assert "has 3 instances" in control("app", "rm", "shop", code=1).stderr


def test_a_field_that_no_spec_has_cannot_be_unset_and_unsetting_creates_no_app(control: Control) -> None:
    assert "did you mean labels?" in control("app", "set", "shop", "--unset", "label", code=2).stderr
    assert "nosuch" in control("app", "set", "nosuch", "--unset", "labels", code=4).stderr
    control("app", "show", "nosuch", code=4)


def test_instances_are_changed_and_unset(control: Control) -> None:
    before = [json.loads(control("show", f"shop:mail-{n}", "-o", "json").stdout)["status"]["pid"] for n in (1, 2)]
    told = control("set", "shop:mail-*", "--env", "A=1", "--label", "x=y", "--restart", "--", "sleep", "999").stdout
    assert [line.split(",")[0] for line in told.splitlines()] == ["shop:mail-1: changed", "shop:mail-2: changed"]
    shown = json.loads(control("show", "mail-1", "-o", "json").stdout)
    assert shown["spec"]["env"] == {"A": "1"}
    assert shown["effective"]["command"] == ["sleep", "999"]
    until_sync(
        lambda: json.loads(control("show", "mail-1", "-o", "json").stdout)["status"]["pid"] not in [*before, None]
    )
    control("set", "mail-1", "--unset", "labels", "--unset", "command", "--json", '{"weight": 2}')
    shown = json.loads(control("show", "mail-1", "-o", "json").stdout)
    assert shown["spec"] == {"kind": "command", "env": {"A": "1"}, "weight": 2}
    assert shown["effective"]["labels"] == {"team": "pay"}
    assert "/umask" in control("set", "mail-1", "--json", '{"umask": "9"}', code=1).stderr
    control("set", "nosuch", "--env", "A=1", code=4)
    assert "say what to change" in control("set", "mail-1", code=2).stderr


def test_what_an_instance_uses_is_shown(control: Control) -> None:
    head, row = control("stats", "shop:web").stdout.splitlines()
    assert head.split() == ["PID", "MEMORY", "CPU", "PROCESSES", "THREADS", "FILES"]
    assert row.split()[1].endswith("MiB")
    assert json.loads(control("stats", "shop:web", "-o", "json").stdout)["worker"] is None
    control("stats", "shop:*", code=2)


def test_what_a_worker_has_not_confirmed_is_told_as_wanted(control: Control) -> None:
    control("create", "shop", "w1", "--kind", "celery", "--application", "proj", "--queue", "a", "--wanted", "down",
            "--autoscale", "1,2")  # fmt: skip
    words = "wanted; the worker has not confirmed it"
    assert control("consumer", "add", "shop:w1", "bulk").stdout == f"shop:w1: consumer of bulk {words}\n"
    assert control("consumer", "rm", "shop:w1", "bulk").stdout == f"shop:w1: no consumer of bulk {words}\n"
    assert control("autoscale", "set", "shop:w1", "1", "3").stdout == f"shop:w1: 1 to 3 processes {words}\n"


def test_when_all_fail_it_is_not_done_in_part_and_the_last_line_is_short(control: Control) -> None:
    once = '{"restart": {"max_restarts": 0}}'
    for number in range(7):
        control("create", "shop", f"bad-{number}", "--no-wait", "--json", once, "--", "/nonexistent/program")
    result = control("start", "shop:bad-*", code=1)
    last = result.stderr.splitlines()[-1]
    assert last == "7 of 7 failed: " + ", ".join(f"shop:bad-{n}" for n in range(5)) + " and 2 more"


def test_queues_are_declared_listed_and_forgotten(control: Control) -> None:
    control("queue", "set", "shop", "mail", "--exchange", "post", "--type", "topic", "--options", '{"durable": false}')
    assert control("queue", "ls", "shop").stdout.splitlines()[1].split() == ["mail", "post", "topic", "mail"]
    control("queue", "rm", "shop", "mail")
    assert names(control("queue", "ls", "shop", "-o", "name")) == []


def test_a_worker_is_asked_for_what_only_a_worker_has(control: Control) -> None:
    for arguments in (("consumer", "ls"), ("autoscale", "show")):
        assert "not a Celery worker" in control(*arguments, "post:web", code=1).stderr
    for arguments in (("consumer", "add", "post:web", "q"), ("consumer", "rm", "post:web", "q")):
        assert "post:web is not" in control(*arguments, code=1).stderr
    control("autoscale", "set", "post:web", "1", "4", code=1)
    control("consumer", "ls", "shop:*", code=2)


def test_logs_of_several_are_told_apart_line_by_line(control: Control) -> None:
    script = "printf 'one\\n\\033[31mtwo'"
    for name in ("mail-1", "mail-2"):
        control("rm", f"shop:{name}")
        control("create", "shop", name, "--json", '{"restart": {"policy": "never"}}', "--", "sh", "-c", script)
    until_sync(lambda: "two" in control("logs", "shop:mail-2").stdout)
    assert control("logs", "shop:mail-1").stdout == "one\n\x1b[31mtwo"
    assert control("logs", "shop:mail-*").stdout.splitlines() == [
        "shop:mail-1 | one", "shop:mail-1 | \x1b[31mtwo", "shop:mail-2 | one", "shop:mail-2 | \x1b[31mtwo",
    ]  # fmt: skip
    assert control("logs", "-n", "1", "shop:mail-1").stdout == "\x1b[31mtwo"


def test_events_end_where_now_is_unless_followed(control: Control) -> None:
    control("stop", "shop:web")
    choice = ("--instance", "web", "--app", "shop", "--type", "instance.")
    shown = [json.loads(line) for line in control("events", "-o", "jsonl", *choice).stdout.splitlines()]
    assert {(event["app"], event["instance"]) for event in shown} == {("shop", "web")}
    assert shown[-1]["data"]["to"] == "STOPPED"
    assert len(control("events", "-n", "2").stdout.splitlines()) == 2
    types = {
        json.loads(line)["type"]
        for line in control("events", "--type", "app.cr", "--type", "instance.cr", "-o", "jsonl").stdout.splitlines()
    }
    assert types == {"app.created", "instance.created"}
    assert control("events", "--after", str(10**9)).stdout == ""


def test_a_token_is_printed_alone_so_that_a_script_can_take_it(control: Control, daemon: RunningDaemon) -> None:
    made = control("token", "create", "ci", "--scope", "read", "--expires-in", "1h")
    token = made.stdout.strip()
    id = made.stderr.split(":")[0]
    runner = CliRunner(env={"BRANCHD_TOKEN": token, "BRANCHD_URL": daemon.tcp})
    assert "read" in runner.invoke(main, ["whoami"]).stdout
    assert runner.invoke(main, ["stop", "--all"]).exit_code == 5
    assert id in control("token", "ls").stdout
    control("token", "revoke", id)
    assert runner.invoke(main, ["whoami"]).exit_code == 5


def test_without_a_token_it_is_told_how_to_give_one(daemon: RunningDaemon) -> None:
    result = CliRunner().invoke(main, ["--url", daemon.tcp, "ps"], env={"BRANCHD_TOKEN": ""})
    assert result.exit_code == 5
    assert "--token-file" in result.stderr


def test_the_daemon_is_found_by_its_run_folder(daemon: RunningDaemon) -> None:
    assert CliRunner().invoke(main, ["--run", str(daemon.run), "branch", "ls", "-o", "name"]).stdout == "here\n"
    assert CliRunner().invoke(main, ["whoami"], env={"BRANCHD_RUN": str(daemon.run)}).exit_code == 0


@pytest.mark.parametrize("place", [["--run", "/nonexistent"], ["--url", "http://127.0.0.1:1"], ["--url", "unix:/none"]])
def test_a_daemon_that_is_not_there_is_told_and_no_other_is_asked(place: list[str]) -> None:
    result = CliRunner().invoke(main, [*place, "ps"])
    assert result.exit_code == 6
    assert "start it with `branchd run`" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["stop"],
        ["stop", "--all", "shop:*"],
        ["ps", "a:b:c"],
        ["ps", "-l", "team"],
        ["create", "shop", "x", "--json", "[]"],
        ["create", "shop", "x", "--json", "{"],
        ["create", "shop", "x", "--autoscale", "4"],
        ["create", "shop", "x", "--"],
        ["start", "x", "--timeout", "soon"],
        ["app", "set", "x", "--replace", "--unset", "env"],
        ["app", "set", "x", "--unset", "nope"],
        ["set", "x:y"],
        ["set", "x:y", "--unset", "nope"],
        ["create", "shop", "x", "-f", "/proc/self/exe"],
        ["logs", "x:y", "-n", "10001"],
        ["events", "--after", "1", "-n", "1"],
        ["--url", "ftp://x", "ps"],
        ["--token-file", "/nonexistent", "ps"],
        ["nosuch"],
    ],
)
def test_a_wrong_call_is_told_before_anything_is_asked(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments, env={"BRANCHD_URL": "unix:/nonexistent/api.sock"})
    assert result.exit_code == 2
    assert result.stderr


@pytest.mark.parametrize("token", ["s\u00e9cret", "a\x07b", "a\nb", "\udcff"])
def test_a_token_that_no_header_can_hold_is_refused_in_words(token: str) -> None:
    result = CliRunner().invoke(main, ["whoami"], env={"BRANCHD_URL": "http://127.0.0.1:1", "BRANCHD_TOKEN": token})
    assert result.exit_code == 2
    assert "BRANCHD_TOKEN: is not a token" in result.stderr


def test_as_many_lines_of_a_log_may_be_asked_for_as_the_api_gives() -> None:
    assert TAIL.form.schema["maximum"] == LONGEST_TAIL


def test_start_up_imports_nothing_heavy() -> None:
    heavy = {"aiohttp", "structlog", "kombu", "psutil", "sqlite3"}
    code = f"import sys, branchd.cli.control; print(*{heavy!r} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert loaded.stdout.split() == []
