"""Processes: starting, stopping and signalling them, one, a group or all. What they are doing stands in states.py."""

import asyncio
import signal as signals
from collections.abc import Awaitable, Callable
from typing import Any

from branchd.api.door import names
from branchd.api.door.faults import Fault, RpcError, told
from branchd.api.door.table import BOOLEAN, GROUP, NAME, SIGNAL, STRING, Door, Methods, Param
from branchd.api.routing import LONGEST_WAIT
from branchd.core.access import Scope
from branchd.core.errors import BranchdError, Conflict, Invalid
from branchd.core.lifecycle import State
from branchd.core.spec import Wanted
from branchd.wire.resources import Instance

method = Methods()

#: states in which supervisord does not start a process, and does stop it
UP = (State.STARTING, State.RUNNING, State.BACKOFF)

SIGNALLABLE = (State.STARTING, State.RUNNING, State.STOPPING)

WAIT = Param(BOOLEAN, "wait", "Answer when it has come to that, and not as soon as it is under way.", needed=False)

SIGNAL_NAME = Param(SIGNAL, "signal", "Its name, as HUP, or its number.")

#: does it to one process, by its instance and whether to wait
Action = Callable[[Door, Instance], Awaitable[object]]


# Starting


@method("supervisor.startProcess", scope=Scope.OPERATE, returns="boolean", params=(NAME, WAIT))
async def start_process(door: Door, name: str, wait: bool = True) -> Any:
    """Start a process, or all of group:*, which answers as startProcessGroup."""
    group, process = names.split(name)
    if process is None:
        return await start_process_group(door, group, wait)
    instance = names.instance(door.service, name)
    if instance.status.state in UP:
        raise RpcError(Fault.ALREADY_STARTED, name)
    return await _start(door, instance, name, wait)


@method("supervisor.startProcessGroup", scope=Scope.OPERATE, returns="array", params=(GROUP, WAIT))
async def start_process_group(door: Door, group: str, wait: bool = True) -> list[dict[str, Any]]:
    """Start all processes of a group that do not run, at once."""
    return await _start_all(door, names.members(door.service, group), wait)


@method("supervisor.startAllProcesses", scope=Scope.OPERATE, returns="array", params=(WAIT,))
async def start_all_processes(door: Door, wait: bool = True) -> list[dict[str, Any]]:
    """Start all processes that do not run, at once."""
    return await _start_all(door, door.service.instances.list(), wait)


async def _start_all(door: Door, instances: list[Instance], wait: bool) -> list[dict[str, Any]]:
    down = [instance for instance in instances if instance.status.state not in UP]
    return await each(door, down, lambda door, one: _start(door, one, str(names.key(one)), wait))


async def _start(door: Door, instance: Instance, name: str, wait: bool) -> bool:
    try:
        await door.service.instances.start(instance.app, instance.name)
    except BranchdError as error:
        raise _ending(door) or told(error, Fault.SPAWN_ERROR) from None
    if not wait:
        return True
    passing = (State.STARTING, State.STOPPING)
    await door.wait(door.service.instances.leaves(instance.app, instance.name, passing, LONGEST_WAIT))
    status = names.instance(door.service, f"{instance.app}:{instance.name}").status
    state, reason = status.state, status.reason
    if state is State.RUNNING:
        return True
    about = f"{name}: {reason}" if reason else name
    raise RpcError(Fault.SPAWN_ERROR if state in (State.BACKOFF, State.FATAL) else Fault.ABNORMAL_TERMINATION, about)


# Stopping


@method("supervisor.stopProcess", scope=Scope.OPERATE, returns="boolean", params=(NAME, WAIT))
async def stop_process(door: Door, name: str, wait: bool = True) -> Any:
    """Stop a process by its stop plan, or all of group:*, which answers as stopProcessGroup."""
    group, process = names.split(name)
    if process is None:
        return await stop_process_group(door, group, wait)
    return await _stop(door, names.instance(door.service, name), name, wait)


@method("supervisor.stopProcessGroup", scope=Scope.OPERATE, returns="array", params=(GROUP, WAIT))
async def stop_process_group(door: Door, group: str, wait: bool = True) -> list[dict[str, Any]]:
    """Stop all processes of a group, at once."""
    return await _stop_all(door, names.members(door.service, group), wait)


@method("supervisor.stopAllProcesses", scope=Scope.OPERATE, returns="array", params=(WAIT,))
async def stop_all_processes(door: Door, wait: bool = True) -> list[dict[str, Any]]:
    """Stop all processes, at once."""
    return await _stop_all(door, door.service.instances.list(), wait)


