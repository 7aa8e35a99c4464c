"""Tokens: made, listed, revoked."""

from aiohttp import web

from branchd.api.answers import NAME, PAGE, answer, matches, nothing, page
from branchd.api.routing import Call, Routes
from branchd.branch.records import TokenRecord
from branchd.core.access import Scope
from branchd.core.errors import Conflict, NotFound
from branchd.core.value import Value
from branchd.wire.decode import decode
from branchd.wire.resources import Token, timestamp

route = Routes()


class NewToken(Value):
    name: str
    scope: Scope
    expires_in: float | None = None  #: seconds; None: never


@route("GET", "/v1/tokens", scope=Scope.ADMIN, returns={200: list[Token]}, query=(*PAGE, NAME))
async def list_tokens(call: Call) -> web.Response:
    """The tokens that were made here, without the tokens themselves."""
    shown = [_shown(record) for record in call.service.tokens.list() if matches(call.get(NAME), record.name)]
    return page(call, sorted(shown, key=_place), _place)


@route("POST", "/v1/tokens", scope=Scope.ADMIN, body=NewToken, returns={201: Token}, raises=(Conflict,))
async def create_token(call: Call) -> web.Response:
    """A new token. It is shown in this answer, and never again."""
    new = decode(NewToken, call.body)
    record, token = await call.service.tokens.create(new.name, new.scope, new.expires_in)
    return answer(_shown(record, token), 201, Location=f"/v1/tokens/{record.id}")


@route("GET", "/v1/tokens/{id}", scope=Scope.ADMIN, returns={200: Token})
async def get_token(call: Call) -> web.Response:
    """One token, without the token itself."""
    id = call.path["id"]
    record = next((record for record in call.service.tokens.list() if record.id == id), None)
    if record is None:
        raise NotFound(f"there is no token with the id {id[:80]!r}")
    return answer(_shown(record))


@route("DELETE", "/v1/tokens/{id}", scope=Scope.ADMIN, returns={204: None})
async def revoke_token(call: Call) -> web.Response:
    """Revokes it: from now on it opens nothing."""
    await call.service.tokens.revoke(call.path["id"])
    return nothing()


def _place(token: Token) -> tuple[str, str]:
    return token.created_at, token.id


def _shown(record: TokenRecord, token: str | None = None) -> Token:
    expires_at = None if record.expires_at is None else timestamp(record.expires_at)
    return Token(record.id, record.name, Scope(record.scope), timestamp(record.created_at), expires_at, token)
