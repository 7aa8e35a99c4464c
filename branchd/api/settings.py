"""What an operator sets of the HTTP server, and what a listener's text means. Nothing is opened here."""

import ipaddress

from branchd.core.errors import Fatal
from branchd.core.value import Value

#: the prefix that tells a path of a unix socket from HOST:PORT
UNIX = "unix:"


class HttpSettings(Value):
    """[http] of the configuration, and socket_group of [auth]."""

    listen: tuple[str, ...]  #: each unix:PATH, HOST:PORT, [IPV6]:PORT or :PORT
    tls_certificate: str | None = None  #: path of a PEM file; with tls_key: every TCP listener speaks TLS
    tls_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()  #: Host names taken on TCP, besides loopback's and those of `listen`
    insecure: bool = False  #: listen beyond loopback without TLS
    body_limit: int = 1 << 20  #: bytes of a request's body
    supervisor_door: bool = False  #: serve supervisord's XML-RPC
    socket_group: str = "branchd"  #: its members may connect to the unix socket, and operate


class UnixListener(Value):
    path: str

    def __str__(self) -> str:
        return UNIX + self.path


class TcpListener(Value):
    host: str
    port: int  #: 0: any free one

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine can reach it."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name may mean anything tomorrow

    def __str__(self) -> str:
        return address_text(self.host, self.port)


def address_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_listener(text: str) -> UnixListener | TcpListener:
    """Fatal says what is wrong with it."""
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path.startswith("/") or "\0" in path:
            raise Fatal(f"cannot listen on {text!r}", "unix: takes an absolute path")
        return UnixListener(path)
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise Fatal(f"cannot listen on {text!r}", "give HOST:PORT, :PORT for loopback, or unix:PATH")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise Fatal(f"cannot listen on {text!r}", f"an IPv6 address stands in brackets, such as [{host}]:{port}")
    return TcpListener(host or "127.0.0.1", int(port))
