"""The messages between branches, as values: one Value a message. link.py carries them, sealing.py protects them.

A *question* is answered with one of the messages that its docstring names; a *statement* is not answered. Bytes are
base64 text. Every message is decoded strictly; what does not fit is dropped and counted.
"""

import re
from collections.abc import Mapping
from typing import Any

from msgspec import field

from branchd.core.access import Scope
from branchd.core.admission import Probe, Refusal, Room
from branchd.core.faults import NAME
from branchd.core.peers import LONGEST, Address, Announcement, Down, credible
from branchd.core.stamps import Entry
from branchd.core.value import Value

#: bytes of one piece of a carried answer
CHUNK = 256 << 10


# Presence


class Announce(Value):
    """Statement to all: here I am."""

    announcement: Announcement


class Gone(Value):
    """Statement to all: the sender finds these ended."""

    downs: tuple[Down, ...]


class Ping(Value):
    """Question; Pong."""


class Pong(Value):
    """It is there."""


class Compare(Value):
    """Question; Differences. The digests of the buckets of both maps, hexadecimal."""

    roster: tuple[str, ...]
    definitions: tuple[str, ...]


class Differences(Value):
    """What the answering branch has in the buckets that differ, and which they are."""

    announcements: tuple[Announcement, ...]
    downs: tuple[Down, ...]
    entries: tuple[Entry, ...]
    roster: tuple[int, ...]
    definitions: tuple[int, ...]
    ages: Mapping[str, float] = field(default_factory=dict)  #: of branches that ended, by id: seconds since then


class Fill(Value):
    """Statement: what the asking branch has in those buckets."""

    announcements: tuple[Announcement, ...]
    downs: tuple[Down, ...]
    entries: tuple[Entry, ...]
    ages: Mapping[str, float] = field(default_factory=dict)  #: as in Differences


class Wrote(Value):
    """Statement to all: definitions as they were just written."""

    entries: tuple[Entry, ...]


# Placement; Probe, Room and Refusal stand in core/admission.py, which judges by them


class Offer(Value):
    """Question; Accepted or Refusal."""

    request: str  #: the request's id: one at one target makes one instance
    digest: str  #: of what was asked for: another request must not come under the same id
    app: str
    name: str
    named: bool  #: the name must be taken: it is a person's, or a retry may come to another branch
    spec: Mapping[str, Any]
    principal: str  #: who asked, for the record
    moving: bool = False  #: the offering branch owns the name and hands it over later
    entries: tuple[Entry, ...] = ()  #: of the app and its queues, which the target may not have heard of yet
    origin: str = ""  #: of a move: the request that first made it


class Accepted(Value):
    instance: Mapping[str, Any]  #: the API's resource
    made: bool  #: False: an earlier offer of the same request was accepted
    owner: Address | None = None  #: who has it; None: the branch that answers


class Cancel(Value):
    """Question; Cancelled. Durable, also for a request that never arrives."""

    request: str


class Cancelled(Value):
    """The request makes nothing there, now or later."""


class Handover(Value):
    """Question; Here. The replacement of a moving instance takes the name's messages from now on."""

    app: str
    name: str


# Whereabouts: asked of the keys `i.app:name` (placed) and `n.app:name` (pinned)


class WhereIs(Value):
    """Question to a key; Here."""

    app: str
    name: str
    held: bool = False  #: the asking branch has one of that name itself


class Here(Value):
    branch: str  #: the name of the branch
    request: str  #: id of the request that made it; "" for a pinned one
    digest: str
    accepted_at: float  #: seconds since 1970
    moving: bool = False
    origin: str = ""  #: the request that first made it, where that was on another branch; as whose it may be asked for


class Knock(Value):
    """Statement to a key: that it is routed is all that the sender wants to know."""


# Requests of the API, carried to the branch that they are for


class Carried(Value):
    """Question; Reply or Unserved. Never carried further."""

    method: str
    target: str  #: path and query
    headers: Mapping[str, str]
    body: str  #: base64
    principal: str
    scope: Scope


class Reply(Value):
    status: int
    headers: Mapping[str, str]
    body: str  #: base64: all of it, or its first piece
    stream: str | None  #: the name under which the rest is pulled; None: that is all


class Unserved(Value):
    """Nothing was begun of it."""

    detail: str


class Pull(Value):
    """Question; Piece. The next piece; waits a few seconds where there is none yet, and then it is empty."""

    stream: str


class Piece(Value):
    body: str  #: base64
    end: bool
    broken: bool = False  #: the end came too early: what was pulled is not whole


class HangUp(Value):
    """Statement: the rest is not wanted."""

    stream: str


Message = (
    Announce | Gone | Ping | Pong | Compare | Differences | Fill | Wrote
    | Probe | Room | Offer | Accepted | Refusal | Cancel | Cancelled | Handover
    | WhereIs | Here | Knock
    | Carried | Reply | Unserved | Pull | Piece | HangUp
)  # fmt: skip

KINDS: Mapping[str, type[Message]] = {kind.__name__: kind for kind in Message.__args__}


#: ids of requests, digests of what they ask for
_REQUEST = re.compile(r"[A-Za-z0-9-]{0,80}")


def sound(message: Message) -> bool:
    """Whether what is kept of it, or told of it to people, is such as branches say. Types are right once it decoded.

    Definitions are judged one by one where they are merged, and so is what an instance is asked to be.
    """
    match message:
        case Announce(said):
            return credible(said)
        case Gone(downs):
            return all(map(credible, downs))
        case Differences() | Fill():
            return all(map(credible, message.announcements)) and all(map(credible, message.downs))
        case Offer():
            ids = message.request, message.digest, message.origin
            return message.request != "" and all(map(_REQUEST.fullmatch, ids)) and _text(message.principal)
        case Cancel(request):
            return request != "" and _REQUEST.fullmatch(request) is not None
        case Here():
            ids = message.request, message.digest, message.origin
            return NAME.fullmatch(message.branch) is not None and all(map(_REQUEST.fullmatch, ids))
        case Carried():
            return _text(message.principal)
        case _:
            return True


def _text(text: str) -> bool:
    return len(text) <= LONGEST and text.isprintable()
