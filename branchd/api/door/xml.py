"""XML-RPC as text: a call read, strictly and within bounds; a result or a fault written so that every parser takes it.

The reader refuses document types, and with them every entity of the sender's making.
"""

import base64
import binascii
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from xml.parsers import expat  # its entities are refused below, before one is expanded

from msgspec import Struct, field

from branchd.api.problems import BrokenXml
from branchd.core.value import Value

#: levels of elements; a call of a call of arrays of structs has 16
DEEPEST = 32

#: elements of a request; a multicall of 64 calls with 3 parameters has 1,300
MOST_ELEMENTS = 10_000

#: what a 32-bit <int> holds; beyond it goes <i8>, which Python's client and Apache's know
_LEAST, _MOST = -(1 << 31), (1 << 31) - 1

_INSTEAD = "\N{REPLACEMENT CHARACTER}"

#: lone halves of pairs, which UTF-8 has no way to write
_SURROGATES = re.compile("[\ud800-\udfff]")

#: what is written otherwise, in this order, and what XML 1.0 has no way to write; one str.replace each is many times
#: faster than one expression for all, and the loop waits for it
_REPLACED = (
    *(("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\r", "&#13;")),
    *((chr(code), _INSTEAD) for code in range(0x20) if chr(code) not in "\t\n\r"),
    *(("\ufffe", _INSTEAD), ("\uffff", _INSTEAD)),
)

#: most of what is written needs no look at each character
_PLAIN = re.compile(r"[\w .,:;/()@=+-]*", re.ASCII)


class MethodCall(Value):
    method: str
    params: tuple[Any, ...]


class _Element(Struct):
    tag: str
    text: list[str] = field(default_factory=list)
    children: list["_Element"] = field(default_factory=list)

    @property
    def words(self) -> str:
        return "".join(self.text)


def loads(body: bytes) -> MethodCall:
    """BrokenXml says what is wrong."""
    root = _parse(body)
    if root.tag != "methodCall" or not 1 <= len(root.children) <= 2:
        raise BrokenXml("it is no methodCall")
    name = _only(root.children[:1], "methodName").words.strip()
    if not name:
        raise BrokenXml("it names no method")
    params = _only(root.children[1:], "params").children if root.children[1:] else []
    return MethodCall(name, tuple(_value(_only(_only([param], "param").children, "value")) for param in params))


def _parse(body: bytes) -> _Element:
    top = _Element("")
    open_elements = [top]
    elements = 0

    def start(tag: str, _attributes: dict[str, str]) -> None:
        nonlocal elements
        elements += 1
        if elements > MOST_ELEMENTS or len(open_elements) > DEEPEST:
            raise BrokenXml(f"it has more than {MOST_ELEMENTS} elements, or {DEEPEST} levels of them")
        element = _Element(tag)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def text(characters: str) -> None:
        open_elements[-1].text.append(characters)

    def refuse(*_declaration: object) -> None:
        raise BrokenXml("it declares a document type", "leave it out: XML-RPC has none")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _tag: open_elements.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the others: encodings that are none
        raise BrokenXml(str(error)) from error
    return top.children[0]


def _only(elements: list[_Element], tag: str) -> _Element:
    if len(elements) != 1 or elements[0].tag != tag:
        raise BrokenXml(f"one <{tag}> is missing, or something else stands there")
    return elements[0]


def _value(element: _Element) -> Any:
    if not element.children:
        return element.words
    if len(element.children) > 1:
        raise BrokenXml("a <value> has one type")
    typed = element.children[0]
    match typed.tag:
        case "array":
            return [_value(_only([item], "value")) for item in _only(typed.children, "data").children]
        case "struct":
            return dict(_member(_only([member], "member")) for member in typed.children)
        case tag if tag in _SCALARS and not typed.children:
            try:
                return _SCALARS[tag](typed.words)
            except (ValueError, KeyError, binascii.Error) as error:
                raise BrokenXml(f"{typed.words[:40]!r} is no {tag}") from error
        case tag:
            raise BrokenXml(f"<{tag[:40]}> is no type of XML-RPC")


def _member(element: _Element) -> tuple[str, Any]:
    if len(element.children) != 2:
        raise BrokenXml("a <member> has a name and a value")
    name, value = element.children
    return _only([name], "name").words, _value(_only([value], "value"))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "int": int,
    "i4": int,
    "i8": int,
    "double": float,
    "boolean": lambda text: {"1": True, "0": False}[text.strip()],
    "base64": lambda text: base64.b64decode(text).decode(errors="replace"),
    "dateTime.iso8601": lambda text: datetime.strptime(text.strip(), "%Y%m%dT%H:%M:%S"),  # noqa: DTZ007  # it has none
    "nil": lambda _text: None,
}


class Written(Value):
    """A value that is text already, so that who collects many of them knows how much it is."""

    text: str


def result(value: Any) -> bytes:
    return _document(f"<params>\n<param>\n{written(value).text}</param>\n</params>\n")


def fault(code: int, text: str) -> bytes:
    return _document(f"<fault>\n{written({'faultCode': code, 'faultString': text}).text}</fault>\n")


def _document(content: str) -> bytes:
    return f"<?xml version='1.0'?>\n<methodResponse>\n{content}</methodResponse>\n".encode()


def written(value: Any) -> Written:
    parts: list[str] = []
    _write(value, parts.append)
    return Written("".join(parts))


def _write(value: Any, add: Callable[[str], None]) -> None:
    match value:
        case str():
            add(f"<value><string>{_escaped(value)}</string></value>\n")
        case bool():
            add(f"<value><boolean>{value:d}</boolean></value>\n")
        case int():
            tag = "int" if _LEAST <= value <= _MOST else "i8"
            add(f"<value><{tag}>{value:d}</{tag}></value>\n")
        case float():
            add(f"<value><double>{value!r}</double></value>\n")
        case dict():
            add("<value><struct>\n")
            for name, one in value.items():
                add(f"<member>\n<name>{_escaped(name)}</name>\n")
                _write(one, add)
                add("</member>\n")
            add("</struct></value>\n")
        case list() | tuple():
            add("<value><array><data>\n")
            for one in value:
                _write(one, add)
            add("</data></array></value>\n")
        case Written(text):
            add(text)
        case _:
            raise TypeError(f"XML-RPC cannot say {type(value).__name__}")


def _escaped(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    for character, written_as in _REPLACED:
        text = text.replace(character, written_as)
    return text if text.isascii() else _SURROGATES.sub(_INSTEAD, text)
