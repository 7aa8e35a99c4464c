"""XML-RPC as text, against Python's own client; and what must not get past the reader."""

import re
import xmlrpc.client
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchd.api.door import xml
from branchd.api.door.faults import Fault
from branchd.api.problems import BrokenXml

CALL = b"<methodCall><methodName>x</methodName><params>%b</params></methodCall>"
PARAM = CALL % b"<param><value>%b</value></param>"

#: what a client may send; the numbers are those of a 32-bit <int>
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
SCALARS = st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)


@given(st.lists(VALUES, max_size=4).map(tuple))
def test_a_call_is_read_as_pythons_client_writes_it(params: tuple[Any, ...]) -> None:
    read = xml.loads(xmlrpc.client.dumps(params, "supervisor.any").encode())
    assert (read.method, read.params) == ("supervisor.any", params)


@given(VALUES)
def test_a_result_is_read_by_pythons_client_as_it_was(value: Any) -> None:
    assert xmlrpc.client.loads(xml.result(value)) == ((value,), None)


def test_the_other_types_are_read() -> None:
    params = (xmlrpc.client.Binary(b"\xc3\xa4\xff"), xmlrpc.client.DateTime("20261122T10:00:00"), None)
    read = xml.loads(xmlrpc.client.dumps(params, "x", allow_none=True).encode())
    assert read.params == ("ä\ufffd", datetime(2026, 11, 22, 10), None)  # noqa: DTZ001  # XML-RPC's have no zone
    assert xml.loads(PARAM % b"web") == xml.MethodCall("x", ("web",))
    assert xml.loads(b"<methodCall><methodName>x</methodName></methodCall>").params == ()


def test_a_fault_is_one_for_pythons_client() -> None:
    with pytest.raises(xmlrpc.client.Fault) as caught:
        xmlrpc.client.loads(xml.fault(10, "BAD_NAME: <x>"))
    assert (caught.value.faultCode, caught.value.faultString) == (10, "BAD_NAME: <x>")


def test_what_xml_cannot_say_is_replaced_and_carriage_returns_stay() -> None:
    (read,), _ = xmlrpc.client.loads(xml.result("\x1b[31mred\x00 \ud800\r\n\tend"))
    assert read == "\ufffd[31mred\ufffd \ufffd\r\n\tend"
    everything = "".join(map(chr, [*range(0x2100), *range(0xD7F0, 0xE010), *range(0xFF00, 0x10010)]))
    (read,), _ = xmlrpc.client.loads(xml.result(everything))
    said = r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    assert read == re.sub(said, "\ufffd", everything)


def test_numbers_beyond_32_bits_are_told_whole() -> None:
    assert xmlrpc.client.loads(xml.result([2**31 - 1, 2**31, -(2**31) - 1]))[0] == ([2**31 - 1, 2**31, -(2**31) - 1],)
    assert b"<i8>2147483648</i8>" in xml.result(2**31)
    assert b"<int>10</int>" in xml.result(Fault.BAD_NAME)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"GET / HTTP/1.1",
        b"<methodResponse/>",
        b"<methodCall/>",
        b"<methodCall><methodName> </methodName></methodCall>",
        b"<methodCall><methodName>x</methodName><params/><params/></methodCall>",
        b"<methodCall><methodName>x</methodName><extra/></methodCall>",
        CALL % b"<param/>",
        CALL % b"<value>x</value>",
        PARAM % b"<int>1</int><int>2</int>",
        PARAM % b"<int>one</int>",
        PARAM % (b"<int>" + b"9" * 10_000 + b"</int>"),
        PARAM % b"<boolean>yes</boolean>",
        PARAM % b"<base64>YQ</base64>",
        PARAM % b"<dateTime.iso8601>today</dateTime.iso8601>",
        PARAM % b"<python>os.system</python>",
        PARAM % b"<array><value>1</value></array>",
        PARAM % b"<struct><member><name>a</name></member></struct>",
        b"<?xml version='1.0' encoding='klingon'?>" + PARAM % b"x",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + PARAM % b"&b;",
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd">' + PARAM % b"x",
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + PARAM % b"&e;",
        PARAM % b"&undefined;",
        PARAM % (b"<array><data><value>" * 100 + b"</value></data></array>" * 100),
        PARAM % (b"<array><data>" + b"<value>1</value>" * 10_000 + b"</data></array>"),
    ],
)
def test_what_is_no_call_or_too_much_of_one_is_refused(body: bytes) -> None:
    with pytest.raises(BrokenXml) as caught:
        xml.loads(body)
    assert len(caught.value.detail) < 200


@given(st.binary(max_size=200) | st.text(alphabet="<>/&;!?ab methodCal'\"").map(str.encode))
def test_no_bytes_do_anything_else_to_the_reader(body: bytes) -> None:
    with suppress(BrokenXml):
        xml.loads(body)
