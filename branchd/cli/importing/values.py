"""The values of a supervisord configuration as it reads them: yes and no, sizes, lists, environments, `%(...)s`.

Each raises ValueError with what is wrong. The differential test compares them with the supervisor package's own.
"""

import re
import shlex
import signal
from collections.abc import Mapping

_TRUE = ("yes", "true", "on", "1")
_FALSE = ("no", "false", "off", "0")
_UNITS = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}

#: characters of a value: what splits it into words takes a time that grows with the square of them
LONGEST = 64 << 10

#: a field width that is only good for filling the memory
_WIDE = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(?:\d{4,}|\d*\.\d{4,})")


def boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not a whole number") from None


def size(text: str) -> int:
    """Bytes."""
    number, unit = (text[:-2], text[-2:].lower()) if text[-2:].lower() in _UNITS else (text, "")
    try:
        return int(number) * _UNITS.get(unit, 1)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not a size such as 50MB") from None


def octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not an octal number") from None


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()


def exit_codes(text: str) -> tuple[int, ...]:
    codes = tuple(whole(one) for one in text.split(",")) if text else ()
    for code in codes:
        if not 0 <= code <= 255:
            raise ValueError(f"{code} is not an exit code, 0 to 255")
    return codes


def signal_name(text: str) -> str:
    """Without SIG."""
    for known in signal.Signals:
        if text.strip().upper() in {known.name, known.name.removeprefix("SIG"), str(known.value)}:
            return known.name.removeprefix("SIG")
    raise ValueError(f"{text[:80]!r} is not a signal")


def restarting(text: str) -> str:
    """always, never or unexpected."""
    if text.lower() == "unexpected":
        return "unexpected"
    try:
        return "always" if boolean(text) else "never"
    except ValueError:
        raise ValueError(f"{text[:80]!r} is none of true, false and unexpected") from None


def process_name(text: str) -> str:
    name = text.strip()
    for character in " :/":
        if character in name:
            raise ValueError(f"{name[:80]!r} has a {character!r}, which supervisord refuses in a name")
    return name


def environment(text: str) -> dict[str, str]:
    """KEY="value",KEY2=value2, in the words of a shell lexer that is not quite POSIX."""
    lexer = shlex.shlex(text)
    lexer.wordchars += "/.+-():"
    try:
        words = list(lexer)
    except ValueError as error:
        raise ValueError(f'is not KEY="value",KEY="value": {str(error).lower()}') from None
    found = {}
    for at in range(0, len(words), 4):
        match words[at : at + 3]:
            case [key, "=", value]:
                found[key] = value.strip("'\"")
            case _:
                raise ValueError('is not KEY="value",KEY="value"; quote values that are not plain words')
    return found


def expand(text: str, values: Mapping[str, object]) -> str:
    """`%(name)s` and its kin. A value that is not there is never guessed."""
    if _WIDE.search(text):
        raise ValueError("has a field of a thousand characters or more")
    try:
        expanded = text % values
    except KeyError as error:
        name = str(error.args[0])
        if name.startswith("ENV_"):
            variable = name.removeprefix("ENV_")
            raise ValueError(
                f"%({name})s: the variable {variable} is not set; give it with --env {variable}=VALUE"
            ) from None
        raise ValueError(f"%({name})s means nothing there") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"is badly formatted: {error}; a percent sign is written %%") from None
    if len(expanded) > LONGEST:
        raise ValueError(f"has {len(expanded)} characters, and {LONGEST} at most are read")
    return expanded
