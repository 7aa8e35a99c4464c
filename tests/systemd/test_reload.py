"""Taking up new code and configuration under a real systemd: nobody is refused, nothing that runs is touched."""

import pytest

from tests.systemd.installed import SOCKET, TCP, UNIT, Installed
from tests.waiting import until_sync

#: requests a second
RATE = 300


def test_a_reload_under_load_refuses_nobody_and_touches_no_worker(service: Installed) -> None:
    workers = [service.create_worker(f"w{number}") for number in range(3)]
    ending = service.create_ending("seven", 7)
    daemon, started = service.daemon(), service.started_at()

    with service.load(RATE, SOCKET, TCP) as load:
        service.host.run("systemctl", "reload", UNIT)
        once = service.started_at()
        service.host.run("systemctl", "reload", UNIT)

    assert load.failures == {}
    assert load.answered > RATE
    assert len({started, once, service.started_at()}) == 3
    assert (service.daemon(), service.restarts()) == (daemon, 0)
    assert [service.worker(f"w{number}") for number in range(3)] == workers
    assert service.worker("seven") == ending
    assert service.end("seven")["code"] == 7


def test_a_hangup_is_a_reload_that_systemd_hears_of(service: Installed) -> None:
    worker, daemon, started = service.create_worker(), service.daemon(), service.started_at()
    service.host.run("kill", "-HUP", str(daemon))
    until_sync(lambda: service.started_at() != started, 60, "another start of the code")
    until_sync(lambda: service.daemon() == daemon, 60, "systemd to hold it for ready")
    assert service.worker() == worker


def test_a_reload_takes_up_a_new_version(service: Installed) -> None:
    worker, daemon = service.create_worker(), service.daemon()
    service.install_version("99.0")
    service.host.run("systemctl", "reload", UNIT)
    assert service.api("GET", "/v1/branches")["items"][0]["version"] == "99.0"
    assert (service.worker(), service.daemon()) == (worker, daemon)


@pytest.mark.parametrize("broken", ["configuration", "version"])
def test_a_reload_to_what_does_not_start_is_refused_and_the_old_goes_on(service: Installed, broken: str) -> None:
    worker, daemon, started = service.create_worker(), service.daemon(), service.started_at()
    if broken == "configuration":
        service.configure('[branch]\nslots = "many"\n')
        words = "slots"
    else:
        service.install("raise RuntimeError('a version that does not start')\n")
        words = "a version that does not start"

    # The command of ExecReload= is the broken version's too; this one is told by the daemon.
    service.host.run("kill", "-HUP", str(daemon))
    until_sync(lambda: words in service.host.journal(UNIT), 60, "the reason in the journal")
    assert "not reloaded" in service.host.property(UNIT, "StatusText")
    refused = service.host.run("systemctl", "reload", UNIT, check=False)
    assert refused.returncode != 0
    assert (service.daemon(), service.started_at(), service.worker()) == (daemon, started, worker)

    service.configure("")
    service.uninstall()
    service.host.run("systemctl", "reload", UNIT)
    assert service.started_at() != started
    assert "not reloaded" not in service.host.property(UNIT, "StatusText")
    assert (service.daemon(), service.worker()) == (daemon, worker)


def test_after_a_restart_into_a_version_that_does_not_start_the_next_good_one_adopts(service: Installed) -> None:
    worker, ending = service.create_worker(), service.create_ending("seven", 7)
    daemon = service.daemon()
    # what ExecStop= runs is broken as well: a package upgrades while the old daemon runs
    service.install("raise RuntimeError('a version that does not start')\n")
    service.host.run("kill", "-KILL", str(daemon))
    until_sync(lambda: service.restarts() >= 2, 60, "failed starts")
    assert (service.program(worker), service.program(ending)[:7]) == ("/usr/bin/sleep 100000", "/bin/sh")

    service.uninstall()
    until_sync(lambda: service.daemon() not in {0, daemon}, 60, "a good daemon")
    assert (until_sync(service.worker, 60), until_sync(lambda: service.worker("seven"), 60)) == (worker, ending)
    assert service.end("seven")["code"] == (7 if service.tells_exits() else None)
