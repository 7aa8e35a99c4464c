"""What of a spec its process is started with, and what is wrong with where it is to be placed."""

import pytest
from msgspec.structs import replace
from rich.pretty import pretty_repr

from branchd.core.errors import Invalid
from branchd.core.merge import HIDDEN
from branchd.core.spec import Autoscale, Hook, Hooks, Kind, Logs, Probe, Secret, Spec, Stderr, Wanted, launched_with
from branchd.core.spec_faults import faults
from branchd.wire.spec import effective

SPEC = Spec(kind=Kind.COMMAND, command=("serve",), env={"A": "1"})


def test_a_field_that_is_as_by_default_is_left_out_so_that_a_later_version_may_have_more() -> None:
    assert launched_with(SPEC) == {"kind": Kind.COMMAND, "command": ("serve",), "env": {"A": "1"}}


@pytest.mark.parametrize(
    "change",
    [
        {"wanted": Wanted.DOWN},
        {"queues": ("one",)},
        {"autoscale": Autoscale(1, 2)},
        {"labels": {"team": "pay"}},
        {"logs": Logs(rotate_at=65536, keep=1)},
        {"weight": 3},
        {"constraints": {"zone": "b"}},
        {"spread": "zone"},
        {"replicas": 3},
        {"absence": "never"},
    ],
)
def test_what_takes_effect_at_once_needs_no_restart(change: dict[str, object]) -> None:
    assert launched_with(replace(SPEC, **change)) == launched_with(SPEC)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"env": {}}, {"user": "nobody"}, {"logs": Logs(stderr=Stderr.FILE)}])
def test_everything_else_does(change: dict[str, object]) -> None:
    assert launched_with(replace(SPEC, **change)) != launched_with(SPEC)  # type: ignore[arg-type]


def test_what_is_wrong_with_the_placement_is_told_at_once() -> None:
    wrong = replace(SPEC, weight=-1, constraints={"a/b": "1", "zone": "\n"}, spread="", replicas=1001, absence=-1.0)
    assert [fault.pointer for fault in faults(wrong)] == [
        *("/weight", "/constraints/a~1b", "/constraints/zone", "/spread", "/replicas", "/absence")
    ]


def test_a_probe_has_no_password_and_no_fault_tells_the_one_of_a_url():
    spec = Spec(Kind.COMMAND, ("serve",), alive=Probe(http="http://a:s3cret@127.0.0.1/"),
                hooks=Hooks(Hook(url="ftp://chat.example/s3cret"), Hook(url=HIDDEN)))  # fmt: skip
    found = {fault.pointer: fault.detail for fault in faults(spec)}
    assert found.keys() == {"/alive/http", "/hooks/on_exit/url", "/hooks/on_fatal/url"}
    assert "s3cret" not in str(found)
    assert "not stored here" in found["/hooks/on_fatal/url"]


@pytest.mark.parametrize("replicas", [0, 1000, None])
def test_an_app_may_have_replicas(replicas: int | None) -> None:
    assert faults(replace(SPEC, constraints={"zone": "b"}, spread="zone", replicas=replicas)) == []


def test_an_instance_has_no_replicas_of_its_own_but_its_app_may() -> None:
    program = {"kind": "command", "command": ["serve"]}
    assert effective({**program, "replicas": 3, "absence": "never"}, {}).command == ("serve",)
    with pytest.raises(Invalid) as invalid:
        effective(program, {"replicas": 3, "absence": 5})
    assert [fault.pointer for fault in invalid.value.faults] == ["/replicas", "/absence"]


@pytest.mark.parametrize(("given", "absence"), [({}, 60.0), ({"absence": 5}, 5.0), ({"absence": "never"}, "never")])
def test_how_long_a_replica_is_missed_is_a_time_or_never(given: dict[str, object], absence: object) -> None:
    assert effective({"kind": "command", "command": ["serve"], **given}, {}).absence == absence


@pytest.mark.parametrize("wrong", ["always", True, -1, 2592001])
def test_it_is_nothing_else(wrong: object) -> None:
    with pytest.raises(Invalid) as invalid:
        effective({"kind": "command", "command": ["serve"], "absence": wrong}, {})
    assert [fault.pointer for fault in invalid.value.faults] == ["/absence"]


def test_a_secret_is_not_told_to_whoever_looks_at_it() -> None:
    spec = Spec(env={"A": Secret("hunter2")})
    assert "hunter2" not in repr(spec)
    assert "hunter2" not in pretty_repr(spec)
