"""What doctor says of the facts of a branch: each check, and that everything bad comes with what to do."""

import pytest
from msgspec.structs import replace

from branchd.core.diagnosis import (
    DROPPED,
    Diagnosis,
    Failures,
    Level,
    MeshFacts,
    mesh,
    refused,
    root_without_default_user,
)
from branchd.wire.sealing import Reason

GOOD = MeshFacts(
    connected=True, where="amqp://b@broker/b", user="b", vhost="b", cluster="rabbit@a", first_cluster="rabbit@a",
    clock_offset=-0.4,
)  # fmt: skip


FAILED = Failures("names").one_more(KeyError("x"))


def one(check: str, **facts: object) -> Diagnosis:
    [found] = [item for item in mesh(replace(GOOD, **facts)) if item.check == check]
    return found


def test_a_branch_that_is_well_has_no_complaint() -> None:
    assert {item.check: item.level for item in mesh(GOOD)} == {"broker": Level.OK, "clock": Level.OK}


@pytest.mark.parametrize(
    ("facts", "check", "level", "words"),
    [
        ({"connected": False, "why": "nobody listens there"}, "broker", Level.FAILURE, "nobody listens there"),
        ({"connected": False}, "broker", Level.FAILURE, "connecting"),
        ({"twin": True}, "identity", Level.FAILURE, "branchd run --new-id"),
        ({"definite": False, "user": "", "vhost": "", "cluster": ""}, "transport", Level.WARNING, "RabbitMQ"),
        ({"cluster": "rabbit@b"}, "cluster", Level.FAILURE, "one cluster"),
        ({"user": "guest"}, "broker access", Level.WARNING, "'guest'"),
        ({"vhost": "/"}, "broker access", Level.WARNING, "vhost '/'"),
        ({"guarding": "9 vanished", "missing": ("a", "b")}, "mass guard", Level.WARNING, "9 vanished: nothing"),
        ({"guarding": "9 vanished", "missing": ("a", "b")}, "mass guard", Level.WARNING, "2: a, b"),
        ({"guarding": "9 vanished", "guarding_for": 59.7}, "mass guard", Level.WARNING, "within 60 s"),
        ({"missing": ("a",)}, "branches", Level.WARNING, "1 missing: a"),
        ({"clock_offset": 600.0}, "clock", Level.FAILURE, "600 s ahead"),
        ({"clock_offset": -60.1}, "clock", Level.FAILURE, "60 s behind"),
        ({"clock_offset": None}, "clock", Level.OK, "no other branch"),
        ({"dropped": {"unknown key": 3}}, "messages", Level.FAILURE, "key ids"),
        ({"dropped": {"forged": 3}}, "messages", Level.FAILURE, "3 dropped"),
        ({"dropped": {"something new": 1}}, "messages", Level.WARNING, "something new"),
        ({"failures": (Failures("gossip"), FAILED)}, "background", Level.WARNING, "names failed 1 times"),
        ({"failures": (Failures("gossip"), FAILED)}, "background", Level.WARNING, "KeyError: 'x'"),
    ],
)
def test_each_check(facts: dict[str, object], check: str, level: Level, words: str) -> None:
    found = one(check, **facts)
    assert found.level is level
    assert words in f"{found.detail} {found.cure}"


def test_a_minute_is_within_the_limit_of_clocks() -> None:
    assert one("clock", clock_offset=60.0).level is Level.OK


def test_everything_bad_comes_with_what_to_do() -> None:
    assert all(cure for level, _, cure in DROPPED.values() if level is not Level.OK)
    worst = MeshFacts(
        connected=False, where="h", definite=False, user="guest", vhost="/", cluster="a", first_cluster="b", twin=True,
        guarding="they vanished", guarding_for=5.0, missing=("x",), clock_offset=99.0,
        dropped=dict.fromkeys(DROPPED, 1), failures=(FAILED,),
    )  # fmt: skip
    assert all(item.cure for item in mesh(worst) if item.level is not Level.OK)


def test_every_reason_to_refuse_a_message_has_its_words() -> None:
    ours = {"oversized", "late", "too many", "impostor", "invalid", "from the future", "not readable"}
    assert {*Reason, *ours} == set(DROPPED)


def test_a_reason_is_told_as_a_word() -> None:
    assert one("messages", dropped={Reason.FORGED: 3}).detail.startswith("3 dropped as 'forged': ")


def test_instances_that_would_run_as_root_are_warned_of() -> None:
    assert root_without_default_user(True, None, False).level is Level.WARNING
    for facts in ((True, "shop", False), (True, None, True), (False, None, False)):
        assert root_without_default_user(*facts).level is Level.OK


def test_a_refused_start_says_what_the_daemon_said() -> None:
    found = refused("2030-01-01T00:00:00Z", "a wrong key", ("copy it again", "or make one"))
    assert found.level is Level.FAILURE
    assert "a wrong key" in found.detail
    assert found.cure == "copy it again; or make one"
