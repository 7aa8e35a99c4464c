"""Who sends a request, and whether a browser was tricked into sending it.

On the unix socket the kernel tells the peer's uid and groups; on TCP a token does; a request that another branch
carried here comes over a connection that was made in its principal's name. What a principal may do is the routes'
business.
"""

import base64
import grp
import os
import socket
import struct
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web

from branchd.api.connection import Connection
from branchd.api.problems import CrossOrigin, Unauthenticated, WrongHost
from branchd.api.settings import HttpSettings, TcpListener, parse_listener
from branchd.branch.tokens import Tokens
from branchd.core.access import Principal, Scope
from branchd.core.errors import Denied, Unavailable

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="branchd"'}
_PASSWORD_CHALLENGE = {"WWW-Authenticate": 'Basic realm="branchd", charset="UTF-8"'}
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

#: socket(7), absent from Python's module: the supplementary groups of the peer when it connected
_SO_PEERGROUPS = 59

#: bytes, the most that Python's getsockopt takes: 256 groups
_GROUPS_SIZE = 1024


class Guard:
    def __init__(self, tokens: Tokens, settings: HttpSettings) -> None:
        self._tokens = tokens
        self._group_name = settings.socket_group
        self._group = group_id(settings.socket_group)
        listeners = [parse_listener(text) for text in settings.listen]
        listening = [listener.host for listener in listeners if isinstance(listener, TcpListener)]
        self._hosts = {host.lower() for host in (*_LOOPBACK_NAMES, *listening, *settings.allowed_hosts)}

    def principal(self, request: web.Request, *, password: bool = False) -> Principal:
        """Unauthenticated, or Denied for a uid that may do nothing here.

        `password`: a token may also come as the password of any user, by basic authentication.
        """
        if (known := carried(request)) is not None:
            return known
        connection = peer(request)
        if connection is not None:
            line = request.protocol
            assert isinstance(line, Connection)
            if line.by_credentials is None:
                line.by_credentials = self._by_credentials(connection)
            return line.by_credentials
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        token = presented.strip()
        if password and scheme.lower() == "basic":
            token = _password(token)
        elif password and not token:
            raise Unauthenticated("no token was sent", "send it as the password, of any user", _PASSWORD_CHALLENGE)
        elif scheme.lower() != "bearer" or not token:
            raise Unauthenticated("no token was sent", "send Authorization: Bearer TOKEN", _CHALLENGE)
        principal = self._tokens.principal(token)
        if principal is None and password:
            raise Unauthenticated("the password is no token that is valid", "", _PASSWORD_CHALLENGE)
        if principal is None:
            challenge = {name: f'{value}, error="invalid_token"' for name, value in _CHALLENGE.items()}
            raise Unauthenticated("the token is unknown, revoked or expired", "", challenge)
        return principal

    def check_sender(self, request: web.Request) -> None:
        """WrongHost, CrossOrigin. A browser adds these headers, and a page cannot change them."""
        if carried(request) is not None:  # they were looked at where it came in
            return
        host = request.headers.get("Host", "")
        connection = peer(request)
        if connection is None:
            self._check_name(host, _name(host), request)
            if request.host != host:  # the target's, in absolute form
                self._check_name(request.host, request.host, request)
        site = request.headers.get("Sec-Fetch-Site", "none")
        origin = request.headers.get("Origin")
        if site not in {"same-origin", "none"} or (origin is not None and _authority(origin) != host.lower()):
            raise CrossOrigin(f"it comes from {(origin or site)[:255]!r}")

    def _check_name(self, given: str, name: str | None, request: web.Request) -> None:
        # An address cannot be rebound, so the one that was connected to is right.
        reached = request.transport.get_extra_info("sockname")[0] if request.transport is not None else None
        if name is None or (name.rstrip(".") not in self._hosts and name != reached):
            raise WrongHost(f"{given[:255]!r} is not a name of this server", "add it to [http] allowed_hosts")

    def _by_credentials(self, connection: socket.socket) -> Principal:
        _, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        name = f"uid:{uid}"
        if uid in {0, os.geteuid()}:
            return Principal(name, Scope.ADMIN)
        if self._group in {gid, *_groups(connection)}:
            return Principal(name, Scope.OPERATE)
        raise Denied(f"{name} may not use this branch", f"members of the group {self._group_name} may operate it")


def group_id(name: str) -> int | None:
    """None when there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def carried(request: web.Request) -> Principal | None:
    """In whose name the connection was made, where that was not left to the request."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection.principal


def peer(request: web.Request) -> socket.socket | None:
    """The connection when it came over a unix socket, where the kernel tells who is at the other end."""
    if carried(request) is not None:
        return None
    if request.transport is None:
        raise Unavailable("the connection is gone")
    connection: socket.socket = request.transport.get_extra_info("socket")
    return connection if connection.family == socket.AF_UNIX else None


def _groups(connection: socket.socket) -> Collection[int]:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError:  # more than 256
        return ()
    return struct.unpack(f"{len(packed) // 4}I", packed)


def _password(credentials: str) -> str:
    """Of RFC 7617's user:password in base64; empty where they are not."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _name(host: str) -> str | None:
    """The name in a Host header, without a port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _authority(origin: str) -> str:
    """HOST[:PORT] of an origin; empty for "null" and what is no URL."""
    return origin.partition("://")[2].lower()
