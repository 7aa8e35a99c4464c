"""A daemon to be killed: runs one errand, prints its mark as JSON, and stays. Arguments: the branch id, a script."""

import asyncio
import json
import os
import sys

from branchd.adapters.errands import Errands
from branchd.adapters.process import LinuxProcesses
from branchd.core.values import Launch


async def serve(branch_id: str, script: str) -> None:
    processes = LinuxProcesses(branch_id, None)
    mark = processes.errand_mark()
    processes.errand_mark = lambda: mark  # type: ignore[method-assign]
    print(json.dumps(mark), flush=True)
    await Errands(processes).run(Launch(("sh", "-c", script), "/", {"PATH": os.environ["PATH"]}), 1000)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
