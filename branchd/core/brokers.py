"""URLs of a neighbourhood's broker: what makes them wrong, and how they are shown without their passwords.

One URL, or several joined by ";": ways to reach one and the same cluster. Nothing here connects.
"""

import re
from urllib.parse import SplitResult, unquote, urlsplit

from branchd.core.merge import HIDDEN

SCHEMES = ("amqp", "amqps", "filesystem")

#: where one URL ends and the next begins: a ";" that stands elsewhere is part of a password, and told of as a fault
_BETWEEN = re.compile(r";\s*(?=[a-z]+://)", re.IGNORECASE)

#: up to the last "@", for a password may hold what it should not
_PASSWORD = re.compile(r"^([a-z][a-z0-9+.-]*://[^:@/?#]*):.*@", re.IGNORECASE | re.DOTALL)

_EXAMPLE = 'such as "amqps://branchd:password@broker.example/branchd" or "filesystem:///srv/branchd/mesh"'


def split(text: str) -> tuple[str, ...]:
    return tuple(url.strip() for url in _BETWEEN.split(text))


def shown(text: str) -> str:
    """With every password hidden; also of what is no URL."""
    return ";".join(_PASSWORD.sub(rf"\1:{HIDDEN}@", url) for url in split(text))


def fault(text: str) -> tuple[str, str] | None:
    """What is wrong and what to do, neither with a word of the URL."""
    urls = split(text)
    for number, url in enumerate(urls, 1):
        which = f"URL {number} of {len(urls)} " if len(urls) > 1 else ""
        parts = _parts(url)
        if HIDDEN in url:
            return f"{which}holds {HIDDEN}, which stands for a password that is not shown", "write the password"
        if parts is None or not url.isprintable() or any(character.isspace() for character in url):
            return f"{which}is not a URL", f"{_EXAMPLE}; %3B, %40, %2F, %3A, %23 stand for ; @ / : # in a password"
        if parts.scheme not in SCHEMES:
            return f"{which}is for no transport that can broadcast here", f"one of {', '.join(SCHEMES)}; {_EXAMPLE}"
        if parts.scheme == "filesystem" and (parts.netloc or not parts.path.strip("/") or len(urls) > 1):
            return f"{which}does not name one folder", 'write "filesystem:///" and the path of the folder, alone'
        if parts.scheme != "filesystem" and not parts.hostname:
            return f"{which}names no host", _EXAMPLE
    return None


def user_and_vhost(text: str) -> tuple[str, str] | None:
    """Of the first URL, as the broker understands them; None for files."""
    parts = urlsplit(split(text)[0])
    if parts.scheme == "filesystem":
        return None
    return unquote(parts.username or "guest"), unquote(parts.path.removeprefix("/")) or "/"


def _parts(url: str) -> SplitResult | None:
    """None where it cannot be taken apart in one way only."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    ambiguous = ";" in url or "@" in parts.path + parts.query + parts.fragment or parts.netloc.count("@") > 1
    return parts if parts.scheme and "//" in url and not ambiguous else None
