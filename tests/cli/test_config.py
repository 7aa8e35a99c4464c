"""The daemon's configuration: which source wins, and that every fault is told at once, with its place."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields

from branchd.adapters.keys import new
from branchd.cli import config as module
from branchd.cli.config import KEYS, Auth, Branch, Config, Http, LogLevel, Mesh, load
from branchd.core.access import Scope
from branchd.core.errors import Invalid

Flags = dict[tuple[str, str], Any]


@pytest.fixture(autouse=True)
def _no_machine_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.places, "CONFIG", tmp_path / "absent.toml")


def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def faults(
    text: str, tmp_path: Path, environment: dict[str, str] | None = None, flags: Flags | None = None
) -> dict[str, str]:
    """By place, the file's name left out."""
    file = tmp_path / "branchd.toml"
    file.write_text(text)
    with pytest.raises(Invalid) as caught:
        load(file, environment or {}, flags or {})
    return {fault.pointer.replace(f"{file}: ", ""): f"{fault.detail}; {fault.hint}" for fault in caught.value.faults}


def good(text: str, tmp_path: Path, environment: dict[str, str] | None = None, flags: Flags | None = None) -> Config:
    file = tmp_path / "branchd.toml"
    file.write_text(text)
    return load(file, environment or {}, flags or {})


def test_without_anything_said_root_gets_the_folders_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    branch = load(None, {}, {}).branch
    assert (branch.state, branch.run, branch.logs) == (
        Path("/var/lib/branchd"), Path("/run/branchd"), Path("/var/log/branchd"),
    )  # fmt: skip
    assert branch.name == socket.gethostname()
    assert load(None, {}, {}).http.listen == ("127.0.0.1:8710", "unix:/run/branchd/api.sock")


def test_logs_follow_a_state_that_was_moved() -> None:
    assert load(None, {}, {("branch", "state"): "/srv/b"}).branch.logs == Path("/srv/b/logs")


def test_without_anything_said_a_user_gets_their_own_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch)
    branch = load(None, {"XDG_STATE_HOME": "/home/u/state", "XDG_RUNTIME_DIR": "/run/user/1"}, {}).branch
    assert (branch.state, branch.run, branch.logs) == (
        Path("/home/u/state/branchd"), Path("/run/user/1/branchd"), Path("/home/u/state/branchd/logs"),
    )  # fmt: skip
    assert load(None, {"XDG_STATE_HOME": "/s"}, {}).branch.run == Path("/s/branchd/run")


def test_a_flag_beats_a_variable_beats_the_file_and_conf_d_says_nothing_of_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.toml").write_text('[branch]\nname = "d10"\nslots = 10\nlogs = "/d10"')
    (tmp_path / "conf.d" / "20.toml").write_text("= 3")
    text = '[branch]\nname = "main"\nslots = 1\nstate = "/main"\nrun = "/main"\n'
    found = good(text, tmp_path, {"BRANCHD_NAME": "variable", "BRANCHD_RUN": "/variable"}, {("branch", "name"): "flag"})
    branch = found.branch
    assert (branch.name, branch.run, branch.slots, branch.logs, branch.state) == (
        "flag", Path("/variable"), 1, Path("/main/logs"), Path("/main"),
    )  # fmt: skip
    assert found.origins["branch", "name"] == "--name"
    assert found.origins["branch", "run"] == "BRANCHD_RUN"
    assert found.origins["branch", "slots"] == f"{tmp_path}/branchd.toml: [branch].slots"
    assert found.file == tmp_path / "branchd.toml"


