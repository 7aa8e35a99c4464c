"""Brokers' URLs: what is shown of them, what they say, and what is refused in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchd.core import brokers
from branchd.core.errors import Fatal


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
    ("url", "where"),
    [
        ("amqp://u:p@broker", ["amqp://broker:5672/%2F"]),
        ("amqp://h/", ["amqp://h:5672/%2F"]),
        ("amqp://u:p@[::1]:1234/a%2Fb", ["amqp://[::1]:1234/a%2Fb"]),
        ("amqps://u:p@broker//", ["amqps://broker:5671/%2F"]),
        ("amqp://one; amqp://u:p@two/v", ["amqp://one:5672/%2F", "amqp://two:5672/v"]),
    ],
)
def test_brokers_and_their_vhosts_are_taken_apart(url, where):
    assert [str(broker) for broker in brokers.parse(url)] == where


def test_credentials_are_unquoted_and_not_shown():
    [broker] = brokers.parse("amqp://us%40er:hu%2Fsh@broker/a")
    assert (broker.user, broker.password, broker.vhost) == ("us@er", "hu/sh", "a")
    assert "hu" not in repr(broker) + str(broker)
    [nobody] = brokers.parse("amqp://broker")
    assert (nobody.user, nobody.password, nobody.vhost) == ("guest", "guest", "/")


def test_files_of_tls_are_taken():
    [broker] = brokers.parse("amqps://broker?cacertfile=/ca.pem&certfile=/c.pem&keyfile=/k.pem")
    assert (broker.cacertfile, broker.certfile, broker.keyfile) == ("/ca.pem", "/c.pem", "/k.pem")


def test_a_folder_is_a_path():
    assert brokers.parse("filesystem:///srv/a%20folder") == brokers.Folder("/srv/a folder")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:hush@broker/0", "no transport that can broadcast"),
        ("amqp://broker;redis://:hush@broker", "URL 2 of 2 is for no transport that can broadcast"),
        ("sqs://u:hush@", "no transport that can broadcast"),
        ("u:hush@broker", "is not a URL"),
        ("", "is not a URL"),
        ("amqp://u:hush@broker;", "is not a URL"),
        ("amqp://u:hush@broker:port", "is not a URL"),
        ("amqp://u:hush@[::1", "is not a URL"),
        ("amqp://", "names no host"),
        ("amqp://u:hush@broker?heartbeat=1", "options that are not known: heartbeat"),
        ("amqp://u:hush@broker?cacertfile=/ca.pem", "options that are not known: cacertfile"),
        ("amqps://u:p@broker?hu%20sh=1", r"options that are not known: \.\.\."),
        ("filesystem://folder", "one folder"),
        ("filesystem:///", "one folder"),
        ("filesystem:///one;filesystem:///two", "one folder"),
        ("amqp://broker;filesystem:///folder", "one folder"),
    ],
)
def test_a_url_that_is_wrong_is_refused_in_words_that_hold_nothing_of_it(url, words):
    with pytest.raises(Fatal, match=words) as refused:
        brokers.parse(url)
    assert refused.value.hint
    assert "hush" not in refused.value.detail + refused.value.hint