async def _stop_all(door: Door, instances: list[Instance], wait: bool) -> list[dict[str, Any]]:
    touched = [one for one in instances if one.status.state in UP or one.status.wanted is Wanted.UP]
    stopped = await each(door, touched, lambda door, one: _stop(door, one, str(names.key(one)), wait))
    return [one for one in stopped if one["status"] != Fault.NOT_RUNNING]


async def _stop(door: Door, instance: Instance, name: str, wait: bool) -> bool:
    """What does not run is wanted down from now on all the same: a stop is remembered."""
    running = instance.status.state in UP
    if running or instance.status.wanted is Wanted.UP:
        try:
            await door.service.instances.stop(instance.app, instance.name)
        except BranchdError as error:
            raise told(error) from None
    if not running:
        raise RpcError(Fault.NOT_RUNNING, name)
    if wait:
        await door.wait(door.service.instances.wait(instance.app, instance.name, "stopped", LONGEST_WAIT))
    return True


# Signals


@method("supervisor.signalProcess", scope=Scope.OPERATE, returns="boolean", params=(NAME, SIGNAL_NAME))
async def signal_process(door: Door, name: str, signal: str) -> Any:
    """Send a signal to a process, or to all of group:*, which answers as signalProcessGroup."""
    group, process = names.split(name)
    if process is None:
        return await signal_process_group(door, group, signal)
    return await _signal(door, names.instance(door.service, name), name, signal)


@method("supervisor.signalProcessGroup", scope=Scope.OPERATE, returns="array", params=(GROUP, SIGNAL_NAME))
async def signal_process_group(door: Door, group: str, signal: str) -> list[dict[str, Any]]:
    """Send a signal to all processes of a group."""
    return await _signal_all(door, names.members(door.service, group), signal)


@method("supervisor.signalAllProcesses", scope=Scope.OPERATE, returns="array", params=(SIGNAL_NAME,))
async def signal_all_processes(door: Door, signal: str) -> list[dict[str, Any]]:
    """Send a signal to all processes."""
    return await _signal_all(door, door.service.instances.list(), signal)


async def _signal_all(door: Door, instances: list[Instance], signal: str) -> list[dict[str, Any]]:
    there = [instance for instance in instances if instance.status.state in SIGNALLABLE]
    return await each(door, there, lambda door, one: _signal(door, one, str(names.key(one)), signal))


async def _signal(door: Door, instance: Instance, name: str, given: str) -> bool:
    try:
        known = signals.Signals(int(given)).name if given.isdecimal() else given.strip().upper()
    except ValueError:
        raise RpcError(Fault.BAD_SIGNAL, given) from None
    if instance.status.state not in SIGNALLABLE:
        raise RpcError(Fault.NOT_RUNNING, name)
    try:
        await door.service.instances.signal(instance.app, instance.name, known)
    except Invalid:
        raise RpcError(Fault.BAD_SIGNAL, given) from None
    except Conflict:
        raise RpcError(Fault.NOT_RUNNING, name) from None
    return True


@method("supervisor.sendProcessStdin", scope=Scope.OPERATE, returns="boolean",
        params=(NAME, Param(STRING, "chars", "What it would read.")))  # fmt: skip
async def send_process_stdin(door: Door, name: str, _chars: str) -> bool:
    """No process here has a standard input that could be written to: a fault, NO_FILE where it runs."""
    if names.instance(door.service, name).status.pid is None:
        raise RpcError(Fault.NOT_RUNNING, name)
    raise RpcError(Fault.NO_FILE, name)


# Several at once


async def each(door: Door, instances: list[Instance], action: Action) -> list[dict[str, Any]]:
    """What came of it for each; all at once, so that none waits for another."""
    faults = await asyncio.gather(*(_fault(action(door, instance)) for instance in instances))
    return [
        {
            "name": instance.name,
            "group": instance.app,
            "status": int(Fault.SUCCESS if fault is None else fault.fault),
            "description": "OK" if fault is None else str(fault),
        }
        for instance, fault in zip(instances, faults, strict=True)
    ]


async def _fault(work: Awaitable[object]) -> RpcError | None:
    try:
        await work
    except RpcError as error:
        return error
    return None


def _ending(door: Door) -> RpcError | None:
    return RpcError(Fault.SHUTDOWN_STATE) if door.service.endings.chosen is not None else None
