"""What the doctor makes of what the machine offers."""

import pytest
from msgspec.structs import replace

from branchd.core.diagnosis import Level
from branchd.core.machine import MachineFacts, ProcessFacts, machine

GOOD = MachineFacts(ProcessFacts(controllers=frozenset({"cpu", "memory", "pids", "io"})), instances=10, disk_free=0.5)


def test_a_machine_that_has_everything_is_well() -> None:
    [found] = machine(GOOD)
    assert found.level is Level.OK
    assert "cpu, memory, pids controllers" in found.detail


@pytest.mark.parametrize(
    ("facts", "check", "level", "words"),
    [
        (
            replace(GOOD, processes=ProcessFacts(cgroups=False, why_none="no cgroup v2 is mounted", cure="mount it")),
            "control groups", Level.WARNING, "no cgroup v2 is mounted",
        ),
        (replace(GOOD, processes=ProcessFacts()), "control groups", Level.OK, "no controllers"),
        (replace(GOOD, processes=ProcessFacts(joins_late=True)), "spawning", Level.WARNING, "10 ms more"),
        (replace(GOOD, processes=ProcessFacts(tells_exits=False)), "exit codes", Level.OK, "older than 6.15"),
        (replace(GOOD, processes=ProcessFacts(open_files=129)), "open files", Level.WARNING, "need 130 descriptors"),
        (replace(GOOD, disk_free=0.01), "disk", Level.WARNING, "1.0 % of the state's disk"),
        (replace(GOOD, strangers={"shop": 2}), "accounts", Level.FAILURE, "user 'shop' does not exist; 2 instances"),
        (
            replace(GOOD, unenforced={f"web:{n}": {"cpu": "it may not"} for n in range(6)}),
            "limits", Level.FAILURE, "6 instances (web:0, web:1, web:2, web:3, web:4 ...): cpu: it may not",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_cure(facts: MachineFacts, check: str, level: Level, words: str) -> None:
    [found] = [one for one in machine(facts) if one.check == check]
    assert found.level is level
    assert words in found.detail
    assert found.cure or level is Level.OK


def test_enough_is_no_fault() -> None:
    assert [one.check for one in machine(replace(GOOD, processes=ProcessFacts(open_files=130)))] == ["control groups"]
