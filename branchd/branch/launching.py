"""How the program of one instance is started, and others beside it: what its driver says, as which account, with which
environment and where its output goes. Whether and when it is started is the supervisor's.
"""

import asyncio
import hashlib
from collections.abc import Callable

from msgspec.structs import replace

from branchd.branch.ports import Process, Start
from branchd.branch.world import World
from branchd.core.errors import SpawnFailed
from branchd.core.spec import Spec, Unusable, launched_with
from branchd.core.values import Exit, Key, Launch, QueueDeclaration
from branchd.wire import json

Queues = tuple[QueueDeclaration, ...] | None


class Launching:
    """start() and beside() raise SpawnFailed."""

    def __init__(self, world: World, key: Key, node_name: str) -> None:
        self._world = world
        self._key = key
        self._node_name = node_name
        self._digested: tuple[Spec, str] | None = None  #: the last

    def digest(self, spec: Spec) -> str:
        """Of what a process is started with: while it is the same, no restart is due. Asked for at every turn."""
        if self._digested is None or self._digested[0] is not spec:
            self._digested = spec, hashlib.sha256(json.dumps(launched_with(spec))).hexdigest()
        return self._digested[1]

    async def start(
        self, spec: Spec, queues: Queues, nonce: str, on_exit: Callable[[Exit], None], sure: asyncio.Future[None]
    ) -> Process:
        """`sure`: before it is done, nothing of the program is executed."""
        launch = self._launch(spec, queues)
        output = self._world.logs.open(self._key, spec.logs)
        return await self._world.processes.spawn(self._key, nonce, launch, output, on_exit, sure)

    def beside(self, spec: Spec, queues: Queues, argv: tuple[str, ...]) -> Launch:
        """How another program is run as the instance is."""
        launch = self._launch(spec, queues)
        env = {name: value for name, value in launch.env.items() if not name.startswith("BRANCHD_")}
        return replace(launch, argv=argv, env=env)

    def _launch(self, spec: Spec, queues: Queues) -> Launch:
        if isinstance(spec, Unusable):
            raise SpawnFailed(spec.why)
        host = self._world.host
        environment = {} if spec.env_file is None else host.environment(spec.env_file)
        home, account = host.account(spec.user)
        start = Start(self._key, spec, queues, self._node_name, home, account, environment)
        return self._world.drivers[spec.kind].launch(start)
