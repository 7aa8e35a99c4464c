"""Opening the sockets that the server listens on, with words for what can go wrong. Nothing is served here.

Sockets that are open already, from this daemon's last image or from the service manager, are used where they have the
address that is asked for: the kernel has kept who connected in the meantime.
"""

import errno
import os
import socket
import ssl
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import structlog

from branchd.api.auth import group_id
from branchd.api.settings import HttpSettings, TcpListener, UnixListener, address_text, parse_listener
from branchd.core.errors import Fatal
from branchd.core.value import Value

log = structlog.get_logger(__name__)

#: connections that the kernel keeps until they are accepted; it may have a smaller bound (net.core.somaxconn)
BACKLOG = 1024

#: of the unix socket: the daemon's user and the group
SOCKET_MODE = 0o660


class Given(Value):
    """A listening socket that is open already."""

    socket: socket.socket
    ours: bool  #: False: the service manager made it, and takes its path away
    inode: int = 0  #: of a unix socket's path when it was opened; 0: not known


class Opened(Value):
    socket: socket.socket
    address: str  #: unix:PATH, http://HOST:PORT or https://HOST:PORT
    tls: ssl.SSLContext | None = None
    path: str | None = None  #: of a unix socket
    inode: int = 0  #: of a unix socket
    ours: bool = True

    def close(self) -> None:
        """Takes the unix socket's path away too, unless another has taken its place, or it is the service manager's."""
        self.socket.close()
        try:
            if self.ours and self.path is not None and os.lstat(self.path).st_ino == self.inode:
                os.unlink(self.path)
        except OSError:
            pass  # it is gone already, or its folder is


def open_all(settings: HttpSettings, given: Sequence[Given] = ()) -> list[Opened]:
    """All of them or none; Fatal. Of those given, the ones that no address asks for are closed."""
    listeners, tls = check(settings)
    found = _matched(listeners, given)
    opened: list[Opened] = []
    try:
        for listener, there in zip(listeners, found, strict=True):
            if isinstance(listener, UnixListener):
                opened.append(_open_unix(listener, settings.socket_group, there))
            else:
                opened.append(_open_tcp(listener, tls, there))
    except BaseException:
        for one in opened:
            one.close()
        raise
    for left in given:
        if left not in found:
            _dismiss(left)
    return opened


def check(settings: HttpSettings) -> tuple[list[UnixListener | TcpListener], ssl.SSLContext | None]:
    """What is to be opened, and TLS for it; Fatal for what can be seen to be wrong before anything is opened."""
    listeners = [parse_listener(text) for text in settings.listen]
    tls = _tls(settings)
    for listener in listeners:
        if isinstance(listener, TcpListener) and not (listener.loopback or tls or settings.insecure):
            raise Fatal(f"refusing to listen on {listener} without TLS: whoever reaches the API runs commands here",
                        "set [http] tls_certificate and tls_key, or insecure = true")  # fmt: skip
    return listeners, tls


def _matched(listeners: Iterable[UnixListener | TcpListener], given: Sequence[Given]) -> list[Given | None]:
    """For each listener the socket that has its address; any port's is `:0`'s, where no other listener names it."""
    listeners, left = list(listeners), list(given)
    found: list[Given | None] = [None] * len(listeners)
    for anywhere in (False, True):
        for place, listener in enumerate(listeners):
            if found[place] is None:
                found[place] = next((one for one in left if _has(one, listener, anywhere)), None)
                left = [one for one in left if one is not found[place]]
    return found


def _has(given: Given, listener: UnixListener | TcpListener, anywhere: bool) -> bool:
    """Whether the socket has the listener's address; `anywhere`: a listener without a port takes any.

    A unix socket whose path is gone, or is another's by now, has none: nobody reaches it.
    """
    there, name = given.socket, given.socket.getsockname()
    if isinstance(listener, UnixListener):
        if there.family != socket.AF_UNIX or name != listener.path:
            return False
        inode = _inode(listener.path)
        return inode != 0 and given.inode in (0, inode)
    if there.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        [family, _, _, _, (host, port, *_)] = _resolved(listener)
    except OSError:
        return False
    same = there.family == family and name[0] == host
    return same and (port == name[1] or (anywhere and port == 0))