def test_every_key_has_a_variable(tmp_path: Path) -> None:
    for name in ("cert", "key"):
        (tmp_path / name).touch()
    new(tmp_path / "mesh")
    environment = {
        "BRANCHD_NAME": "n", "BRANCHD_STATE": "/s", "BRANCHD_RUN": "/r", "BRANCHD_LOGS": "/l",
        "BRANCHD_LABELS": "zone=a, disk=ssd", "BRANCHD_SLOTS": "7", "BRANCHD_GUARD_MEMORY": "0.1",
        "BRANCHD_GUARD_LOAD": "3", "BRANCHD_GUARD_DISK": "0",
        "BRANCHD_NODE_NAME": "{app}.{name}@x", "BRANCHD_LOG_LEVEL": "debug", "BRANCHD_LISTEN": ":80,unix:/a",
        "BRANCHD_TLS_CERTIFICATE": str(tmp_path / "cert"), "BRANCHD_TLS_KEY": str(tmp_path / "key"),
        "BRANCHD_ALLOWED_HOSTS": "a.example,b.example", "BRANCHD_INSECURE": "true", "BRANCHD_BODY_LIMIT": "2MiB",
        "BRANCHD_SUPERVISOR_DOOR": "0", "BRANCHD_SOCKET_GROUP": "ops", "BRANCHD_ALLOW_USERS": "shop,mail",
        "BRANCHD_DEFAULT_USER": "shop", "BRANCHD_PEER_SCOPE": "read", "BRANCHD_BROKER": "amqp://h//",
        "BRANCHD_NEIGHBOURHOOD": "blue", "BRANCHD_KEY_FILE": str(tmp_path / "mesh"),
    }  # fmt: skip
    variables = {f"BRANCHD_{key.upper()}" for keys in KEYS.values() for key in keys}
    assert variables == {*environment, "BRANCHD_BROKER_FILE"}
    found = good("", tmp_path, environment)
    assert found.branch == Branch(
        "n",
        Path("/s"),
        Path("/r"),
        Path("/l"),
        {"zone": "a", "disk": "ssd"},
        7,
        0.1,
        3.0,
        0.0,
        "{app}.{name}@x",
        LogLevel.DEBUG,
    )
    assert found.http == Http(
        (":80", "unix:/a"), tmp_path / "cert", tmp_path / "key", ("a.example", "b.example"), True, 2 << 20, False
    )
    assert found.auth == Auth("ops", ("shop", "mail"), "shop", Scope.READ)
    assert found.mesh == Mesh("amqp://h//", "blue", tmp_path / "mesh")


@pytest.mark.parametrize(("section", "kind"), [("branch", Branch), ("http", Http), ("auth", Auth), ("mesh", Mesh)])
def test_the_keys_of_a_section_are_the_fields_of_its_value(section: str, kind: type) -> None:
    assert list(KEYS[section]) == [field.name for field in fields(kind)]


def test_every_fault_of_every_source_is_told_at_once(tmp_path: Path) -> None:
    found = faults(
        """
        [branch]
        nmae = "x"
        name = "../x"
        slots = "3"
        labels = {"a b" = "c"}
        guard_memory = 5
        guard_load = "8"
        guard_disk = -0.1
        node_name = "{app}@{host}"
        state = 1979-05-27
        [http]
        listen = ["0.0.0.0:80", "nope", "unix:relative"]
        tls_key = "nokey.pem"
        body_limit = 3
        allowed_hosts = ["a b"]
        [auth]
        allow_users = ["shop", "a b"]
        default_user = "mail"
        peer_scope = "god"
        [mseh]
        """,
        tmp_path,
        {"BRANCHD_INSECURE": "maybe", "BRANCHD_KEY_FILE": "/nonexistent/key"},
        {("mesh", "neighbourhood"): "a/b", ("branch", "log_level"): "loud"},
    )
    assert set(found) == {
        "[branch].nmae", "[branch].name", "[branch].slots", "[branch].labels[a b]",
        "[branch].guard_memory", "[branch].guard_load", "[branch].guard_disk",
        "[branch].node_name", "[branch].state", "[http].listen[0]", "[http].listen[1]",
        "[http].tls_key", "[http].body_limit", "[http].allowed_hosts[0]", "[auth].allow_users[1]",
        "[auth].default_user", "[auth].peer_scope", "[mseh]", "BRANCHD_INSECURE", "BRANCHD_KEY_FILE", "--neighbourhood",
        "--log-level",
    }  # fmt: skip
    assert "did you mean name?" in found["[branch].nmae"]
    assert "did you mean mesh?" in found["[mseh]"]
    assert "no TLS" in found["[http].listen[0]"]
    assert "cannot be read" in found["[http].tls_key"]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('[mesh]\nbroker = "amqp://h"', "[mesh].broker", "branchd key new FILE"),
        ("[mesh]\nbroker = 3", "[mesh].broker", "is not text"),
        ("[branch]\nguard_load = nan", "[branch].guard_load", ""),
        ("branch = 3", "branch", "is a section"),
        ("[http]\nlisten = []", "[http].listen", "no address"),
        (f'[http]\nlisten = ["unix:/{"x" * 120}"]', "[http].listen[0]", "107 bytes"),
        ('[branch]\nstate = "/etc/passwd"', "[branch].state", "not a folder"),
    ],
)
def test_what_cannot_be_is_refused_in_words(text: str, place: str, words: str, tmp_path: Path) -> None:
    found = faults(text, tmp_path)
    assert list(found) == [place]
    assert words in found[place]


