"""What of a spec its process is started with."""

from dataclasses import replace

import pytest

from branchd.core.spec import Autoscale, Kind, Logs, Spec, Stderr, Wanted, launched_with

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
    ],
)
def test_what_takes_effect_at_once_needs_no_restart(change: dict[str, object]) -> None:
    assert launched_with(replace(SPEC, **change)) == launched_with(SPEC)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"env": {}}, {"user": "nobody"}, {"logs": Logs(stderr=Stderr.FILE)}])
def test_everything_else_does(change: dict[str, object]) -> None:
    assert launched_with(replace(SPEC, **change)) != launched_with(SPEC)  # type: ignore[arg-type]