def _dismiss(given: Given) -> None:
    name = given.socket.getsockname()
    if not given.ours:
        inet = given.socket.family in (socket.AF_INET, socket.AF_INET6)
        log.warning("a socket of the service manager is not used", address=address_text(*name[:2]) if inet else name,
                    cure="add its address to [http] listen, or take it out of the socket unit")  # fmt: skip
    elif isinstance(name, str) and given.inode and _inode(name) == given.inode:
        Path(name).unlink(missing_ok=True)
    given.socket.close()


def _inode(path: str) -> int:
    """Of the socket that stands there; 0: none does."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else 0


def _tls(settings: HttpSettings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None and settings.tls_key is None:
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        raise Fatal("TLS needs both a certificate and its key", "set [http] tls_certificate and tls_key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise Fatal(f"cannot use the certificate {settings.tls_certificate} with the key {settings.tls_key}: {error}",
                    "both are PEM files") from error  # fmt: skip
    return context


def _resolved(listener: TcpListener) -> tuple[int, int, int, str, tuple[Any, ...]]:
    found = socket.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return found[0]


def _open_tcp(listener: TcpListener, tls: ssl.SSLContext | None, given: Given | None) -> Opened:
    if given is not None:
        given.socket.setblocking(False)
        return _tcp(given.socket, tls, given.ours)
    try:
        family, kind, protocol, _, address = _resolved(listener)
    except OSError as error:
        raise Fatal(f"cannot listen on {listener}: {error.strerror}") from error
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setblocking(False)
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise Fatal(f"{listener} is in use", "another branchd? choose another address with --listen") from error
        raise Fatal(f"cannot listen on {listener}: {error.strerror}") from error
    return _tcp(opened, tls)


def _tcp(opened: socket.socket, tls: ssl.SSLContext | None, ours: bool = True) -> Opened:
    host, port = opened.getsockname()[:2]
    return Opened(opened, f"{'https' if tls else 'http'}://{address_text(host, port)}", tls, ours=ours)


def _open_unix(listener: UnixListener, group_name: str, given: Given | None) -> Opened:
    path = listener.path
    if given is not None:
        given.socket.setblocking(False)
        return _admitting(given.socket, listener, group_name) if given.ours else _unix(given.socket, listener, False)
    _clear(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Nobody else may connect before group and mode are right.
    umask = os.umask(0o177)
    try:
        opened.setblocking(False)
        opened.bind(path)
    except OSError as error:
        opened.close()
        raise Fatal(f"cannot listen on {listener}: {error.strerror or error}") from error
    finally:
        os.umask(umask)
    return _admitting(opened, listener, group_name)


def _admitting(opened: socket.socket, listener: UnixListener, group_name: str) -> Opened:
    """With group and mode as they are to be, listening."""
    path = listener.path
    try:
        group = group_id(group_name)
        if group is not None and group != os.stat(path).st_gid:
            try:
                os.chown(path, -1, group)
            except PermissionError:
                group = None  # a user's own daemon is not in it: the socket stays the user's
        os.chmod(path, SOCKET_MODE)
        opened.listen(BACKLOG)
        return _unix(opened, listener, True)
    except OSError as error:
        opened.close()
        Path(path).unlink(missing_ok=True)
        raise Fatal(f"cannot listen on {listener}: {error.strerror}") from error


def _unix(opened: socket.socket, listener: UnixListener, ours: bool) -> Opened:
    return Opened(opened, str(listener), path=listener.path, inode=_inode(listener.path), ours=ours)


def _clear(path: str) -> None:
    """Takes a socket away on which nobody answers; Fatal for everything else that stands there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Fatal(f"cannot listen on unix:{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise Fatal(f"cannot listen on unix:{path}: something else than a socket stands there", "move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        try:
            trial.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except OSError:
            pass  # a full backlog, or no right to connect: somebody may well be there
    raise Fatal(f"unix:{path} is in use", "another branchd? choose another path with --run or --listen")
