"""The units that ship: what systemd says of them, that `branchd systemd-unit` prints them, and the single-user one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from branchd.cli import daemon, units
from branchd.cli.units import Profile
from tests.systemd.host import REPOSITORY, SystemdHost
from tests.systemd.installed import PROGRAMS, SOCKET_UNIT, UNIT, Installed, add_accounts
from tests.systemd.installed import units as shipped
from tests.waiting import until_sync

DEPLOY = REPOSITORY / "deploy"

FILES = {Profile.SYSTEM: "branchd", Profile.SINGLE_USER: "branchd-single-user", Profile.USER: "branchd-user"}


@pytest.mark.parametrize("profile", Profile)
def test_the_files_of_deploy_are_what_is_printed(profile: Profile) -> None:
    account = "branchd" if profile is Profile.SINGLE_USER else None
    name = FILES[profile]
    assert (DEPLOY / f"{name}.service").read_text() == units.service(profile, units.Commands(), account)
    assert (DEPLOY / f"{name}.socket").read_text() == units.api_socket(profile, account)


def test_the_command_prints_a_unit_for_this_installation() -> None:
    asked = ["systemd-unit", "--profile", "single-user", "--user", "shop", "--config", "/srv/shop.toml"]
    printed = CliRunner().invoke(daemon.main, asked).output
    assert f"ExecStart={PROGRAMS}/branchd run --config /srv/shop.toml\n" in printed
    assert "User=shop\nGroup=shop\n" in printed
    assert "SocketUser=shop" in CliRunner().invoke(daemon.main, [*asked, "--socket"]).output


def test_a_package_has_its_scripts_elsewhere_than_its_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("branchd", "branchctl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(sys, "executable", "/usr/lib/branchd/bin/python3")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "branchd"), "systemd-unit"])
    printed = CliRunner().invoke(daemon.main, ["systemd-unit"]).output
    assert f"ExecStart={tmp_path}/branchd run\n" in printed
    assert f"ExecReload={tmp_path}/branchctl reload --wait\n" in printed


def test_a_reload_finds_the_daemon_of_another_configuration(tmp_path: Path) -> None:
    config = tmp_path / "shop.toml"
    config.write_text('[branch]\nrun = "/run/shop"\n')
    asked = ["systemd-unit", "--config", str(config)]
    assert f"ExecReload={PROGRAMS}/branchctl --run /run/shop reload --wait\n" in (
        CliRunner().invoke(daemon.main, asked).stdout
    )
    config.write_text("")
    assert f"ExecReload={PROGRAMS}/branchctl reload --wait\n" in CliRunner().invoke(daemon.main, asked).stdout
    config.unlink()
    assert "print the unit again" in CliRunner().invoke(daemon.main, asked).stderr


@pytest.mark.parametrize(("name", "most"), [("branchd", 6.8), ("branchd-single-user", 2.3)])
def test_a_unit_exposes_no_more_than_it_must(name: str, most: float) -> None:
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", DEPLOY / f"{name}.service"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= most


@pytest.mark.parametrize("profile", ["", "-single-user"])
def test_systemd_finds_nothing_to_complain_about(host: SystemdHost, profile: str) -> None:
    host.boot(shipped(profile=profile))
    for unit in (UNIT, SOCKET_UNIT):
        verified = host.run("systemd-analyze", "verify", "--man=no", unit)
        assert verified.stdout + verified.stderr == ""


def test_the_single_user_profile_runs_all_as_one_account_and_survives_as_the_other_does(host: SystemdHost) -> None:
    host.boot(shipped(profile="-single-user"))
    add_accounts(host)
    for place in (sys.prefix, sys.base_prefix, str(REPOSITORY)):  # for another user than root
        for parent in Path(place).parents:
            host.run("chmod", "a+x", parent, check=False)  # what is mounted read-only is as it is
    host.start(UNIT)
    installed = Installed(host)
    worker, daemon = installed.create_worker(), installed.daemon()
    for pid in (worker, daemon):
        assert host.run("stat", "--format=%U", f"/proc/{pid}").stdout == "branchd\n"
    started = installed.started_at()
    host.run("systemctl", "reload", UNIT)
    assert (installed.daemon(), installed.worker()) == (daemon, worker)
    assert installed.started_at() != started
    host.run("systemctl", "restart", UNIT)
    assert until_sync(installed.worker, 60) == worker
    host.run("systemctl", "stop", UNIT)
    assert installed.program(worker) == ""


def test_the_module_is_run_where_there_is_no_script(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.symlink_to(sys.executable)
    done = subprocess.run(
        [bare, "-c", "import sys; sys.path[:0] = [sys.argv[1], *sys.argv[2:]]; sys.argv[1:] = ['systemd-unit'];"
         "from branchd.cli.daemon import main; main()", REPOSITORY, *sys.path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"ExecStart={bare} -m branchd.cli.daemon run\n" in done.stdout
