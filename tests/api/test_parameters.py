"""Texts of a query as values."""

from typing import Any

import pytest
from multidict import MultiDict

from branchd.api.handlers import ROUTES
from branchd.api.parameters import FLAG, Form, Parameter, Unfit, bare, duration, read, text, whole
from branchd.core.errors import Invalid


@pytest.mark.parametrize(
    ("form", "given", "value"),
    [
        (duration(3600), "30", 30.0),
        (duration(3600), "30s", 30.0),
        (duration(3600), "1.5m", 90.0),
        (duration(3600), "1h", 3600.0),
        (duration(3600), "250ms", 0.25),
        (whole(0, 10), "10", 10),
        (FLAG, "true", True),
        (FLAG, "0", False),
        (text(5), "a b*", "a b*"),
    ],
)
def test_texts_of_a_form_are_read(form: Form[Any], given: str, value: object) -> None:
    assert form.parse(given) == value


@pytest.mark.parametrize(
    ("form", "given"),
    [
        *((duration(3600), given) for given in ["", "-1", "1e3", "inf", "nan", "1 s", "61m", "1d", "٣", "9" * 400]),
        *((whole(1, 10), given) for given in ["", "0", "11", "1.0", "+1", "1_0", "٣", "²", "9" * 5000]),
        *((FLAG, given) for given in ["", "yes", "2", "TRUE"]),
        *((text(5, "[a-z]+", "letters"), given) for given in ["", "abcdef", "a1", "a\n", "A"]),
    ],
)
def test_texts_of_no_form_are_refused(form: Form[Any], given: str) -> None:
    with pytest.raises(Unfit):
        form.parse(given)


def test_repeatable_parameters_give_all_and_others_may_stand_once() -> None:
    parameters: dict[str, Parameter[Any]] = {
        "many": Parameter("many", whole(0, 9), (), "", True),
        "one": Parameter("one", whole(0, 9), 7, ""),
    }
    assert read(parameters, MultiDict()) == {"many": (), "one": 7}
    assert read(parameters, MultiDict([("many", "1"), ("one", "3"), ("many", "2")])) == {"many": (1, 2), "one": 3}
    with pytest.raises(Invalid) as caught:
        read(parameters, MultiDict([("one", "1"), ("one", "2"), ("many", "x"), ("other", "")]))
    assert [fault.pointer for fault in caught.value.faults] == ["?one", "?many", "?other"]


def test_an_empty_value_is_refused_for_every_parameter_of_every_route() -> None:
    for route in ROUTES:
        for name in route.query:
            with pytest.raises(Invalid) as caught:
                read(route.query, MultiDict({name: ""}), bare(f"{name}="))
            assert [fault.pointer for fault in caught.value.faults] == [f"?{name}"], route.path


def test_a_flag_alone_means_yes_and_nothing_else_may_stand_alone() -> None:
    parameters: dict[str, Parameter[Any]] = {
        "yes": Parameter("yes", FLAG, False, ""),
        "n": Parameter("n", text(5), "", ""),
    }
    assert read(parameters, MultiDict({"yes": ""}), bare("yes")) == {"yes": True, "n": ""}
    for query in ("n", "yes=&n=x"):
        pairs = [(part.partition("=")[0], part.partition("=")[2]) for part in query.split("&")]
        with pytest.raises(Invalid):
            read(parameters, MultiDict(pairs), bare(query))
