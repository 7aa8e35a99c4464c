"""Who looks after an app's replicas, and what counts as missing."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchd.core.replicas import Controllers, controller, missing, replica

_branches = st.sets(st.text("0123456789abcdef", min_size=4, max_size=4), min_size=2, max_size=12)


@given(_branches, st.text(min_size=1, max_size=8))
def test_all_agree_and_only_the_apps_of_a_branch_that_goes_get_another(branches: set[str], app: str) -> None:
    chosen = controller(app, branches)
    assert chosen == controller(app, sorted(branches, reverse=True))
    for gone in branches - {chosen}:
        assert controller(app, branches - {gone}) == chosen


def test_apps_are_shared_out_among_the_branches() -> None:
    counts = Counter(controller(f"app{number}", ["a", "b", "c", "d"]) for number in range(400))
    assert set(counts) == {"a", "b", "c", "d"}
    assert min(counts.values()) > 60


def test_controllers_are_worked_out_once_for_one_list_of_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counting(app: str, branches: Sequence[str]) -> str | None:
        asked.append(app)
        return controller(app, branches)

    monkeypatch.setattr("branchd.core.replicas.controller", counting)
    controllers = Controllers()
    for branches in (["a", "b", "c"], ["a", "b"]):
        for _ in range(3):
            for app in ("web", "shop"):
                assert controllers.of(app, list(branches)) == controller(app, branches)
    assert asked == ["web", "shop"] * 2


def test_nobody_looks_after_apps_of_an_empty_neighbourhood() -> None:
    assert controller("web", []) is None


def test_what_is_missing_keeps_the_time_since_when_and_what_came_back_forgets_it() -> None:
    wanted = [replica("web", index) for index in range(3)]
    first = missing({}, wanted, {"web-1"}, 10.0)
    assert first == {"web-0": 10.0, "web-2": 10.0}
    second = missing(first, wanted, {"web-0", "web-1"}, 40.0)
    assert second == {"web-2": 10.0}
    assert missing(second, wanted, set(), 50.0) == {"web-0": 50.0, "web-1": 50.0, "web-2": 10.0}
