"""supervisord's own parser, of the package supervisor, reads what we read and says the same of every process."""

import platform
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from supervisor import datatypes, options

from branchd.cli.importing.reading import Unreadable, read
from branchd.cli.importing.supervisord import Output, Process, parse
from tests.cli.importing.machines import HOST, VARIABLES
from tests.cli.importing.test_samples import DATA, SAMPLES

RESTARTS = {
    datatypes.RestartUnconditionally: "always",
    datatypes.RestartWhenExitUnexpected: "unexpected",
    False: "never",
}


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """supervisord wants the users and folders of a configuration to be there; these need not."""
    for name in list(options.os.environ):
        monkeypatch.delenv(name)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(platform, "node", lambda: HOST)
    monkeypatch.setattr(options, "name_to_uid", lambda name: name)
    for module in (options, datatypes):
        monkeypatch.setattr(module, "existing_dirpath", lambda path: path)
    monkeypatch.setattr(options, "existing_directory", lambda path: path)
    monkeypatch.setattr(options, "colon_separated_user_group", lambda text: text)
    monkeypatch.setattr(options.ServerOptions, "import_spec", lambda self, spec: spec)


def theirs(path: Path) -> dict[tuple[str, str], Any]:
    """ValueError where supervisord refuses it, or loses one of two processes of one name."""
    server = options.ServerOptions()
    server.configfile = str(path)
    server.process_config_file(do_usage=False)
    groups = server.configroot.supervisord.process_group_configs
    found = [
        ((group.name, process.name), process)
        for group in groups
        if not isinstance(group, options.EventListenerPoolConfig | options.FastCGIGroupConfig)
        for process in group.process_configs
    ]
    if len(dict(found)) < len(found):
        raise ValueError("two of one name")
    return dict(found)


def ours(path: Path) -> dict[tuple[str, str], Process]:
    parsed = parse(read(path, HOST, VARIABLES), HOST, VARIABLES)
    if parsed.faults:
        raise ValueError(parsed.faults)
    return {(process.group, process.name): process for process in parsed.processes}


def logfile(output: Output) -> Any:
    return {"AUTO": datatypes.Automatic, "NONE": None, "syslog": None}.get(output.logfile, output.logfile)


def compare(mine: Process, other: Any) -> None:
    for name in ("command", "directory", "umask", "priority", "autostart", "startsecs", "startretries", "stopwaitsecs",
                 "stopasgroup", "killasgroup", "redirect_stderr"):  # fmt: skip
        assert getattr(mine, name) == getattr(other, name), name
    assert mine.environment == other.environment
    assert list(mine.exitcodes) == other.exitcodes
    assert signal.Signals[f"SIG{mine.stopsignal}"] == other.stopsignal
    assert mine.user == other.uid
    assert mine.autorestart == RESTARTS[other.autorestart]
    for channel, output in (("stdout", mine.stdout), ("stderr", mine.stderr)):
        if channel == "stdout" or not mine.redirect_stderr:
            assert logfile(output) == getattr(other, f"{channel}_logfile")
        assert output.max_bytes == getattr(other, f"{channel}_logfile_maxbytes")
        assert output.backups == getattr(other, f"{channel}_logfile_backups")
        assert output.capture == getattr(other, f"{channel}_capture_maxbytes")
        assert output.events == getattr(other, f"{channel}_events_enabled")
        assert (output.syslog or output.logfile == "syslog") == getattr(other, f"{channel}_syslog")


@pytest.mark.parametrize("name", SAMPLES)
def test_every_process_of_the_samples_is_as_supervisord_has_it(name: str) -> None:
    path = DATA / f"{name}.conf"
    other, mine = theirs(path), ours(path)
    # fcgi programs of a group are what we report and leave
    assert mine.keys() == {key for key in other if key[1] not in {f"asgi{n}" for n in range(4)}}
    for key, process in mine.items():
        compare(process, other[key])


