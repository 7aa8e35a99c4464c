"""Tokens of the API: 256 random bits, shown once, kept as digests, compared in constant time, revocable."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence

from branchd.branch.ports import Store
from branchd.branch.records import Put, RemoveToken, TokenRecord
from branchd.core.access import Principal, Scope
from branchd.core.errors import Conflict, Fault, Invalid, NotFound
from branchd.core.faults import name_fault

#: tokens that a branch keeps; each request with a token is compared with all of them
MOST = 1000


def digest(token: str) -> str:
    """Of 256 random bits; salt and stretching would add nothing to what cannot be guessed."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


class Tokens:
    def __init__(self, store: Store, records: Sequence[TokenRecord], wall: Callable[[], float], admin: str) -> None:
        """`admin` is the token of the state folder's admin.token."""
        self._store = store
        self._records = {record.id: record for record in records}
        self._wall = wall
        self._admin = digest(admin)

    def list(self) -> Sequence[TokenRecord]:
        return sorted(self._records.values(), key=lambda record: (record.created_at, record.id))

    async def create(self, name: str, scope: Scope, expires_in: float | None = None) -> tuple[TokenRecord, str]:
        """The record, and the token itself, which nobody can be shown again. expires_in in seconds."""
        faults = [fault for fault in (name_fault(name, "/name"),) if fault]
        if expires_in is not None and not 0 < expires_in <= 100 * 365 * 86400:
            faults.append(Fault("/expires_in", f"{expires_in:g} is out of range", "seconds, above 0"))
        if faults:
            raise Invalid(faults)
        if any(record.name == name for record in self._records.values()):
            raise Conflict(f"there is a token named {name}", "revoke it first, or choose another name")
        if len(self._records) >= MOST:
            raise Conflict(f"there are {MOST} tokens already", "revoke some first")
        token = secrets.token_urlsafe(32)
        now = self._wall()
        expires_at = None if expires_in is None else now + expires_in
        record = TokenRecord(secrets.token_hex(8), name, digest(token), scope.value, now, expires_at)
        self._records[record.id] = record
        try:
            await self._store.write(Put(record))
        except BaseException:
            del self._records[record.id]
            raise
        return record, token

    async def revoke(self, id: str) -> None:
        if id not in self._records:
            raise NotFound(f"there is no token with the id {id[:80]}")
        await self._store.write(RemoveToken(id))
        self._records.pop(id, None)

    def principal(self, presented: str) -> Principal | None:
        """Who presents this token; None when it is unknown or has expired."""
        given = digest(presented)
        found = Principal("token:admin", Scope.ADMIN) if hmac.compare_digest(given, self._admin) else None
        now = self._wall()
        for record in self._records.values():  # all of them, so that the time tells nothing
            fresh = record.expires_at is None or now < record.expires_at
            if hmac.compare_digest(given, record.digest) and fresh:
                found = Principal(f"token:{record.name}", Scope(record.scope))
        return found