def test_tls_or_a_deliberate_word_opens_other_addresses(tmp_path: Path) -> None:
    (tmp_path / "pem").touch()
    pair = 'tls_certificate = "pem"\ntls_key = "pem"'  # below the file's own folder
    assert good(f'[http]\nlisten = ["0.0.0.0:80"]\n{pair}', tmp_path).http.tls_key == tmp_path / "pem"
    assert good('[http]\nlisten = ["0.0.0.0:80"]\ninsecure = true', tmp_path).http.insecure
    assert good('[http]\nlisten = ["[::1]:80", "localhost:80", "127.9.9.9:0"]', tmp_path).http.insecure is False


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        load(tmp_path / "none.toml", {}, {})
    assert [fault.pointer for fault in caught.value.faults] == [f"{tmp_path}/none.toml"]


def test_the_packaged_configuration_holds() -> None:
    file = Path(__file__).parents[2] / "deploy" / "branchd.toml"
    found = load(file, {}, {})
    assert found.auth.default_user == "branchd"
    assert found.auth.allow_users == ("branchd",)


def test_the_packaged_configuration_names_every_key(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "deploy" / "branchd.toml").read_text()
    for keys in KEYS.values():
        for key in keys:
            assert f"\n{key} = " in text or f"\n#{key} = " in text, key


def test_the_documentation_names_every_key_and_variable() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for keys in KEYS.values():
        for key in keys:
            assert f"| `{key}` | `BRANCHD_{key.upper()}` |" in text


@pytest.mark.parametrize(
    ("broker", "words"),
    [
        ("amqp://h", ""),
        ("amqps://u:p%40%3B@h:5671/v?cacertfile=/ca.pem", ""),
        ("amqp://a//;amqp://b//", ""),
        ("filesystem:///srv/mesh", ""),
        ("redis://h", "no transport"),
        ("h:5672", "not a URL"),
        ("amqp://h:port", "not a URL"),
        ("amqp://a b", "not a URL"),
        ("amqp://u:a@b@h", "not a URL"),
        ("amqp://u:a;b@h", "not a URL"),
        ("amqp://", "no host"),
        ("amqp://a;nonsense://b", "URL 2 of 2"),
        ("amqp://u:<hidden>@h", "write the password"),
        ("filesystem://", "one folder"),
        ("filesystem://srv/mesh", "one folder"),
        ("filesystem:///a;amqp://h", "one folder"),
    ],
)
def test_a_broker_is_named_by_urls_that_can_broadcast(broker: str, words: str, tmp_path: Path) -> None:
    new(tmp_path / "key")
    text = f'[mesh]\nbroker = "{broker}"\nkey_file = "key"'
    if not words:
        assert good(text, tmp_path).mesh.broker == broker
    else:
        assert words in faults(text, tmp_path)["[mesh].broker"]


