"""Files, sections, [include]; and that nothing but a clear error comes of what is no configuration."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from branchd.cli.importing import report, toml
from branchd.cli.importing.assembling import of_supervisord
from branchd.cli.importing.celery_lines import of_celery_multi
from branchd.cli.importing.celery_sources import lines
from branchd.cli.importing.notes import Imported, Verdict
from branchd.cli.importing.reading import Unreadable, read
from tests.cli.importing.machines import HOST, FakeMachine


def imported(path: Path, text: str, keep_commands: bool = False, **variables: str) -> Imported:
    path.write_text(text)
    return of_supervisord(path, HOST, variables, FakeMachine(), keep_commands)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path / "supervisord.conf"


def told(found: Imported, title: str, verdict: Verdict) -> list[str]:
    return [", ".join(note.keys) + ": " + note.text for entry in found.entries if entry.title == title
            for note in entry.notes if note.verdict is verdict]  # fmt: skip


def test_included_files_are_read_in_the_order_of_their_names_and_know_their_folder(conf: Path) -> None:
    folder = conf.parent / "d"
    folder.mkdir()
    (folder / "b.ini").write_text("[program:b]\ncommand = %(here)s/b\n[program:a]\ncommand = again")
    (folder / "a.ini").write_text("[program:a]\ncommand = first\n")
    conf.write_text("[include]\nfiles = %(ENV_D)s/*.ini\n  none.ini\n[program:c]\ncommand = %(here)s/c")
    found = read(conf, HOST, {"D": "d"})
    assert {title: section["command"] for title, section in found.sections.items() if "command" in section} == {
        "program:a": "again", "program:b": f"{folder}/b", "program:c": f"{conf.parent}/c",
    }  # fmt: skip
    assert found.files["program:a"] == str(folder / "a.ini")
    assert [note.text for note in found.notes] == ["no file matches none.ini"]


def test_an_included_file_that_includes_is_told_once(conf: Path) -> None:
    (conf.parent / "a.ini").write_text("[include]\nfiles = c.ini")
    (conf.parent / "b.ini").write_text("[program:b]\ncommand = x")
    (conf.parent / "c.ini").write_text("[program:c]\ncommand = x")
    conf.write_text("[include]\nfiles = a.ini b.ini")
    found = read(conf, HOST, {})
    assert [note.text for note in found.notes] == [
        f"{conf.parent}/a.ini includes files itself, which supervisord ignores"
    ]
    assert found.sections["include"]["files"] == "a.ini b.ini"
    assert "program:c" not in found.sections


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_an_included_pipe_or_device_is_refused_not_waited_for(conf: Path, make: Callable[[Path], None]) -> None:
    make(conf.parent / "a.ini")
    conf.write_text("[include]\nfiles = *.ini")
    with pytest.raises(Unreadable, match=r"a\.ini is not a regular file"):
        read(conf, HOST, {})


def test_an_included_file_that_cannot_be_read_is_an_error(conf: Path) -> None:
    (conf.parent / "a.ini").write_text("no section")
    conf.write_text("[include]\nfiles = a.ini")
    with pytest.raises(Unreadable, match=r"a\.ini is not a supervisord configuration"):
        read(conf, HOST, {})


@pytest.mark.parametrize("text", ["command = x", "[program:x]\n  odd\n = 1", "[program:x\ncommand"])
def test_what_is_no_configuration_is_refused(conf: Path, text: str) -> None:
    conf.write_text(text)
    with pytest.raises(Unreadable):
        read(conf, HOST, {})


def test_a_missing_file_is_named(conf: Path) -> None:
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        read(conf, HOST, {})


def test_a_variable_that_is_not_set_is_an_error_that_names_it(conf: Path) -> None:
    text = "[program:x]\ncommand = run %(ENV_PORT)s"
    found = imported(conf, text)
    assert told(found, "[program:x]", Verdict.INVALID) == [
        "command: %(ENV_PORT)s: the variable PORT is not set; give it with --env PORT=VALUE"
    ]
    assert not found.apps
    assert imported(conf, text, PORT="80").apps["x"]["instances"]["x"]["command"] == ["run", "80"]


def test_every_fault_of_a_section_is_told_at_once(conf: Path) -> None:
    found = imported(conf, "[program:x]\nnumprocs = a\npriority = b\nautostart = c\nstopsignal = d\nexitcodes = 300")
    assert [one.partition(":")[0] for one in told(found, "[program:x]", Verdict.INVALID)] == [
        "numprocs", "priority", "autostart", "exitcodes", "stopsignal", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("[program:a b]\ncommand = x", "[program:a b]", "supervisord refuses in a name"),
        ("[program:_x]\ncommand = x", "[program:_x]", "is not a valid name here"),
        ("[group:g]\nprograms = a", "[group:g]", r"there is no \[program:a\]"),
        ("[program:a]\nnumprocs = 2\ncommand = x", "[program:a]", r"needs %\(process_num\)s"),
        (
            "[program:a]\nnumprocs = 2\nprocess_name = a%(process_num)s%(group_name)s:\ncommand = x",
            "[program:a]",
            "':'",
        ),
        (
            "[program:a]\nnumprocs = 999999\nprocess_name = %(process_num)s\ncommand = x",
            "[program:a]",
            "more than 10000",
        ),
        ("[program:a]\ncommand = bash -c 'x ; y'", "[program:a]", "no closing quotation"),
        ("[program:a]\ncommand = x\nenvironment = A=%(nothing)s", "[program:a]", "means nothing there"),
        ("[program:a]\ncommand = %(process_num)99999d", "[program:a]", "a thousand characters"),
        (f"[program:a]\ncommand = {'x' * 70_000}", "[program:a]", "65536 at most"),
        ("[program:a]\ncommand = x\nenvironment = BRANCHD_X=1", "[program:a]", "branchd's own"),
        ("[program:a]\nstopasgroup = 1\nkillasgroup = 0\ncommand = x", "[program:a]", "refuses stopasgroup"),
        (
            "[program:a]\ncommand=x\n[program:b]\ncommand=x\nprocess_name=a\n[group:a]\nprograms=a,b",
            "[program:b]",
            "twice",
        ),
    ],
)
def test_what_cannot_be_imported_is_told_by_section(conf: Path, text: str, where: str, what: str) -> None:
    import re

    found = imported(conf, text)
    assert any(re.search(what, one) for one in told(found, where, Verdict.INVALID)), found.entries
    assert where.partition(":")[2].rstrip("]") not in found.apps


def test_names_are_supervisords(conf: Path) -> None:
    found = imported(
        conf,
        "[program:alone]\ncommand=x\n[program:many]\ncommand=x\nnumprocs=2\nprocess_name=%(program_name)s_%(process_num)02d\n"
        "[program:a]\ncommand=x\n[program:b]\ncommand=x\nnumprocs=2\nnumprocs_start=7\nprocess_name=b%(process_num)d\n"
        "[group:web]\nprograms=a, b",
    )
    names = {f"{app}:{name}" for app, spec in found.apps.items() for name in spec["instances"]}
    assert names == {"alone:alone", "many:many_00", "many:many_01", "web:a", "web:b7", "web:b8"}


def test_what_all_of_a_group_say_stands_in_its_app(conf: Path) -> None:
    found = imported(conf, "[program:a]\ncommand=x\nuser=u\n[program:b]\ncommand=y\nuser=u\n[group:g]\nprograms=a,b")
    app = found.apps["g"]
    assert app["user"] == "u"
    assert app["instances"]["a"] == {"command": ["x"], "wanted": "up"}


def test_passwords_are_in_no_report(conf: Path) -> None:
    found = imported(
        conf,
        "[unix_http_server]\nfile=/x\nusername=u\npassword=hunter2\n[inet_http_server]\nport=9001\nusername=u\n"
        "password=hunter2\n[supervisorctl]\npassword=hunter2\n"
        "[program:x]\ncommand=/v/bin/celery -A p -b amqp://u:hunter2@h worker\nenvironment=DB_PASSWORD=hunter2\n",
    )
    assert found.apps["x"]["instances"]["x"]["broker"] == "amqp://u:hunter2@h"
    assert "hunter2" not in "\n".join(report.lines(found)) + str(report.document(found))


@pytest.mark.parametrize("priorities", [(5, 1, 3), (1, 2, 3), (999, 999, 1)])
def test_one_number_keeps_supervisords_order(conf: Path, priorities: tuple[int, int, int]) -> None:
    group, inner, alone = priorities
    found = imported(
        conf,
        f"[program:a]\ncommand=x\npriority={inner}\n[program:b]\ncommand=x\npriority={inner + 1}\n"
        f"[group:g]\nprograms=a,b\npriority={group}\n[program:c]\ncommand=x\npriority={alone}",
    )
    numbers = {
        name: {**app, **spec}.get("priority", 999)
        for app in found.apps.values()
        for name, spec in app["instances"].items()
    }
    places = {"a": (group, inner), "b": (group, inner + 1), "c": (alone, alone)}
    assert sorted(numbers, key=lambda name: (numbers[name], name)) == sorted(
        places, key=lambda name: (places[name], name)
    )


@pytest.mark.parametrize(
    ("group", "inner", "alone", "expected"),
    [(1, 5, 9, [5, 6, 9]), (20, 999, 999, [10, 20, 30]), (3, -2, -9, [20, 30, 10])],
)
def test_numbers_stay_where_they_can(conf: Path, group: int, inner: int, alone: int, expected: list[int]) -> None:
    found = imported(
        conf,
        f"[program:a]\ncommand=x\npriority={inner}\n[program:b]\ncommand=x\npriority={inner + 1}\n"
        f"[group:g]\nprograms=a,b\npriority={group}\n[program:c]\ncommand=x\npriority={alone}",
    )
    specs = {name: {**app, **spec} for app in found.apps.values() for name, spec in app["instances"].items()}
    assert [specs[name].get("priority", 999) for name in "abc"] == expected


WORDS = st.sampled_from(
    [
        "[program:x]",
        "[group:g]",
        "[include]",
        "[supervisord]",
        "[eventlistener:e]",
        "[DEFAULT]",
        "[unix_http_server]",
        "command=",
        "command = celery -A p worker -c",
        "numprocs=2",
        "process_name=%(process_num)",
        "files=",
        "environment=A=",
        "programs=x",
        "\n",
        "\n",
        "\n",
        " ",
        "'",
        '"',
        "%",
        "%(",
        "%(ENV_X)s",
        "%(here)s",
        ";",
        "#",
        "=",
        ":",
        "\x00",
        "é",
        "\\",
        "user=1",
        "stdout_logfile=",
        "stopwaitsecs=-1",
        "startsecs=1e9",
        "umask=9999",
        "priority=" + "9" * 30,
        "startretries=-3",
        "directory=\x7f",
        "sh -c",
        "/bin/sh",
        "env",
        "python -m celery multi start",
    ]
)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.lists(WORDS, max_size=25).map("".join), st.text(max_size=60)))
@example("[program:x]\ncommand\n[program:x]\n more")
def test_whatever_a_file_holds_only_clear_errors_come_of_it(conf: Path, text: str) -> None:
    conf.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        found = of_supervisord(conf, HOST, {}, FakeMachine(), keep_commands=False)
    except Unreadable:
        return
    assert list(report.lines(found))
    assert report.document(found)
    assert list(toml.lines(found.apps)) or not found.apps
    assert found.incomplete or all(found.apps.values()) or not found.apps


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                "celery",
                "multi",
                "start",
                "3",
                "a",
                "b@h",
                "-A",
                "p",
                "-c:1-2",
                "-Q:9",
                "-c",
                "x",
                "--",
                "-",
                "--x=",
                "--pool=solo",
                "'",
                "0",
                "-n",
                "",
                "-c:0",
                "stop",
                "-TERM",
                "expand",
                "worker",
                "--suffix=",
                "-c:1:2",
                "99999999999999999999",
            ]
        ),
        max_size=12,
    ).map(" ".join)
)
def test_whatever_a_line_of_celery_multi_holds_only_clear_errors_come_of_it(text: str) -> None:
    try:
        found = of_celery_multi(lines(text, {}), None, FakeMachine())
    except Unreadable:
        return
    assert list(report.lines(found))


def test_a_fifo_is_not_waited_for(conf: Path) -> None:
    from branchd.cli.importing.machine import ThisMachine

    os.mkfifo(conf.parent / "pipe")
    assert ThisMachine().script(str(conf.parent / "pipe")) is None
