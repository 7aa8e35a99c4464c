"""RFC 7396 by the examples of its own appendix, and the hiding of secrets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchd.core.merge import HIDDEN, hide, merge, reveal, tells_secret

json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_the_rfcs_examples(target, patch, merged):
    assert merge(target, patch) == merged


@given(json, json)
def test_patching_twice_is_patching_once(target, patch):
    once = merge(target, patch)
    assert merge(once, patch) == once


def test_secrets_are_hidden_and_what_was_read_can_be_written_back():
    stored = {"broker": "amqp://u:p@h//", "env": {"A": "1", "KEY": {"secret": "x"}}, "pool": "solo"}
    shown = hide(stored)
    assert shown == {"broker": HIDDEN, "env": {"A": "1", "KEY": {"secret": HIDDEN}}, "pool": "solo"}
    assert reveal(shown, stored) == stored
    assert reveal({**shown, "env": {"NEW": {"secret": HIDDEN}}}, stored)["env"] == {"NEW": {"secret": HIDDEN}}


def test_the_url_of_a_hook_is_a_secret_and_its_command_is_none():
    stored = {"hooks": {"on_exit": {"url": "https://chat.example/s3cret"}, "on_fatal": {"command": ["mail"]}}}
    shown = hide(stored)
    assert shown == {"hooks": {"on_exit": {"url": HIDDEN}, "on_fatal": {"command": ["mail"]}}}
    assert stored["hooks"]["on_exit"] == {"url": "https://chat.example/s3cret"}
    assert reveal(shown, stored) == stored
    moved = {"hooks": {"on_fatal": {"url": HIDDEN}}}
    assert reveal(moved, stored) == moved
    assert hide({"hooks": {"on_exit": None}}) == {"hooks": {"on_exit": None}}
    for strange in ({"hooks": 1}, {"hooks": {"on_exit": 1}}):
        assert hide(strange) == reveal(strange, stored) == strange


@pytest.mark.parametrize(
    ("pointer", "secret"),
    [("/env", True), ("/env/A", True), ("/broker", True), ("/hooks/on_exit/url", True), ("/hooks/on_exit", True),
     ("/hooks", True), ("/hooks/on_exit/command/0", False), ("/env_file", False), ("/ready/probe/http", False),
     ("", False)],
)  # fmt: skip
def test_where_a_fault_would_tell_a_secret(pointer, secret):
    assert tells_secret(pointer) is secret
