"""Groups as files define them: what they say, reading them anew, and taking a group up or away.

That is `reread` and `update` of branchctl in supervisord's smaller steps; the definitions of apps that no file has are
left to the API.
"""

import asyncio
import shlex
from collections.abc import Mapping
from typing import Any

from branchd.api.door.faults import Fault, RpcError, told
from branchd.api.door.states import path
from branchd.api.door.table import GROUP, Door, Methods
from branchd.api.door.xml import Written, written
from branchd.core.access import Scope
from branchd.core.errors import BranchdError, Conflict, NotFound
from branchd.core.spec import Kind, Spec, Stderr, Wanted, size_in_bytes
from branchd.core.values import Key, Stream, signal_number
from branchd.wire.decode import encode
from branchd.wire.spec import effective

method = Methods()

#: what an instance is that says nothing
DEFAULTS: Mapping[str, Any] = encode(Spec())

#: XML-RPC has no word for nothing, so supervisord says this
NOTHING = "none"


@method("supervisor.reloadConfig", scope=Scope.ADMIN, returns="array")
async def reload_config(door: Door) -> list[Any]:
    """Read the files anew, and change nothing: an array of the names of groups that are new, changed, and removed."""
    difference = await door.service.files.reread()
    if difference.faults:
        faults = (f"{fault.pointer}: {fault.detail}" for fault in difference.faults)
        raise RpcError(Fault.CANT_REREAD, "; ".join(faults))
    return [[list(difference.added), list(difference.changed), list(difference.removed)]]


@method("supervisor.addProcessGroup", scope=Scope.ADMIN, returns="boolean", params=(GROUP,))
async def add_process_group(door: Door, name: str) -> bool:
    """Take up a group that a file defines, and start what of it is wanted up."""
    try:
        await door.service.files.add(name)
    except NotFound:
        raise RpcError(Fault.BAD_NAME, name) from None
    except Conflict:
        raise RpcError(Fault.ALREADY_ADDED, name) from None
    except BranchdError as error:
        raise told(error) from None
    return True


@method("supervisor.removeProcessGroup", scope=Scope.ADMIN, returns="boolean", params=(GROUP,))
async def remove_process_group(door: Door, name: str) -> bool:
    """Take a group of a file away, with its logs, none of which runs any more; the file stays as it is."""
    try:
        await door.service.files.remove(name)
    except NotFound as error:
        if name in {app.name for app in door.service.apps.list()}:
            raise told(error) from None  # the API made it, and deletes it
        raise RpcError(Fault.BAD_NAME, name) from None
    except Conflict:
        raise RpcError(Fault.STILL_RUNNING, name) from None
    except BranchdError as error:
        raise told(error) from None
    return True


@method("supervisor.getAllConfigInfo", scope=Scope.READ, returns="array")
async def get_all_config_info(door: Door) -> Written:
    """What every process is to be: those that are here, and those of files that are not taken up yet."""
    here = {(one.app, one.name): dict(one.effective) for one in door.service.instances.list()}
    found = await door.service.files.defined()
    there = {
        (app.name, name): (app.spec, own)
        for app in found.apps.values()
        for name, own in app.instances.items()
        if (app.name, name) not in here
    }

    def told_of() -> Written:
        infos = [_info(door, key, spec, inuse=True) for key, spec in here.items()]
        infos += [_info(door, key, encode(effective(dict(app), dict(own))), inuse=False)
                  for key, (app, own) in there.items()]  # fmt: skip
        return written(sorted(infos, key=lambda info: (info["name"], info["group"])))

    return await asyncio.to_thread(told_of)  # of hundreds it takes long, and is 2.5 kB of each


def _info(door: Door, key: tuple[str, str], given: Mapping[str, Any], *, inuse: bool) -> dict[str, Any]:
    spec = {**DEFAULTS, **given}
    ready, restart, logs = ({**DEFAULTS[part], **(spec[part] or {})} for part in ("ready", "restart", "logs"))
    first_step = (spec["stop"] or [{"signal": "TERM", "patience": 10}])[0]
    worker = "celery", "-A", str(spec["application"]), "worker"
    streams: dict[str, Any] = {}
    for stream in Stream:
        streams |= {
            f"{stream}_capture_maxbytes": 0,
            f"{stream}_events_enabled": False,
            f"{stream}_logfile": path(door, Key(*key), {"logs": logs}, stream) or NOTHING,
            f"{stream}_logfile_backups": logs["keep"],
            f"{stream}_logfile_maxbytes": size_in_bytes(logs["rotate_at"]),
            f"{stream}_syslog": False,
        }
    return streams | {
        "autostart": spec["wanted"] == Wanted.UP,
        "command": shlex.join(worker if spec["kind"] == Kind.CELERY else spec["command"]),
        "directory": spec["directory"] or NOTHING,
        "exitcodes": list(restart["expected_exit_codes"]),
        "group": key[0],
        "group_prio": spec["priority"],
        "inuse": inuse,
        "killasgroup": True,  #: what is killed is the whole tree
        "name": key[1],
        "process_prio": spec["priority"],
        "redirect_stderr": logs["stderr"] == Stderr.JOIN,
        "serverurl": NOTHING,
        "startretries": restart["max_restarts"],
        "startsecs": int(ready["after"]),
        "stopsignal": signal_number(first_step["signal"]),
        "stopwaitsecs": int(first_step["patience"]),
        "uid": spec["user"] or NOTHING,
    }
