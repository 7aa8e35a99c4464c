"""The table of methods, the calls of one request through it, and the methods that speak of the table itself."""

import asyncio
from collections.abc import Mapping
from typing import Any

from branchd.api import problems
from branchd.api.door import daemon, groups, logs, names, processes, states, xml
from branchd.api.door.faults import Fault, RpcError, told
from branchd.api.door.table import ARRAY, STRING, Door, Method, Methods, Param
from branchd.core.access import Scope
from branchd.core.errors import BranchdError, Denied
from branchd.core.faults import NAME

#: of one system.multicall
MOST_CALLS = 64

#: characters that the results of one system.multicall may have, before the last of them
LONGEST_ANSWER = 4 << 20

MULTICALL = "system.multicall"

_OF_THE_TABLE = Param(STRING, "name", "The whole name of the method.")

system = Methods()


@system("system.listMethods", scope=Scope.READ, returns="array")
async def list_methods(_door: Door) -> list[str]:
    """The names of all methods."""
    return sorted(TABLE)


@system("system.methodHelp", scope=Scope.READ, returns="string", params=(_OF_THE_TABLE,))
async def method_help(_door: Door, name: str) -> str:
    """What a method does, and what it takes."""
    return _known(name).help


@system("system.methodSignature", scope=Scope.READ, returns="array", params=(_OF_THE_TABLE,))
async def method_signature(_door: Door, name: str) -> list[str]:
    """The type of a method's result, and those of its parameters."""
    return _known(name).signature


def _known(name: str) -> Method:
    if name not in TABLE:
        raise RpcError(Fault.SIGNATURE_UNSUPPORTED)
    return TABLE[name]


@system(MULTICALL, scope=Scope.READ, returns="array",
        params=(Param(ARRAY, "calls", "Structs of methodName, a string, and params, an array."),))  # fmt: skip
async def multicall(door: Door, calls: list[Any]) -> list[xml.Written]:
    """Several calls, one after the other: of each the result, or a struct of faultCode and faultString."""
    if len(calls) > MOST_CALLS:
        raise RpcError(Fault.INCORRECT_PARAMETERS, f"{len(calls)} calls are more than {MOST_CALLS}")
    results: list[xml.Written] = []
    for one in calls:
        try:
            if sum(len(result.text) for result in results) > LONGEST_ANSWER:
                raise RpcError(Fault.FAILED, f"the results before it have more than {LONGEST_ANSWER} characters")
            results.append(xml.written(await _one(door, one)))
        except (RpcError, Denied) as error:
            fault = told(error) if isinstance(error, Denied) else error
            results.append(xml.written({"faultCode": int(fault.fault), "faultString": str(fault)}))
        await asyncio.sleep(0)  # others have their turn
    return results


async def _one(door: Door, given: Any) -> Any:
    name, params = (given.get("methodName"), given.get("params", [])) if isinstance(given, dict) else (None, None)
    if not isinstance(name, str):
        raise RpcError(Fault.INCORRECT_PARAMETERS, "No methodName")
    if name == MULTICALL:
        raise RpcError(Fault.INCORRECT_PARAMETERS, "Recursive system.multicall forbidden")
    if not isinstance(params, list):
        raise RpcError(Fault.INCORRECT_PARAMETERS, "params is an array")
    return await call(door, name, tuple(params))


TABLE: Mapping[str, Method] = {
    name: method
    for methods in (daemon.method, states.method, processes.method, logs.method, groups.method, system)
    for method in methods
    for name in method.names
}


async def call(door: Door, name: str, params: tuple[Any, ...]) -> Any:
    """The result. RpcError; Denied where the principal has not the method's scope."""
    if name not in TABLE:
        raise RpcError(Fault.UNKNOWN_METHOD)
    method = TABLE[name]
    if method.scope is Scope.READ:
        return await _allowed(door, name, method, params)
    status = 200
    try:
        return await _allowed(door, name, method, params)
    except RpcError as error:
        status = _STATUS.get(error.fault, 409)
        raise
    except BranchdError as error:
        status = problems.meaning(type(error)).status
        raise
    except BaseException:
        status = 500
        raise
    finally:
        door.service.audit(door.principal, name, "/RPC2", status, _about(params))


#: what the record of a call says of its fault, in the words of HTTP; 409 for the others
_STATUS = {Fault.BAD_NAME: 404, Fault.INCORRECT_PARAMETERS: 422, Fault.BAD_SIGNAL: 422, Fault.SHUTDOWN_STATE: 503}


async def _allowed(door: Door, name: str, method: Method, params: tuple[Any, ...]) -> Any:
    if not door.principal.scope.includes(method.scope):
        raise Denied(f"{name} needs the scope {method.scope}; {door.principal.name} has {door.principal.scope}",
                     f"use a token with the scope {method.scope} as the password")  # fmt: skip
    daemon.check_not_ending(door)
    return await method.function(door, *method.read(params))


def _about(params: tuple[Any, ...]) -> Mapping[str, str]:
    """The app and the instance that a call names, where they can be names."""
    if not params or not isinstance(params[0], str):
        return {}
    group, process = names.split(params[0])
    found = {"app": group, "instance": process or ""}
    return {part: name for part, name in found.items() if NAME.fullmatch(name)}
