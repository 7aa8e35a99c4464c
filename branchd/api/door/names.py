"""supervisord's names: a group is an app, a process one of its instances, and `group:*` is all of a group."""

from branchd.api.door.faults import Fault, RpcError
from branchd.branch.service import Service
from branchd.core.errors import NotFound
from branchd.core.values import Key
from branchd.wire.resources import Instance


def split(name: str) -> tuple[str, str | None]:
    """Group and process; None: all of the group. Without a colon the two have one name."""
    group, colon, process = name.partition(":")
    if not colon:
        return name, name
    return group, None if process in ("", "*") else process


def instance(service: Service, name: str) -> Instance:
    """RpcError BAD_NAME, for the name of a whole group too."""
    group, process = split(name)
    if process is None:
        raise RpcError(Fault.BAD_NAME, name)
    try:
        return service.instances.get(group, process)
    except NotFound:
        raise RpcError(Fault.BAD_NAME, name) from None


def members(service: Service, group: str) -> list[Instance]:
    """RpcError BAD_NAME."""
    try:
        return service.instances.list(group)
    except NotFound:
        raise RpcError(Fault.BAD_NAME, group) from None


def key(of: Instance) -> Key:
    return Key(of.app, of.name)
