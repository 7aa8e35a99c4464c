"""Specs from JSON: every fault at once, each in its place, and nothing taken for what it is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchd.core.errors import Invalid
from branchd.core.merge import HIDDEN
from branchd.core.spec import Ready, Restart, Spec
from branchd.wire import json
from branchd.wire.spec import accept, effective, patched, shown

WRONG = {
    "kind": "x",
    "comand": ["a"],
    "concurrency": "3",
    "autoscale": {"min": 4, "max": 1, "step": 1},
    "queues": ["a", 3, "b,c"],
    "pool": "forks",
    "env": {"A": 1, "1x": "y"},
    "umask": "999",
    "weight": -4,
    "logs": {"rotate_at": 1.5, "stderr": "x"},
    "stop": [{"signal": "FOO", "patience": -1}],
    "labels": {"a b": "c"},
    "restart": {"policy": "sometimes", "max_restarts": True},
}


def faults(call, *arguments):
    with pytest.raises(Invalid) as raised:
        call(*arguments)
    return {fault.pointer: fault for fault in raised.value.faults}


def test_wrong_types_unknown_fields_and_wrong_values_are_all_told_at_once():
    found = faults(accept, WRONG, {})
    assert set(found) == {
        "/kind", "/comand", "/concurrency", "/autoscale/step", "/queues/1", "/pool", "/env/A", "/umask", "/weight",
        "/logs/rotate_at", "/logs/stderr", "/stop/0/signal", "/stop/0/patience", "/labels/a b", "/restart/policy",
        "/restart/max_restarts",
    }  # fmt: skip
    assert found["/comand"].hint == "did you mean command?"
    assert '"prefork", "threads", "solo"' in found["/pool"].hint


@pytest.mark.parametrize("name", ["int", "str", "float", "bool", "Secret", "", "~/", "0"])
def test_an_unknown_field_may_have_any_name(name):
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    assert set(faults(accept, {name: 1}, {})) == {pointer}
    assert set(faults(accept, {"env": {name or "x": 1}}, {})) == {"/env" + (pointer if name else "/x")}


@pytest.mark.parametrize("spec", [[], "x", None, 3])
def test_a_spec_is_an_object(spec):
    assert set(faults(accept, spec, {})) == {""}
    assert set(faults(patched, {}, spec)) == {""}


def test_an_instance_overrides_its_app_field_by_field_and_null_takes_the_override_away():
    app = {"application": "proj", "env": {"A": "1", "B": "2"}, "restart": {"ceiling": 5}, "queues": ["a"]}
    instance = {"env": {"B": "3"}, "restart": {"floor": 1}, "queues": ["b", "c"]}
    spec = effective(app, instance)
    assert spec.env == {"A": "1", "B": "3"}
    assert (spec.restart.ceiling, spec.restart.floor, spec.queues) == (5, 1, ("b", "c"))
    assert effective(app, patched(instance, {"queues": None, "env": {"B": None}})).queues == ("a",)


def test_what_is_missing_is_told_of_the_whole_only():
    assert accept({}, {}) == {}
    assert set(faults(effective, {}, {})) == {"/application"}
    assert set(faults(effective, {"kind": "command"}, {})) == {"/command"}


def test_a_secret_is_never_shown_and_its_mask_is_no_value():
    stored = accept({"application": "p", "broker": "amqp://u:pw@h//", "env": {"K": {"secret": "pw"}}}, {})
    assert "pw" not in str(shown(effective(stored, {})))
    assert accept({**stored, "broker": HIDDEN}, stored) == stored
    assert set(faults(accept, {"broker": HIDDEN, "env": {"K": {"secret": HIDDEN}}}, {})) == {"/broker", "/env/K"}


@pytest.mark.parametrize("argument", ["-n", "-nfoo", "--hostname=x", "--pool", "-Qa", "--detach", "-A", "--pidfile=/x"])
def test_flags_of_our_own_are_refused_with_what_to_use_instead(argument):
    assert set(faults(accept, {"arguments": ["--prefetch-multiplier=1", argument]}, {})) == {"/arguments/1"}


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent", "eventlet"])
def test_autoscale_is_for_prefork(pool):
    assert set(faults(accept, {"pool": pool, "autoscale": {"min": 1, "max": 2}}, {})) == {"/autoscale"}


@pytest.mark.parametrize(
    "text",
    [b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":"\\ud800"}', b"\xff", b"{", b"", b"[" * 100 + b"]" * 100, b"[" * 100000],
)
def test_json_that_two_readers_would_read_differently_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        json.loads(text)


def test_what_another_branch_says_is_a_value_error_too_where_it_is_nested_too_deeply():
    with pytest.raises(ValueError, match="nested too deeply"):
        json.loads_quickly(b"[" * 100_000 + b"]" * 100_000)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: (
        st.lists(x, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["min", "secret", "http", "to"]), x)
    ),
)


def known(kind):
    """Objects with its fields, and whatever in them."""
    return st.dictionaries(st.sampled_from(kind.__struct_fields__), VALUES)


@given(VALUES | known(Spec) | st.fixed_dictionaries({"restart": known(Restart), "ready": known(Ready)}))
def test_whatever_comes_is_either_a_spec_or_has_faults(value):
    found = []
    try:
        accepted = accept(value, {})
    except Invalid as invalid:
        found = list(invalid.faults)
    assert found or isinstance(accepted, dict)


@pytest.mark.parametrize(
    ("field", "value", "pointer", "words"),
    [
        ("priority", 1.5, "/priority", "1.5 is not a whole number"),
        ("priority", True, "/priority", "true is not a whole number"),
        ("absence", "x", "/absence", '"x" is not a number or "never"'),
        ("max_memory", [], "/max_memory", "[] is not a whole number or text"),
        ("umask", 27, "/umask", "27 is not text"),
        ("command", "sleep", "/command", '"sleep" is not a list'),
        ("command", ["a", 1], "/command/1", "1 is not text"),
        ("env", ["A=1"], "/env", "it is not an object"),
        ("broker", ["amqp://u:p@h"], "/broker", "it is not text"),
        ("env", {"A": {"secret": ["p"]}}, "/env/A/secret", "it is not text"),
        ("hooks", {"on_exit": "https://h/p"}, "/hooks/on_exit", "it is not an object"),
        ("directory", "x" * 9_000, "/directory", None),
        ("labels", {"a/b": 5}, "/labels/a~1b", "5 is not text"),
        ("stop", [{"signal": "TERM", "patience": "5"}], "/stop/0/patience", '"5" is not a number'),
        ("stop", [{"signal": "TERM"}], "/stop/0/patience", "this field is required"),
        ("stop", [3], "/stop/0", "3 is not an object"),
        ("logs", {"compress": 1}, "/logs/compress", "1 is not true or false"),
        ("logs", {"to": "x" * 100}, "/logs/to", f'"{"x" * 56}... is not known'),
        ("ready", {"probe": {"htp": ""}}, "/ready/probe/htp", "unknown field"),
    ],
)
def test_what_is_wrong_is_said_in_words(field, value, pointer, words):
    detail = faults(accept, {field: value}, {})[pointer].detail
    assert len(detail) < 500
    assert words in (detail, None)
