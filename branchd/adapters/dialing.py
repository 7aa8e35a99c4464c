"""Connections that the daemon opens because a spec says so: to an address, or for one HTTP request of which the status
alone matters. Bounded in size; the time is bounded by the caller.

By hand, because that is all of HTTP that probes and hooks need: no redirects, no body that is looked at, no reuse.
"""

import asyncio
import base64
import contextlib
import errno
import ipaddress
import os
import re
import socket
import ssl
from urllib.parse import unquote, urlsplit

from branchd import __version__
from branchd.core.errors import Unavailable

#: bytes of a line of an answer's head, and lines of it
LINE = 16 << 10
MOST_LINES = 200

#: seconds and bytes for what follows the status: a server whose answer is cut off may complain in its log
REST_PATIENCE = 0.2
MOST_REST = 256 << 10

#: errno of a connection that failed for want of something of the machine's or the daemon's
OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}

#: where clouds serve a machine's credentials, or the settings that hold them, besides link-local addresses
METADATA = tuple(
    ipaddress.ip_network(network)
    for network in (
        "fd00:ec2::/32",  # Amazon
        "fd20:ce::254",  # Google
        "168.63.129.16",  # Azure
        "192.0.0.192", "fd00:c1::a9fe:a9fe",  # Oracle
        "100.100.100.200",  # Alibaba
        "fd00:42::42",  # Scaleway
    )
)  # fmt: skip

#: addresses whose last 32 bits are those of IPv4 that they lead to: compatible, mapped, and translated (RFC 4291, 7915,
#: 6052, 8215)
LEADING_TO_IPV4 = tuple(
    map(
        ipaddress.IPv6Network,
        ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"),
    )
)

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: .*)?\r?\n")


class Failed(Exception):
    """It was tried and did not succeed; the text says why."""


async def dial(
    host: str, port: int, tls: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first of the host's addresses that takes it; an empty host is loopback. Failed, Unavailable.

    Where clouds serve a machine's credentials is refused, however it is written and whatever name leads there: what is
    looked at is the address that is connected to.
    """
    reason = ""
    for address in await _addresses(host, port):
        if _guarded(address):
            raise Failed(f"{host} is where clouds serve a machine's credentials, and is not asked")
        try:
            name = host if tls is not None else None
            return await asyncio.open_connection(address, port, ssl=tls, server_hostname=name, limit=LINE)
        except OSError as error:
            if error.errno in OURS:
                raise Unavailable(f"cannot connect: {os.strerror(error.errno)}") from error
            reason = reason or _words(error)
    raise Failed(reason or "it has no address")


async def request(method: str, url: str, tls: ssl.SSLContext, body: bytes | None = None) -> int:
    """The status of the answer; `body` is JSON. Failed, Unavailable."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise Failed(f"the URL is not valid: {error}") from None
    reader, writer = await dial(host, port, tls if parts.scheme == "https" else None)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
        head += [f"User-Agent: branchd/{__version__}", "Accept: */*", "Connection: close"]
        if parts.username is not None:
            account = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            head.append(f"Authorization: Basic {base64.b64encode(account).decode()}")
        if body is not None:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join([*head, "", ""]).encode() + (body or b""))
        await writer.drain()
        status = await _status(reader)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_PATIENCE):
                left = MOST_REST
                while left > 0 and (data := await reader.read(LINE)):
                    left -= len(data)
        return status
    except OSError as error:
        raise Failed(_words(error)) from None
    finally:
        writer.transport.abort()


async def _status(reader: asyncio.StreamReader) -> int:
    while True:
        match = _STATUS.fullmatch(await _line(reader))
        if match is None:
            raise Failed("the answer is not HTTP")
        if (status := int(match[1])) >= 200:
            return status
        for _ in range(MOST_LINES):  # of an interim answer
            if not (await _line(reader)).strip():
                break
        else:
            raise Failed("the answer is not HTTP")


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readline()
    except ValueError:
        raise Failed("the answer is not HTTP: its first line has no end") from None
    if not line:
        raise Failed("the connection was closed without an answer")
    return line


async def _addresses(host: str, port: int) -> list[str]:
    if host in ("", "localhost"):
        return ["127.0.0.1", "::1"]
    try:
        return [str(ipaddress.ip_address(host.strip("[]")))]
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Failed(f"{host} is not known: {error.strerror if isinstance(error, OSError) else error}") from None
    return [str(entry[4][0]) for entry in found]


def _guarded(address: str) -> bool:
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if any(found in network for network in LEADING_TO_IPV4):
            found = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        else:
            found = found.sixtofour or found
    return found.is_link_local or any(found in network for network in METADATA)


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return os.strerror(error.errno).lower() if error.errno else str(error) or type(error).__name__