VALUES = {
    "command": st.sampled_from(
        [
            "/bin/cat",
            "cat %(process_num)02d",
            "a 'b ; c'",
            "x # y",
            "%(ENV_PATH)s%%",
            "%(ENV_NO)s",
            "%(here)s/x",
            "%(group_name)s %(program_name)s %(host_node_name)s",
            "a %",
            "%(ENV_A)s",
        ]
    ),
    "process_name": st.sampled_from(
        [
            "p%(process_num)d",
            "%(program_name)s",
            "a b",
            "x%(group_name)s%(process_num)03d",
            "%(process_num)s%(nothing)s",
        ]
    ),
    "numprocs": st.sampled_from(["0", "1", "3", "-1", "x", "%(ENV_SIZE)s"]),
    "numprocs_start": st.sampled_from(["0", "5", "x"]),
    "environment": st.sampled_from(
        [
            "A=1",
            'A="1,2",B=3',
            "A='x y',B=%(process_num)s",
            "A",
            "A=1,",
            'A="1',
            "A=%(ENV_PATH)s",
            "A=1 B=2",
            "A=b#c,D=e",
            'A="%(here)s"',
            "A=%%",
            ",",
            "A==b",
            "PATH=/x:%(ENV_PATH)s",
        ]
    ),
    "directory": st.sampled_from(["/x", "%(process_num)s", "~/x"]),
    "umask": st.sampled_from(["022", "9", "0o27"]),
    "priority": st.sampled_from(["1", "-5", "1.5", ""]),
    "autostart": st.sampled_from(["TRUE", "off", "maybe"]),
    "autorestart": st.sampled_from(["Unexpected", "yes", "0", "sometimes"]),
    "exitcodes": st.sampled_from(["", "0,2", "0, 3", "256", "x"]),
    "stopsignal": st.sampled_from(["TERM", "sigint", "15", "RTMIN", "NONE", "99"]),
    "stopasgroup": st.sampled_from(["true", "false"]),
    "killasgroup": st.sampled_from(["true", "false"]),
    "redirect_stderr": st.sampled_from(["true", "false"]),
    "stdout_logfile": st.sampled_from(
        ["NONE", "auto", "off", "/x/%(process_num)s.log", "/x/%%%%h", "/x/%%h", "syslog"]
    ),
    "stdout_logfile_maxbytes": st.sampled_from(["1MB", "1gb", "0", "12", "1TB", "%(ENV_SIZE)s"]),
    "stdout_logfile_backups": st.sampled_from(["0", "3", "x"]),
    "stdout_syslog": st.sampled_from(["true", "false"]),
}
SECTION = st.dictionaries(st.sampled_from(sorted(VALUES)), st.integers(0, 20), max_size=4).flatmap(
    lambda keys: st.fixed_dictionaries({key: VALUES[key] for key in keys})
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    daemon=st.sampled_from(
        ["", "environment=A=7", "environment=B='%(ENV_PATH)s'", "environment=A=%%", "environment=("]
    ),
    sections=st.lists(SECTION, min_size=1, max_size=3),
    group=st.sampled_from(["", "[group:g]\nprograms=p0\n", "[group:g]\nprograms=p0, p1\npriority=3\n", "[group:g]\n"]),
)
def test_what_supervisord_takes_is_taken_alike_and_what_it_refuses_is_refused(
    tmp_path: Path, daemon: str, sections: list[dict[str, str]], group: str
) -> None:
    text = f"[supervisord]\n{daemon}\n{group}"
    for number, section in enumerate(sections):
        body = "\n".join(f"{key} = {value}" for key, value in ({"command": "/bin/true"} | section).items())
        text += f"[program:p{number}]\n{body}\n"
    path = tmp_path / "supervisord.conf"
    path.write_text(text)
    try:
        other = theirs(path)
    except ValueError:
        with pytest.raises((ValueError, Unreadable)):
            ours(path)
        return
    mine = ours(path)
    assert mine.keys() == other.keys()
    for key, process in mine.items():
        compare(process, other[key])
