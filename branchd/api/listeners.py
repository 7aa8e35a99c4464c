"""Opening the sockets that the server listens on, with words for what can go wrong. Nothing is served here."""

import errno
import os
import socket
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path

from branchd.api.auth import group_id
from branchd.api.settings import HttpSettings, TcpListener, UnixListener, address_text, parse_listener
from branchd.core.errors import Fatal

#: connections that the kernel keeps until they are accepted; it may have a smaller bound (net.core.somaxconn)
BACKLOG = 1024

#: of the unix socket: the daemon's user and the group
SOCKET_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Opened:
    socket: socket.socket
    address: str  #: unix:PATH, http://HOST:PORT or https://HOST:PORT
    tls: ssl.SSLContext | None = None
    path: str | None = None  #: of a unix socket
    inode: int = field(default=0)  #: of a unix socket

    def close(self) -> None:
        """Takes the unix socket's path away too, unless another has taken its place."""
        self.socket.close()
        try:
            if self.path is not None and os.lstat(self.path).st_ino == self.inode:
                os.unlink(self.path)
        except OSError:
            pass  # it is gone already, or its folder is


def open_all(settings: HttpSettings) -> list[Opened]:
    """All of them or none; Fatal."""
    listeners = [parse_listener(text) for text in settings.listen]
    tls = _tls(settings)
    for listener in listeners:
        if isinstance(listener, TcpListener) and not (listener.loopback or tls or settings.insecure):
            raise Fatal(f"refusing to listen on {listener} without TLS: whoever reaches the API runs commands here",
                        "set [http] tls_certificate and tls_key, or insecure = true")  # fmt: skip
    opened: list[Opened] = []
    try:
        for listener in listeners:
            if isinstance(listener, UnixListener):
                opened.append(_open_unix(listener, settings.socket_group))
            else:
                opened.append(_open_tcp(listener, tls))
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened


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


def _open_tcp(listener: TcpListener, tls: ssl.SSLContext | None) -> Opened:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
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
    host, port = opened.getsockname()[:2]
    return Opened(opened, f"{'https' if tls else 'http'}://{address_text(host, port)}", tls)


def _open_unix(listener: UnixListener, group_name: str) -> Opened:
    path = listener.path
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
    try:
        group = group_id(group_name)
        if group is not None and group != os.stat(path).st_gid:
            try:
                os.chown(path, -1, group)
            except PermissionError:
                group = None  # a user's own daemon is not in it: the socket stays the user's
        os.chmod(path, SOCKET_MODE)
        opened.listen(BACKLOG)
        return Opened(opened, str(listener), path=path, inode=os.lstat(path).st_ino)
    except OSError as error:
        opened.close()
        Path(path).unlink(missing_ok=True)
        raise Fatal(f"cannot listen on {listener}: {error.strerror}") from error


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