def test_the_broker_comes_from_a_file_of_its_own_and_is_never_told(tmp_path: Path) -> None:
    new(tmp_path / "key")
    (tmp_path / "broker").write_text("amqp://u:s3cret@h\n")
    found = good('[mesh]\nbroker_file = "broker"\nkey_file = "key"', tmp_path)
    assert found.mesh.broker == "amqp://u:s3cret@h"
    assert "s3cret" not in repr(found)
    assert good('[mesh]\nkey_file = "key"', tmp_path, {"BRANCHD_BROKER_FILE": str(tmp_path / "broker")}).mesh.broker


@pytest.mark.parametrize(
    ("text", "content", "words"),
    [
        ('broker_file = "absent"', b"", "cannot be read"),
        ('broker_file = "broker"', b"\xff", "is not text"),
        ('broker_file = "broker"\nbroker = "amqp://h"', b"amqp://u:s3cret@h", "stands beside broker"),
        ('broker_file = "broker"', b"s3cret:5672", "not a URL"),
        ("broker_file = 3", b"", ""),
    ],
)
def test_a_broker_file_that_cannot_be_used_is_told_without_its_content(
    text: str, content: bytes, words: str, tmp_path: Path
) -> None:
    new(tmp_path / "key")
    (tmp_path / "broker").write_bytes(content)
    (place, told), *more = faults(f'[mesh]\nkey_file = "key"\n{text}', tmp_path).items()
    assert (place, more) == ("[mesh].broker_file", [])
    assert words in told
    assert "s3cret" not in told


def test_secrets_are_looked_up_among_the_service_managers_credentials_first(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    new(credentials / "key")
    (credentials / "broker").write_text("amqp://of-credentials")
    (tmp_path / "broker").write_text("amqp://of-file")
    text = '[mesh]\nbroker_file = "broker"\nkey_file = "key"'
    found = good(text, tmp_path, {"CREDENTIALS_DIRECTORY": str(credentials)}).mesh
    assert (found.broker, found.key_file) == ("amqp://of-credentials", credentials / "key")
    (credentials / "broker").unlink()
    assert good(text, tmp_path, {"CREDENTIALS_DIRECTORY": str(credentials)}).mesh.broker == "amqp://of-file"
    absolute = text.replace('"broker"', f'"{tmp_path}/broker"')
    assert good(absolute, tmp_path, {"CREDENTIALS_DIRECTORY": str(credentials)}).mesh.broker == "amqp://of-file"


def test_a_key_file_that_cannot_be_used_is_told_with_the_cure(tmp_path: Path) -> None:
    new(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    assert "chmod 600" in faults('[mesh]\nkey_file = "key"', tmp_path)["[mesh].key_file"]


def test_a_configuration_in_words_has_no_password() -> None:
    assert "word" not in repr(Mesh("amqp://u:word@h"))


def test_without_a_file_named_it_is_the_units_or_the_accounts_own_or_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("unit", "own/branchd", "machine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "branchd.toml").write_text(f"[branch]\nname = '{name[:3]}'\n")
    monkeypatch.setattr(module.places, "CONFIG", tmp_path / "machine/branchd.toml")
    own, unit = {"XDG_CONFIG_HOME": str(tmp_path / "own")}, {"CONFIGURATION_DIRECTORY": str(tmp_path / "unit")}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load(None, own, {}).branch.name == "mac"
    as_user(monkeypatch)
    assert load(None, own, {}).branch.name == "own"
    assert load(None, {"XDG_CONFIG_HOME": str(tmp_path / "none")}, {}).branch.name == "mac"
    assert load(None, own | unit, {}).branch.name == "uni"
    several = {"CONFIGURATION_DIRECTORY": f"{tmp_path / 'none'}:{tmp_path / 'unit'}"}
    assert load(None, own | several, {}).branch.name == "uni"
