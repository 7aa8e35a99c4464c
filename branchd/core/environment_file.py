"""The text of an environment file: names and values as systemd's EnvironmentFile= reads them. Pure.

What differs: a line that is none, and a quote that is never closed, are errors here and passed over there. No error
shows what stands in the file.
"""

import re
from enum import Enum, auto

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

#: what a backslash takes its meaning from inside double quotes
_ESCAPED = frozenset('"\\`$')


class _State(Enum):
    BEFORE = auto()  #: a line, or a comment
    COMMENT = auto()
    NAME = auto()
    BEFORE_VALUE = auto()  #: also behind a closed quote
    VALUE = auto()
    SINGLE = auto()  #: quotes
    DOUBLE = auto()


def parse(text: str) -> dict[str, str]:
    """The last of several values of one name. ValueError, with the number of the line."""
    found: dict[str, str] = {}
    state, line, began = _State.BEFORE, 1, 1
    name, value = "", ""
    solid = 0  #: length of the value up to its last character that is not a blank at its end
    characters = iter(text + "\n")
    for one in characters:
        ended = one == "\n"
        if state is _State.BEFORE and not one.isspace():
            began, name = line, ""
            state = _State.COMMENT if one in "#;" else _State.NAME
        if state is _State.NAME:
            if ended:
                raise ValueError(f"line {began} is not NAME=VALUE")
            if one != "=":
                name += one
            elif not _NAME.fullmatch(name.strip()):
                raise ValueError(f"line {began} does not begin with a name of letters, digits and '_'")
            else:
                state, value, solid = _State.BEFORE_VALUE, "", 0
        elif state is _State.COMMENT:
            state = _State.BEFORE if ended else state
        elif state in (_State.SINGLE, _State.DOUBLE) and one == ("'" if state is _State.SINGLE else '"'):
            state, solid = _State.BEFORE_VALUE, len(value)
        elif state is _State.SINGLE:
            value += one
        elif state is _State.DOUBLE:
            if one == "\\":
                escaped = next(characters, "")
                line += escaped == "\n"
                value += "" if escaped == "\n" else escaped if escaped in _ESCAPED else one + escaped
            else:
                value += one
        elif state in (_State.BEFORE_VALUE, _State.VALUE):
            if ended:
                found[name.strip()], state = value[:solid], _State.BEFORE
            elif one == "\\":
                escaped = next(characters, "")
                line += escaped == "\n"
                value += "" if escaped == "\n" else escaped
                state, solid = _State.VALUE, len(value)
            elif state is _State.BEFORE_VALUE and one in "'\"":
                state = _State.SINGLE if one == "'" else _State.DOUBLE
            elif state is _State.VALUE or not one.isspace():
                value += one
                state, solid = _State.VALUE, len(value) if not one.isspace() else solid
        line += ended
    if state in (_State.SINGLE, _State.DOUBLE):
        raise ValueError(f"a quote of line {began} is not closed")
    if state is _State.VALUE or state is _State.BEFORE_VALUE:  # the file ends with a backslash
        found[name.strip()] = value[:solid]
    return found
