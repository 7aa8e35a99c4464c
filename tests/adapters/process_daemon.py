"""A daemon to be killed: spawns one program through LinuxProcesses, prints its identity as JSON and stays.

Arguments: the branch id, "cgroups" or "session", the nonce, then the program's argv.
With "keep" before them it does so in a child, and stays itself as the subreaper that the orphans go to. With "unsure"
it is never sure of the start, whose clone so waits at its gate.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import subprocess
import sys

from branchd.adapters.cgroup import CgroupRoot
from branchd.adapters.process import PR_SET_CHILD_SUBREAPER, LinuxProcesses
from branchd.core.values import Key, Launch


def keep(arguments: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    subprocess.Popen([sys.executable, "-m", "tests.adapters.process_daemon", *arguments])
    while True:
        os.wait()


async def serve(branch_id: str, mode: str, nonce: str, *argv: str, sure: bool = True) -> None:
    cgroups = CgroupRoot.discover(branch_id) if mode == "cgroups" else None
    processes = LinuxProcesses(branch_id, cgroups)
    processes.begin()
    launch = Launch(argv, "/", {"PATH": os.environ["PATH"]})
    sink = os.open(os.devnull, os.O_WRONLY)
    output = contextlib.nullcontext((sink, sink))
    never = None if sure else asyncio.get_running_loop().create_future()
    process = await processes.spawn(Key("shop", "worker-1"), nonce, launch, output, lambda how: None, never)
    identity = process.identity
    print(json.dumps([os.getpid(), identity.boot, identity.pid, identity.started]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep(sys.argv[2:])
    unsure = sys.argv[1] == "unsure"
    asyncio.run(serve(*sys.argv[1 + unsure :], sure=not unsure))
