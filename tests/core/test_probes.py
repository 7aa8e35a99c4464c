"""What the answers to probes come to, by rows."""

import pytest

from branchd.core.probes import (
    FIRST_PAUSE,
    STARTING_PERIOD,
    Late,
    Now,
    Row,
    Seen,
    Wait,
    asked,
    missing,
    pause,
    readiness,
)
from branchd.core.spec import Probe, Ready

PROBE = Probe(http="http://127.0.0.1:8000/health", failures=3)
REFUSED = Row().then("connection refused")
PASSED = Row().then(None)


def test_failures_count_in_a_row_and_one_success_ends_the_row():
    row = Row()
    for failures in range(1, 5):
        row = row.then("answered 500")
        assert (row.failed, row.fails(PROBE)) == (failures, failures >= 3)
    assert row.words(PROBE) == "GET http://127.0.0.1:8000/health: answered 500 (4 times in a row)"
    row = row.then(None)
    assert (row.failed, row.fails(PROBE), row.succeeded, row.why) == (0, False, True, "")
    assert row.then("x").succeeded


@pytest.mark.parametrize(
    ("ready", "seen", "verdict"),
    [
        (Ready(), Seen(0, True, "", Row()), Now()),
        (Ready(), Seen(99, False, "", Row()), Wait(None)),
        (Ready(after=5), Seen(1, True, "", Row()), Wait(4)),
        (Ready(after=5), Seen(5, True, "", Row()), Now()),
        (Ready(after=5, within=9), Seen(1, False, "", Row()), Wait(4)),
        (Ready(after=5, within=9), Seen(6, False, "", Row()), Wait(3)),
        (Ready(within=9), Seen(9, True, "", Row()), Now()),
        (Ready(within=9), Seen(9, False, "no broker", Row()), Late("not ready within 9 s: no broker")),
        (Ready(within=9), Seen(9, False, "", Row()), Late("not ready within 9 s: it has not said that it is")),
        (Ready(probe=PROBE), Seen(99, True, "", REFUSED), Wait(None)),
        (Ready(probe=PROBE), Seen(0, True, "", PASSED), Now()),
        (Ready(probe=PROBE), Seen(0, False, "", PASSED), Wait(None)),
        (Ready(probe=PROBE, after=2), Seen(1, True, "", PASSED), Wait(1)),
        (
            Ready(probe=PROBE, within=3),
            Seen(3.5, True, "", REFUSED),
            Late("not ready within 3 s: GET http://127.0.0.1:8000/health: connection refused"),
        ),
        (
            Ready(probe=PROBE, within=3),
            Seen(3, True, "", Row()),
            Late("not ready within 3 s: GET http://127.0.0.1:8000/health: not answered yet"),
        ),
        (Ready(probe=PROBE, within=3), Seen(9, True, "", REFUSED, waits=True), Wait(None)),
        (Ready(probe=PROBE, after=10, within=3), Seen(9, True, "", Row(), waits=True), Wait(1)),
        (Ready(probe=PROBE, within=3), Seen(9, True, "", REFUSED, waited=7), Wait(1)),
        (
            Ready(probe=PROBE, within=3),
            Seen(10, True, "", REFUSED, waited=7),
            Late("not ready within 3 s: GET http://127.0.0.1:8000/health: connection refused"),
        ),
    ],
)
def test_it_is_ready_when_its_kind_its_age_and_its_probe_say_so_and_late_after_its_time(ready, seen, verdict):
    assert readiness(ready, seen) == verdict


def test_what_is_missing_is_told_also_while_there_is_time():
    assert missing(Ready(after=5), Seen(1, True, "", Row())) == "it has lived for less than 5 s"
    assert missing(Ready(probe=PROBE, after=5), Seen(9, True, "", REFUSED)).endswith("connection refused")


def test_one_that_starts_is_asked_at_once_and_often():
    row, pauses = Row(), []
    for _ in range(8):
        pauses.append(pause(PROBE, row, 0.9, ready=False))
        row = row.then("no")
    assert pauses[:3] == [0.0, FIRST_PAUSE, 2 * FIRST_PAUSE]
    assert pauses[-1] == STARTING_PERIOD
    assert pause(Probe(tcp=":1", period=0.2), row, 0.9, ready=False) == 0.2


def test_one_that_is_ready_is_asked_once_a_period_for_the_first_time_somewhere_in_it():
    assert pause(PROBE, Row(), 0.25, ready=True) == 2.5
    assert pause(PROBE, PASSED, 0.25, ready=True) == 10


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (Probe(http="https://me:secret@host:1/a/b?token=secret"), "GET https://host:1/a/b"),
        (Probe(http="http://host"), "GET http://host"),
        (Probe(tcp=":5432"), "connect to :5432"),
        (Probe(exec=("/bin/check", "secret")), "run /bin/check"),
    ],
)
def test_the_question_is_told_without_what_may_be_secret(probe, words):
    assert asked(probe) == words
