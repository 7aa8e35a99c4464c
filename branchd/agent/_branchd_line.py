"""The line to the daemon: one daemon thread that owns one SEQPACKET socket. Knows nothing of Celery.

The worker's threads only append to a deque and write a byte into a pipe: no lock is shared with them, nothing is
logged, nothing blocks and nothing is raised. What is in `socket`, `selectors` and `threading` is looked up when used,
because gevent and eventlet replace it.
"""

import collections
import contextlib
import json
import os
import selectors
import socket
import threading
import time
from typing import Any, Callable, Deque, Dict, Optional

#: bytes in one message, the daemon's limit too
LIMIT = 65536
#: seconds between two heartbeats: the daemon calls three missed ones silence
PERIOD = 2.0
#: seconds before the second and before every late attempt to connect, doubled in between. The daemon turns a worker
#: away until it has recorded its pid, which is a matter of milliseconds: hence the short first one.
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0

Message = Dict[str, Any]
#: answers one command: answer(ok=value) or answer(error=text)
Answer = Callable[..., None]


def encode(message: Message) -> bytes:
    # Half of a surrogate pair, which texts of the system may have, is no JSON for the daemon.
    return json.dumps(message, default=str, ensure_ascii=False).encode("utf-8", "replace")


class Line:
    """Connects, says how the worker is, hands commands over, and begins again when the daemon is gone: for ever."""

    def __init__(self, path: str, facts: Callable[[], Message], on_command: Callable[[Message, Answer], None]) -> None:
        self.path = path
        self.on_command = on_command
        self.beat_wanted = False
        self.wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self.wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._facts = facts
        self._conversation: Optional[Conversation] = None

    def start(self) -> None:
        os.register_at_fork(after_in_child=self._close_in_child)
        threading.Thread(target=self._run, name="branchd", daemon=True).start()

    def beat(self) -> None:
        """Has a heartbeat sent at once."""
        self.beat_wanted = True
        self.wake()

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: the thread is about to wake up anyway
            os.write(self._wake_writer, b"!")

    def heartbeat(self) -> bytes:
        facts = self._facts()
        raw = encode(facts)
        if len(raw) > LIMIT:
            raw = encode(dict(facts, queues=None))  # the one fact without a bound
        return raw

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            with contextlib.suppress(Exception):  # nobody here could help; the daemon notices that we are silent
                self._conversation = Conversation(self)
                self._conversation.run()
            with contextlib.suppress(Exception):
                if self._conversation is not None:
                    self._conversation.close()
            if time.monotonic() - began > LAST_PAUSE:
                pause = FIRST_PAUSE
            time.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)

    def _close_in_child(self) -> None:
        # A child that held the socket would keep the line open after the worker's death.
        with contextlib.suppress(Exception):
            if self._conversation is not None:
                self._conversation.close()
            os.close(self.wake_reader)
            os.close(self._wake_writer)


class Conversation:
    """One connection to one daemon. Answers stay in it: the next daemon counts its commands anew."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._outbox: Deque[bytes] = collections.deque()
        self._selector: Optional[selectors.BaseSelector] = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def run(self) -> None:
        """Returns, or raises OSError, when the daemon is gone."""
        line = self._line
        self._socket.connect(line.path)
        self._socket.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(line.wake_reader, selectors.EVENT_READ)
        due = 0.0
        while True:
            now = time.monotonic()
            if line.beat_wanted or now >= due:
                line.beat_wanted = False  # before the facts are gathered, or a change in between were lost
                due = now + PERIOD
                self._flush()
                if not self._outbox:  # a daemon that does not read gets no pile of old heartbeats
                    self._outbox.append(line.heartbeat())
            self._flush()
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                if key.fileobj is not self._socket:
                    os.read(line.wake_reader, LIMIT)
                elif not self._receive(self._socket.recv(LIMIT)):
                    return

    def close(self) -> None:
        if self._selector is not None:
            self._selector.close()
        self._socket.close()

    def _flush(self) -> None:
        while self._outbox:
            try:
                self._socket.send(self._outbox[0])
            except BlockingIOError:
                return  # tried again at the next heartbeat
            self._outbox.popleft()

    def _receive(self, raw: bytes) -> bool:
        if not raw:
            return False
        command = json.loads(raw.decode())
        number = command["id"]

        def answer(**outcome: Any) -> None:
            try:
                reply = encode(dict(outcome, type="reply", id=number))
            except Exception as error:
                reply = encode({"type": "reply", "id": number, "error": "the answer is no JSON: %r" % error})
            if len(reply) > LIMIT:
                reply = encode({"type": "reply", "id": number, "error": "the answer is longer than %d bytes" % LIMIT})
            self._outbox.append(reply)
            self._line.wake()

        self._line.on_command(command, answer)
        return True
