"""Every error that the API answers with: one table from its class to a status, a slug and a title; and the answer.

Errors that only an HTTP server can have are defined here, the others in core/errors.py. docs/problems.md has a section
for each slug. No traceback leaves: what was not foreseen is logged under an id, and the answer shows the id.
"""

import secrets
from collections.abc import Mapping
from typing import Any

import structlog
from aiohttp import web

from branchd.core import errors
from branchd.core.errors import BranchdError, Fault, Invalid
from branchd.core.value import Value
from branchd.wire import json
from branchd.wire.decode import encode

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"


class HttpError(BranchdError):
    """An error of the HTTP request itself."""

    def __init__(self, detail: str, hint: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, hint)
        self.headers = headers or {}


class BadRequest(HttpError):
    """It is not HTTP."""


class BrokenJson(HttpError):
    """The body is not JSON."""


class BrokenXml(HttpError):
    """The body is no call of XML-RPC."""


class Unauthenticated(HttpError):
    """Nobody, or nobody known."""


class CrossOrigin(HttpError):
    """A browser sent it for a page of another origin."""


class NoSuchPath(HttpError):
    """The API has no such path."""


class WrongMethod(HttpError):
    """The path has no such method."""


class TooSlow(HttpError):
    """The body did not arrive in time."""


class TooLarge(HttpError):
    """The body is larger than [http] body_limit."""


class NotJson(HttpError):
    """The body says that it is something else than JSON."""


class NotXml(HttpError):
    """The body says that it is something else than XML."""


class WrongHost(HttpError):
    """The Host header names another server."""


class TooMany(HttpError):
    """All places for long answers are taken."""


class HeadersTooLarge(HttpError):
    """The request line or a header is too long, or there are too many."""


class Internal(BranchdError):
    """A fault of branchd's own; the log has it under `id`."""

    def __init__(self, id: str) -> None:
        super().__init__("this is a fault of branchd's own", f"its log tells more under {id}")
        self.id = id


class Meaning(Value):
    status: int
    slug: str
    title: str

    @property
    def type(self) -> str:
        return f"urn:branchd:problem:{self.slug}"


#: An error has the first entry that its class's method resolution order meets.
MEANINGS: Mapping[type[BranchdError], Meaning] = {
    BadRequest: Meaning(400, "bad-request", "This is not an HTTP request"),
    BrokenJson: Meaning(400, "broken-json", "The body is not JSON"),
    BrokenXml: Meaning(400, "broken-xml", "The body is no call of XML-RPC"),
    Unauthenticated: Meaning(401, "unauthenticated", "A valid token is needed"),
    errors.Denied: Meaning(403, "denied", "You may not do this"),
    CrossOrigin: Meaning(403, "cross-origin", "Pages of other origins may not do this"),
    errors.NotFound: Meaning(404, "not-found", "There is no such thing"),
    NoSuchPath: Meaning(404, "no-such-path", "The API has no such path"),
    WrongMethod: Meaning(405, "wrong-method", "The path has no such method"),
    TooSlow: Meaning(408, "too-slow", "The body did not arrive in time"),
    errors.Conflict: Meaning(409, "conflict", "It contradicts what is there"),
    errors.FileOwned: Meaning(409, "file-owned", "A file defines it"),
    errors.NoCapacity: Meaning(409, "no-capacity", "No branch takes it"),
    errors.Refused: Meaning(409, "refused", "The worker refuses"),
    errors.SpawnFailed: Meaning(409, "spawn-failed", "The program could not be started"),
    errors.Stale: Meaning(412, "stale", "It was changed since it was read"),
    TooLarge: Meaning(413, "too-large", "The body is too large"),
    NotJson: Meaning(415, "not-json", "Bodies are JSON"),
    NotXml: Meaning(415, "not-xml", "XML-RPC is XML"),
    WrongHost: Meaning(421, "wrong-host", "This server has another name"),
    Invalid: Meaning(422, "invalid", "Fields are invalid"),
    TooMany: Meaning(429, "too-many", "Too many long answers are open"),
    HeadersTooLarge: Meaning(431, "headers-too-large", "The headers are too large"),
    Internal: Meaning(500, "internal", "Something went wrong here"),
    errors.NoRoute: Meaning(503, "not-connected", "The branch is not connected"),
    errors.StorageFailed: Meaning(503, "storage-failed", "The store takes nothing"),
    errors.Unavailable: Meaning(503, "unavailable", "It cannot be told or done now"),
    errors.NoChannel: Meaning(503, "no-channel", "The worker does not answer"),
    errors.NoAnswer: Meaning(504, "branch-unreachable", "Another branch does not answer"),
    errors.OutcomeUnknown: Meaning(504, "branch-unreachable", "Another branch does not answer"),
}


class Problem(Value):
    """RFC 9457, with the faults of each field, and a hint of what to do."""

    type: str
    title: str
    status: int
    detail: str
    hint: str = ""
    instance: str = ""  #: under which a fault of branchd's own stands in its log
    outcome: str = ""  #: "unknown": what was asked for may have been done or not
    errors: tuple[Fault, ...] = ()


def meaning(error: type[BranchdError]) -> Meaning:
    return next((MEANINGS[kind] for kind in error.__mro__ if kind in MEANINGS), MEANINGS[Internal])


def foreseen(error: BranchdError) -> bool:
    """Whether its words are meant for who asked."""
    return meaning(type(error)) is not MEANINGS[Internal]


def internal(error: BaseException, where: str) -> Internal:
    """What to answer instead of an error that nobody foresaw; `where` is the method and the path."""
    id = secrets.token_hex(8)
    log.error("request failed", id=id, where=where, exc_info=error)
    return Internal(id)


def problem(error: BranchdError) -> Problem:
    it = meaning(type(error))
    return Problem(
        it.type,
        it.title,
        it.status,
        error.detail,
        error.hint,
        f"urn:branchd:failure:{error.id}" if isinstance(error, Internal) else "",
        "unknown" if isinstance(error, errors.OutcomeUnknown) else "",
        tuple(error.faults) if isinstance(error, Invalid) else (),
    )


def shown(problem: Problem) -> dict[str, Any]:
    """As JSON, without what is empty."""
    return {name: value for name, value in encode(problem).items() if value}


def answer(error: BranchdError) -> web.Response:
    told = problem(error)
    return web.Response(
        body=json.dumps(shown(told)),
        status=told.status,
        headers=error.headers if isinstance(error, HttpError) else None,
        content_type=MEDIA_TYPE,
    )
