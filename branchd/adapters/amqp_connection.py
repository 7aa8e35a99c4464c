"""One AMQP connection of py-amqp: to an open connection, and its failures in words.

py-amqp is the library under kombu. It is used without kombu's connection pools, retry and ensure, for an answer
of the broker depends on the very connection here. What serves a connection stands in amqp_wire.py.
"""

import socket
import ssl
from contextlib import suppress
from struct import unpack_from
from typing import Any

import amqp
from amqp.exceptions import AccessRefused, AMQPError, NotAllowed, NotFound, PreconditionFailed, UnexpectedFrame
from amqp.transport import _AbstractTransport

from branchd.core.brokers import Broker

#: seconds without a word from the broker that waits for one, after which a connection is closed
ANSWER_LIMIT = 5.0

#: bytes asked of the socket at once
READ = 1 << 18

#: bytes; brokers make them of 128 KiB unless told otherwise
LONGEST_FRAME = 1 << 24

#: of frames: method, header, body, heartbeat
KINDS = (1, 2, 3, 8)


class Refusal(Exception):
    """The broker is reached and of no use; the text says why and what to do."""


class Transport(_AbstractTransport):  # type: ignore[misc]
    """Reads and writes in large pieces: py-amqp's own makes three system calls for each frame.

    What is written goes out before the next read that waits, and with flush().
    """

    def __init__(self, broker: Broker) -> None:
        # A second of lost packets must not end a connection, which is what py-amqp's default does.
        patience = {socket.TCP_USER_TIMEOUT: int(ANSWER_LIMIT * 1000)}
        super().__init__(broker.address, connect_timeout=ANSWER_LIMIT, socket_settings=patience)
        self.sock: socket.socket
        self._broker = broker
        self._tls = _tls(broker) if broker.scheme == "amqps" else None
        self._in = bytearray()
        self._at = 0
        self._out = bytearray()
        self._write = self._out.extend

    def _setup_transport(self) -> None:
        if self._tls is not None:
            self.sock.settimeout(self.connect_timeout)
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._broker.host)

    def _shutdown_transport(self) -> None:
        """Says no goodbye in TLS, which would wait for the other end's."""

    def flush(self) -> None:
        if self._out:
            self.sock.sendall(self._out)
            self._out.clear()

    def fill(self) -> None:
        """Reads what there is, and waits for it as long as the socket's time-out."""
        self.flush()
        if self._at:
            del self._in[: self._at]
            self._at = 0
        while True:
            data = self.sock.recv(READ)
            if not data:
                raise ConnectionResetError("the broker closed the connection")
            self._in += data
            # What TLS has decrypted already, no poll tells of.
            if not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()):
                return

    def has_frame(self) -> bool:
        there = len(self._in) - self._at
        if there < 8:
            return False
        kind, _, size = unpack_from(">BHI", self._in, self._at)
        if kind not in KINDS or size > LONGEST_FRAME:
            raise UnexpectedFrame("no frame of AMQP")
        return there >= 8 + int(size)

    def read_frame(self, unpack: object = None) -> tuple[int, int, bytes]:
        while not self.has_frame():
            self.fill()
        kind, channel, size = unpack_from(">BHI", self._in, self._at)
        end = self._at + 7 + size
        payload = bytes(self._in[self._at + 7 : end])
        if self._in[end] != 0xCE:
            raise UnexpectedFrame("a frame without its end")
        self._at = end + 1
        return kind, channel, payload


def _tls(broker: Broker) -> ssl.SSLContext:
    """Read at each connection, for certificates are renewed. Refusal."""
    try:
        context = ssl.create_default_context(cafile=broker.cacertfile)
        if broker.certfile is not None:
            context.load_cert_chain(broker.certfile, broker.keyfile)
    except OSError as error:
        files = ", ".join(file for file in (broker.cacertfile, broker.certfile, broker.keyfile) if file is not None)
        raise Refusal(f"{error.strerror or error}: correct the broker's URL or its files, {files}") from None
    return context


class Connection(amqp.Connection):  # type: ignore[misc]
    """Opened by connect(); every wait on it ends after ANSWER_LIMIT seconds with a TimeoutError."""

    def __init__(self, broker: Broker, name: str, heartbeat: int) -> None:
        super().__init__(
            host=broker.address,
            userid=broker.user,
            password=broker.password,
            login_method="PLAIN",
            virtual_host=broker.vhost,
            heartbeat=heartbeat,
            connect_timeout=ANSWER_LIMIT,
            client_properties={"product": "branchd", "connection_name": name},
        )
        self._broker = broker

    def Transport(self, *_: Any, **__: Any) -> Transport:  # py-amqp's hook
        return Transport(self._broker)

    def connect(self, callback: None = None) -> None:
        super().connect()
        self.limit(ANSWER_LIMIT)

    def limit(self, seconds: float) -> None:
        self.transport.sock.settimeout(seconds)

    def abort(self) -> None:
        """From another thread: whatever the connection waits for fails now."""
        transport = self._transport
        if transport is not None and (sock := transport.sock) is not None:
            with suppress(OSError):  # it is closed, or not yet open
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def cluster(self) -> str:
        return str(self.server_properties.get("cluster_name", ""))


def why(error: BaseException, broker: Broker) -> str:
    """What went wrong and what to do about it; without the password."""
    text = getattr(error, "reply_text", None) or str(error) or type(error).__name__
    where = f"{broker.host} port {broker.port}"
    match error:
        case Refusal():
            return str(error)
        case PreconditionFailed():
            return f"{text}: delete that exchange or queue at the broker, or name the neighbourhood otherwise"
        case AccessRefused() if "login" in text.lower():
            return f"the broker refuses the user {broker.user!r} or its password: correct the broker's URL"
        case AccessRefused():
            return (
                f"{text}: permit the user {broker.user!r} to configure, write and read '^branchd\\.' "
                f"in the vhost {broker.vhost!r}"
            )
        case NotAllowed() if "not found" in text:
            return f"the broker has no vhost {broker.vhost!r}: create it, or correct the broker's URL"
        case NotAllowed():
            return f"{text}: permit the user {broker.user!r} the vhost {broker.vhost!r}"
        case NotFound():
            return f"{text}: somebody deleted what branchd had declared; it is declared again"
        case UnexpectedFrame():
            return f"what listens at {where} does not speak AMQP, or speaks it over TLS: correct the broker's URL"
        case AMQPError():
            return f"the broker says: {text}"
        case ssl.SSLCertVerificationError():
            return (
                f"the certificate of {where} is not trusted ({error.verify_message}): "
                "name the file of its authority by ?cacertfile=FILE in the broker's URL"
            )
        case ssl.SSLError():
            return f"no TLS with {where} ({error.reason}): is that port the one for amqps?"
        case ConnectionRefusedError():
            return f"nothing listens at {where}: start the broker, or correct its URL"
        case socket.gaierror():
            return f"the host name {broker.host!r} is not known: correct the broker's URL or the name service"
        case TimeoutError():
            return f"the broker at {where} does not answer in time: look at it, its load and the network"
        case ConnectionResetError():
            return f"the broker at {where} closed the connection: look into its log"
        case OSError():
            return f"{where}: {error.strerror or text}"
        case _:
            return f"{type(error).__name__}: {text}"
