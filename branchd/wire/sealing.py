"""Sealed messages: who sent it, to whom, and that nobody else could have written or read it.

A message is a header in clear and a body in AES-256-GCM, whose associated data is the whole header. Each life of each
sender has a key of its own, derived from the neighbourhood's, so that its nonces (path and counter) never meet those of
another; that is why a boot must be random. What the bodies mean stands in mesh.py, where keys are kept in
adapters/keys.py.

Replay. The counter of a sender's life rises strictly on each path, and what does not rise is refused: that alone tells
a message from its copy, whatever the clocks say. The sending time is a backstop against what was held back, and for the
lives that are not remembered:
- more than WINDOW away from the clock here, behind or ahead, is refused. WINDOW is longer than honest clocks differ.
- LIVES counters are remembered, and the one that was silent for longest is forgotten first. The newest sending time
  among the forgotten is kept: a life that is not remembered must have sent after it. So forgetting opens no hole, also
  when this clock is set back. What it costs: where more than LIVES speak within WINDOW, one that speaks for the first
  time and whose clock is behind is refused until its clock has passed that time.
- A restart forgets everything. What is sealed for a life (id and boot) is for another life then; what is sealed for
  all, or for who holds a key, can be replayed to the next life for as long as WINDOW, and must be harmless when it is.
"""

import hashlib
import re
import struct
from collections.abc import Callable
from enum import IntEnum, StrEnum
from functools import lru_cache
from itertools import count
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec.structs import force_setattr

from branchd.core.peers import Address
from branchd.core.value import Value

#: of the form of a sealed message and of what is in it (mesh.py): branches with another one do not understand each
#: other, and count what they hear as of another version
VERSION = 1

#: bytes of a neighbourhood's key, and of those that are derived from it
KEY_SIZE = 32

#: milliseconds that a sending time may be away from the clock here: honest clocks differ by up to 10 minutes, and a
#: message lies at most some seconds at a broker
WINDOW = 15 * 60 * 1000

#: counters that are remembered, one for each path of each life: 10,000 branches with an earlier life of each, on three
#: paths; some 260 bytes each
LIVES = 60_000

#: ciphers that are kept ready, about 2.5 KB each; to make one takes microseconds
CIPHERS = 1024

_MAGIC = b"brd"

#: magic, version, id of the key, path, counter, sending time in milliseconds since 1970
_HEAD = struct.Struct(">3sB4sBQQ")

#: of what of the head tells one line of messages: the id of the key and the path
_LINE = slice(4, 9)

#: path and counter
_NONCE = struct.Struct(">IQ")

_SALT = b"branchd seal %d" % VERSION

#: 128 random bits, as hexadecimal text
_BOOT = re.compile(r"[0-9a-f]{32}")


class Path(IntEnum):
    """Within one path the messages of a sender arrive in order; each has a counter of its own."""

    BROADCAST = 0
    SEND = 1
    CLAIM = 2


_PATHS = frozenset(Path)


class Reason(StrEnum):
    """Why a message is not opened."""

    GARBAGE = "garbage"  #: no sealed message at all
    WRONG_VERSION = "wrong version"
    WRONG_NEIGHBOURHOOD = "wrong neighbourhood"
    UNKNOWN_KEY = "unknown key"  #: sealed with a key that is not accepted here
    FORGED = "forged"  #: it was not written with that key, or was changed since
    WRONG_TARGET = "wrong target"  #: it is genuine, and for somebody else
    EXPIRED = "expired"  #: its sending time is too far from the clock here
    REPLAYED = "replayed"


