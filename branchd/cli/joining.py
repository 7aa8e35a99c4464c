"""What a branch needs to join its neighbourhood, put together from the configuration: broker, seal, keys."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from socket import socket

import structlog

from branchd.adapters.bus import open_bus
from branchd.adapters.keys import LOOK_EVERY, KeyFile
from branchd.branch.mesh.mesh import Membership
from branchd.cli.config import Mesh
from branchd.cli.loopback import Loopback
from branchd.core.access import Principal
from branchd.core.brokers import Folder, parse
from branchd.core.errors import Fatal
from branchd.core.peers import Address
from branchd.wire.sealing import KeyRing, NeighbourhoodSeal

log = structlog.get_logger("branchd")


def membership(
    mesh: Mesh, branch_id: str, connect: Callable[[Principal], Awaitable[socket]]
) -> tuple[Membership, "Keys"]:
    """Of a branch that has a broker. `connect`: as api.server.Server has it. Fatal."""
    assert mesh.broker is not None, "it is alone"
    assert mesh.key_file is not None, "the configuration asks for one"
    keys = Keys(mesh.key_file)
    me = Address(branch_id, os.urandom(16).hex())
    seal = NeighbourhoodSeal(keys.first(), mesh.neighbourhood, me, time.time)
    keys.seal = seal
    broker = parse(mesh.broker)
    user, vhost = ("", "") if isinstance(broker, Folder) else (broker[0].user, broker[0].vhost)
    bus = open_bus(broker, mesh.neighbourhood, branch_id)
    return Membership(bus, seal, me, Loopback(connect), user, vhost), keys


class Keys:
    """The neighbourhood's keys as their file says; a running daemon takes up its changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = KeyFile(path)
        self.seal: NeighbourhoodSeal | None = None

    def first(self) -> KeyRing:
        """Fatal."""
        ring = self._file.changed()
        if ring is None:
            raise Fatal(f"the key file {self._path} cannot be read")
        return ring

    def watch(self) -> None:
        """From now on, while the loop runs."""
        try:
            ring = self._file.changed()
        except Fatal as error:
            log.error("key file not taken up", reason=error.detail, cure=error.hint)
        else:
            if ring is not None and self.seal is not None:
                self.seal.use(ring)
                log.info("keys taken up", ids=[key.id for key in ring.keys])
        asyncio.get_running_loop().call_later(LOOK_EVERY, self.watch)
