"""The daemon: which one it is, how it is, and its end."""

import os
from typing import Any

from branchd.api.door.faults import Fault, RpcError, told
from branchd.api.door.table import STRING, Door, Methods, Param
from branchd.branch.ending import Ending
from branchd.core.access import Scope
from branchd.core.errors import Conflict

method = Methods()

#: of supervisord's interface; supervisorctl talks to no other
API_VERSION = "3.0"

#: the supervisord whose interface this is: some clients compare the numbers
SUPERVISOR_VERSION = "4.3.0"


@method("supervisor.getAPIVersion", "supervisor.getVersion", scope=Scope.READ, returns="string")
async def get_api_version(_door: Door) -> str:
    """The version of this interface."""
    return API_VERSION


@method("supervisor.getSupervisorVersion", scope=Scope.READ, returns="string")
async def get_supervisor_version(_door: Door) -> str:
    """The version of the supervisord that this interface is like."""
    return SUPERVISOR_VERSION


@method("supervisor.getIdentification", scope=Scope.READ, returns="string")
async def get_identification(door: Door) -> str:
    """The name of the branch."""
    return door.service.name


@method("supervisor.getState", scope=Scope.READ, returns="struct")
async def get_state(_door: Door) -> dict[str, Any]:
    """That it runs; while it ends, every method is answered with the fault SHUTDOWN_STATE."""
    return {"statecode": 1, "statename": "RUNNING"}


@method("supervisor.getPID", scope=Scope.READ, returns="int")
async def get_pid(_door: Door) -> int:
    """The process id of the daemon."""
    return os.getpid()


@method("supervisor.shutdown", scope=Scope.ADMIN, returns="boolean")
async def shutdown(door: Door) -> bool:
    """Stop all processes by their stop plans, and end the daemon."""
    door.service.endings.ask(Ending.STOP)
    return True


@method("supervisor.restart", scope=Scope.ADMIN, returns="boolean")
async def restart(door: Door) -> bool:
    """Begin the daemon anew with its configuration as it is now; processes run on untouched."""
    try:
        await door.service.endings.reload()
    except Conflict as error:
        raise told(error) from None
    return True


@method("supervisor.sendRemoteCommEvent", scope=Scope.OPERATE, returns="boolean",
        params=(Param(STRING, "type", "Of the event."), Param(STRING, "data", "Its body.")))  # fmt: skip
async def send_remote_comm_event(_door: Door, _type: str, _data: str) -> bool:
    """Nothing: no process of a branch listens to its events this way. GET /v1/events tells of the request."""
    return True


def check_not_ending(door: Door) -> None:
    """RpcError."""
    if door.service.endings.chosen is not None:
        raise RpcError(Fault.SHUTDOWN_STATE)