class Rejected(Exception):
    """It is not opened; `reason` is a word to count by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Opened(Value):
    sender: Address
    body: bytes


class Seal(Protocol):
    """Of one branch in one neighbourhood."""

    def seal(self, path: Path, target: str, body: bytes) -> bytes: ...

    def open(self, target: str, message: bytes) -> Opened:
        """Rejected. `target`: what this message must have been sealed for."""


class NeighbourhoodKey(Value):
    """Whoever has it is a branch of the neighbourhood."""

    secret: bytes  #: KEY_SIZE random bytes
    id: str = ""  #: 8 hexadecimal digits that follow from the secret and do not tell it; never given

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes, not {len(self.secret)}")
        force_setattr(self, "id", hashlib.sha256(b"branchd key id" + self.secret).hexdigest()[:8])

    def __repr__(self) -> str:
        return f"NeighbourhoodKey({self.id})"


class KeyRing(Value):
    """One key, or two while the neighbourhood changes from one to the other. The first seals, all open."""

    keys: tuple[NeighbourhoodKey, ...]

    def __post_init__(self) -> None:
        if not 1 <= len({key.id for key in self.keys}) == len(self.keys) <= 2:
            raise ValueError("one key, or two different ones")


class NeighbourhoodSeal:
    """Seal with the keys of a neighbourhood. For one thread.

    `me.boot` must be 16 bytes of os.urandom as hexadecimal text, drawn at each start of the daemon: with a boot that
    comes twice, nonces would. `wall`: seconds since 1970.
    """

    def __init__(self, ring: KeyRing, neighbourhood: str, me: Address, wall: Callable[[], float]) -> None:
        if not _BOOT.fullmatch(me.boot):
            raise ValueError("a boot is 128 random bits in hexadecimal")
        self._wall = wall
        self._neighbourhood = _text(neighbourhood)
        self._me = _text(me.id) + _text(me.boot)
        self._counters = {path: count(1) for path in Path}
        self._cipher = lru_cache(CIPHERS)(self._derive)
        self._lines: dict[bytes, tuple[int, int]] = {}  #: the last counter, the newest sending time; silent ones first
        self._forgotten = 0  #: the newest sending time of all lines that are no longer remembered
        self.use(ring)

    def use(self, ring: KeyRing) -> None:
        """From now on; the counters go on rising."""
        self._secrets = {bytes.fromhex(key.id): key.secret for key in ring.keys}
        self._sealing = bytes.fromhex(ring.keys[0].id)
        self._cipher.cache_clear()

    def seal(self, path: Path, target: str, body: bytes) -> bytes:
        """Overhead: about 180 bytes. ValueError for a target that has more than 255 bytes."""
        number = next(self._counters[path])
        head = _HEAD.pack(_MAGIC, VERSION, self._sealing, path, number, int(self._wall() * 1000))
        header = head + self._neighbourhood + self._me + _text(target)
        cipher = self._cipher(self._sealing, self._me)
        return header + cipher.encrypt(_NONCE.pack(path, number), body, header)

    def open(self, target: str, message: bytes) -> Opened:
        if message[:3] != _MAGIC or len(message) < _HEAD.size:
            raise Rejected(Reason.GARBAGE)
        _, version, key, path, number, sent = _HEAD.unpack_from(message)
        if version != VERSION:
            raise Rejected(Reason.WRONG_VERSION)
        (neighbourhood, identifier, boot, meant), start, end, body = _texts(message)
        if path not in _PATHS or not _BOOT.fullmatch(boot):
            raise Rejected(Reason.GARBAGE)
        if _text(neighbourhood) != self._neighbourhood:
            raise Rejected(Reason.WRONG_NEIGHBOURHOOD)
        if key not in self._secrets:
            raise Rejected(Reason.UNKNOWN_KEY)
        sender = message[start:end]
        try:
            opened = self._cipher(key, sender).decrypt(_NONCE.pack(path, number), message[body:], message[:body])
        except InvalidTag:
            raise Rejected(Reason.FORGED) from None
        # From here on it is told what a holder of the key has written.
        if meant != target:
            raise Rejected(Reason.WRONG_TARGET)
        self._take(message[_LINE] + sender, number, sent)
        return Opened(Address(identifier, boot), opened)

    def _take(self, line: bytes, number: int, sent: int) -> None:
        """Remembers it as the last one of its line; Rejected."""
        if abs(sent - self._wall() * 1000) > WINDOW:
            raise Rejected(Reason.EXPIRED)
        known = self._lines.get(line)
        if known is None:
            if sent <= self._forgotten:
                raise Rejected(Reason.EXPIRED)
            if len(self._lines) >= LIVES:
                _, newest = self._lines.pop(next(iter(self._lines)))
                self._forgotten = max(self._forgotten, newest)
        elif number <= known[0]:
            raise Rejected(Reason.REPLAYED)
        else:
            del self._lines[line]
            sent = max(sent, known[1])
        self._lines[line] = number, sent

    def _derive(self, key: bytes, sender: bytes) -> AESGCM:
        derived = HKDF(SHA256(), KEY_SIZE, _SALT, self._neighbourhood + sender).derive(self._secrets[key])
        return AESGCM(derived)


def _text(value: str) -> bytes:
    """With its length before it; ValueError where that takes more than a byte."""
    data = value.encode()
    return bytes((len(data),)) + data


def _texts(message: bytes) -> tuple[list[str], int, int, int]:
    """Neighbourhood, id, boot and target; where the sender's begin and end, and where the body begins."""
    texts = []
    places = [at := _HEAD.size]
    try:
        for _ in range(4):
            start = at + 1
            at = start + message[at]
            if at > len(message):
                raise Rejected(Reason.GARBAGE)
            texts.append(message[start:at].decode())
            places.append(at)
    except (IndexError, UnicodeDecodeError):
        raise Rejected(Reason.GARBAGE) from None
    return texts, places[1], places[3], places[4]
