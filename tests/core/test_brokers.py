"""Brokers' URLs: what is shown of them, and who they say that we are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchd.core import brokers


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1).map(lambda text: f"Zq{text}Zq"))
def test_no_password_is_shown_whatever_it_holds(password):
    assert "Zq" not in brokers.shown(f"amqp://user:{password}@host/vhost")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://u:p@h:1/v;amqps://u:p@h2", "amqp://u:<hidden>@h:1/v;amqps://u:<hidden>@h2"),
        ("amqp://u:p;q@h", "amqp://u:<hidden>@h"),
        ("AMQP://:p@h", "AMQP://:<hidden>@h"),
        ("amqp://u@h:5672//", "amqp://u@h:5672//"),
        ("amqp://h:5672/v", "amqp://h:5672/v"),
        ("filesystem:///srv/mesh", "filesystem:///srv/mesh"),
    ],
)
def test_all_but_the_passwords_is_shown(url, shown):
    assert brokers.shown(url) == shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://h", ("guest", "/")),
        ("amqp://h/", ("guest", "/")),
        ("amqp://u:p@h//", ("u", "/")),
        ("amqp://u%40x@h/%2Fv;amqp://other/w", ("u@x", "/v")),
        ("filesystem:///srv", None),
    ],
)
def test_user_and_vhost_are_those_that_the_broker_sees(url, expected):
    assert brokers.user_and_vhost(url) == expected
