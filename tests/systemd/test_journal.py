"""Output that goes to the journal itself: it is there, and goes on being there whatever happens to the daemon."""

import json

from tests.systemd.host import SystemdHost
from tests.systemd.installed import UNIT, Installed
from tests.waiting import until_sync

SCRIPT = """
echo a line; echo an error >&2; echo '<3>by its prefix'
while ! test -e /tmp/go-on; do sleep 0.05; done
echo without a daemon; exec sleep 100000
"""


def entries(host: SystemdHost, identifier: str) -> list[dict[str, str]]:
    told = host.run("journalctl", "--no-pager", "-o", "json", "-t", identifier, check=False).stdout
    return [json.loads(line) for line in told.splitlines()]


def test_lines_are_in_the_journal_under_the_instances_name_with_and_without_a_daemon(service: Installed) -> None:
    host = service.host
    worker = service.create_worker("talker", "/bin/sh", "-c", SCRIPT, logs={"to": "journal", "stderr": "file"})
    until_sync(lambda: len(entries(host, "plain:talker")) >= 3, 60, "its lines")
    assert {(entry["MESSAGE"], entry["PRIORITY"]) for entry in entries(host, "plain:talker")} == {
        ("a line", "6"), ("an error", "4"), ("by its prefix", "3"),
    }  # fmt: skip

    host.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT)
    host.run("touch", "/tmp/go-on")

    until_sync(lambda: "without a daemon" in [e["MESSAGE"] for e in entries(host, "plain:talker")], 60, "the last line")
    until_sync(service.daemon, 60, "a new daemon")
    assert until_sync(lambda: service.worker("talker"), 60, "the instance, adopted") == worker
    answer = host.run(
        "curl", "--silent", "--unix-socket", "/run/branchd/api.sock",
        "http://x/v1/apps/plain/instances/talker/logs",
    )  # fmt: skip
    refused = json.loads(answer.stdout)
    assert (refused["status"], refused["hint"]) == (409, "there: journalctl -t plain:talker")
