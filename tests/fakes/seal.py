"""Seal without cryptography: anybody can read and forge, but targets and replays are checked as by the real one."""

import json
from collections import Counter
from itertools import count

from branchd.core.peers import Address
from branchd.wire.sealing import Opened, Path, Rejected


class ClearSeal:
    """Implements branchd.wire.sealing.Seal."""

    def __init__(self, me: Address) -> None:
        self._me = me
        self._counters = {path: count(1) for path in Path}
        self._highest: Counter[tuple[Address, Path]] = Counter()

    def seal(self, path: Path, target: str, body: bytes) -> bytes:
        head = [self._me.id, self._me.boot, path, target, next(self._counters[path])]
        return json.dumps(head).encode() + b"\n" + body

    def open(self, target: str, message: bytes) -> Opened:
        head, _, body = message.partition(b"\n")
        try:
            identifier, boot, path, meant, number = json.loads(head)
            sender, path = Address(identifier, boot), Path(path)
        except (ValueError, TypeError):
            raise Rejected("garbage") from None
        if meant != target:
            raise Rejected("wrong target")
        if number <= self._highest[sender, path]:
            raise Rejected("replayed")
        self._highest[sender, path] = number
        return Opened(sender, body)
