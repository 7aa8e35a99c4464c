"""URLs of a neighbourhood's broker: what they say, what makes them wrong, and how they are shown without passwords.

One URL, or several joined by ";": ways to reach one and the same cluster. Nothing here connects.
"""

import re
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from branchd.core.errors import Fatal
from branchd.core.merge import HIDDEN
from branchd.core.value import Value

PORTS = {"amqp": 5672, "amqps": 5671}
SCHEMES = (*PORTS, "filesystem")

#: of an amqps URL, as RabbitMQ's own clients name them
TLS_FILES = ("cacertfile", "certfile", "keyfile")

#: where one URL ends and the next begins: a ";" that stands elsewhere is part of a password, and told of as a fault
_BETWEEN = re.compile(r";\s*(?=[a-z]+://)", re.IGNORECASE)

#: up to the last "@", for a password may hold what it should not
_PASSWORD = re.compile(r"^([a-z][a-z0-9+.-]*://[^:@/?#]*):.*@", re.IGNORECASE | re.DOTALL)

_EXAMPLE = 'such as "amqps://branchd:password@broker.example/branchd" or "filesystem:///srv/branchd/mesh"'


class Broker(Value):
    """Where a broker of AMQP is and who we are there."""

    scheme: str
    host: str
    port: int
    user: str
    password: str
    vhost: str
    cacertfile: str | None = None  #: None: the machine's authorities
    certfile: str | None = None
    keyfile: str | None = None

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Broker({self})"

    def __str__(self) -> str:
        """Without its password."""
        return f"{self.scheme}://{self.address}/{quote(self.vhost, safe='')}"


class Folder(Value):
    """A folder in the place of a broker, for branches of one machine."""

    path: str


def parse(text: str) -> tuple[Broker, ...] | Folder:
    """Fatal, as fault() says."""
    if wrong := fault(text):
        detail, hint = wrong
        raise Fatal(f"the broker's URL {detail}", hint)
    found = [urlsplit(url) for url in _split(text)]
    if found[0].scheme == "filesystem":
        return Folder(unquote(found[0].path))
    return tuple(map(_broker, found))


def _broker(parts: SplitResult) -> Broker:
    return Broker(
        parts.scheme,
        unquote(parts.hostname or ""),
        parts.port or PORTS[parts.scheme],
        unquote(parts.username or "guest"),
        unquote(parts.password or "guest"),
        unquote(parts.path.removeprefix("/")) or "/",
        **dict(parse_qsl(parts.query)),
    )


def _split(text: str) -> tuple[str, ...]:
    return tuple(url.strip() for url in _BETWEEN.split(text))


def shown(text: str) -> str:
    """With every password hidden; also of what is no URL."""
    return ";".join(_PASSWORD.sub(rf"\1:{HIDDEN}@", url) for url in _split(text))


def fault(text: str) -> tuple[str, str] | None:
    """What is wrong and what to do, neither with a word of the URL."""
    urls = _split(text)
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
        known = TLS_FILES if parts.scheme == "amqps" else ()
        if unknown := sorted({name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}.difference(known)):
            options = ", ".join(name if name.isidentifier() else "..." for name in unknown)
            return f"{which}has options that are not known: {options}", f"known are, for amqps, {', '.join(TLS_FILES)}"
    return None


def _parts(url: str) -> SplitResult | None:
    """None where it cannot be taken apart in one way only."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    ambiguous = ";" in url or "@" in parts.path + parts.query + parts.fragment or parts.netloc.count("@") > 1
    return parts if parts.scheme and "//" in url and not ambiguous else None
