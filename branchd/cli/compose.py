"""The composition root: the one place where adapters, drivers, the branch and its API are put together and run."""

import asyncio
import gc
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace

import branchd.agent
from branchd import __version__
from branchd.adapters.cgroup import CgroupRoot
from branchd.adapters.channel import AgentChannel
from branchd.adapters.errands import Errands
from branchd.adapters.handover import Handover, Listening, become
from branchd.adapters.hooks import LocalTeller
from branchd.adapters.host import LocalHost
from branchd.adapters.identity import marks
from branchd.adapters.logs import FileLogs
from branchd.adapters.probes import LocalProber
from branchd.adapters.process import LinuxProcesses
from branchd.adapters.state import StateFolder
from branchd.adapters.store import SqliteStore
from branchd.adapters.systemd import Notifier
from branchd.api.listeners import Given
from branchd.api.server import Server
from branchd.branch import identity
from branchd.branch.ending import Ending, Endings
from branchd.branch.own_log import OwnLog
from branchd.branch.records import Snapshot
from branchd.branch.service import Service
from branchd.branch.world import Policies, World
from branchd.cli import refusal
from branchd.cli.config import Config
from branchd.cli.definition_files import reader
from branchd.cli.logging import configure_logging
from branchd.cli.reloading import decided
from branchd.cli.signals import Signals
from branchd.cli.telling import StatusLine
from branchd.core.access import Principal
from branchd.core.admission import Guards
from branchd.core.errors import Fatal, StorageFailed
from branchd.core.spec import Kind
from branchd.core.value import Value
from branchd.drivers.celery import CeleryDriver
from branchd.drivers.command import CommandDriver

if TYPE_CHECKING:
    from branchd.branch.mesh.mesh import Membership
    from branchd.cli.joining import Keys

log = structlog.get_logger("branchd")

#: the socket that agents in workers connect to, in the run folder
AGENT_SOCKET = "agent.sock"

#: objects made and not freed, after which a collection looks for circles among them
GARBAGE = 10_000

#: seconds between two words about what a stop waits for
TELL_EVERY = 10.0


class _Given(Value):
    """What a turn of the daemon is given; where a reload fails there is another, with the sockets that it left."""

    config: Config
    own_log: OwnLog
    state: StateFolder
    notifier: Notifier
    answer: identity.Answer | None
    sockets: tuple[Given, ...]  #: that listen already


class _Ended(Value):
    how: Ending
    sockets: tuple[Given, ...] = ()  #: after RELOAD, that listen for the next image


def run(config: Config, handover: Handover, answer: identity.Answer | None = None) -> int:
    """Runs the daemon until it is told to end; the exit code. Fatal where it cannot start.

    `answer`: what a person says of a state folder that looks like a copy.
    """
    own_log = OwnLog()
    configure_logging(config.branch.log_level, own_log)
    notifier = Notifier(os.environ)
    notifier.watchdog()  # an image that takes the place of another one has its time from now on
    state = StateFolder(config.branch.state)
    state.acquire(handover.lock)
    sockets = tuple(Given(one.socket, one.ours, one.inode) for one in handover.sockets)
    given = _Given(config, own_log, state, notifier, answer, sockets)
    try:
        while True:
            with asyncio.Runner() as runner:
                ended = runner.run(_live(given))
            if ended.how is not Ending.RELOAD:
                return 0
            given = replace(given, sockets=ended.sockets)
            left = Handover(tuple(Listening(one.socket, one.ours, one.inode) for one in ended.sockets), state.lock)
            try:
                become(left, {**os.environ, **notifier.environment})
            except OSError as error:
                log.error("not reloaded, the daemon goes on as it was", reason=str(error))
    finally:
        state.release()


async def _live(given: _Given) -> _Ended:
    endings = Endings()
    signals = Signals(endings)
    async with AsyncExitStack() as stack:
        ended = await _serve(stack, given, endings, signals)
    if ended.how is Ending.RELOAD:
        await signals.hold()
    return ended


async def _serve(stack: AsyncExitStack, given: _Given, endings: Endings, signals: Signals) -> _Ended:
    config, notifier = given.config, given.notifier
    _watchdog(notifier)
    store = SqliteStore(config.branch.state)
    stack.callback(store.close)
    snapshot = await _load(store, config, given.answer)
    run_folder = _folder(config.branch.run)
    processes = LinuxProcesses(snapshot.branch_id, CgroupRoot.discover(snapshot.branch_id))
    stack.callback(processes.close)
    logs = FileLogs(_folder(config.branch.logs))
    stack.push_async_callback(logs.close)
    channel = AgentChannel(run_folder / AGENT_SOCKET)
    stack.callback(channel.close)
    # each with room of its own: slow probes keep no hook waiting
    probing, telling = Errands(processes), Errands(processes)
    stack.callback(probing.close)
    stack.callback(telling.close)
    host = LocalHost(config.branch.state, processes.accounts)
    agent = str(Path(branchd.agent.__file__).parent)
    world = World(
        processes=processes,
        logs=logs,
        store=store,
        channel=channel,
        host=host,
        prober=LocalProber(probing),
        teller=LocalTeller(telling),
        drivers={
            Kind.CELERY: CeleryDriver(agent, str(run_folder / AGENT_SOCKET), sys.executable, host.cpus),
            Kind.COMMAND: CommandDriver(),
        },
        clock=lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        wall=time.time,
        chance=random.random,
    )
    policies = Policies(
        name=config.branch.name,
        labels=config.branch.labels,
        slots=config.branch.slots,
        node_name=config.branch.node_name,
        default_user=config.auth.default_user,
        allow_users=config.auth.allow_users,
        peer_scope=config.auth.peer_scope,
        guards=Guards(config.branch.guard_memory, config.branch.guard_load, config.branch.guard_disk),
    )
    server: Server

    async def connect(principal: Principal) -> socket:
        return await server.connect(principal)

    joining, keys = _membership(config, snapshot.branch_id, connect)
    token = given.state.admin_token()
    service = Service(world, policies, snapshot, token, __version__, joining, reader(config.file), endings)
    stack.callback(service.close)
    server = Server(service, config.server, given.sockets, given.own_log)
    await server.start()
    stack.push_async_callback(server.stop)
    service.addresses = tuple(server.addresses)

    signals.kill = service.kill
    stack.push_async_callback(service.leave)
    await service.begin()
    processes.begin()
    if keys is not None:
        keys.watch()
    _warn(config)
    refusal.clear(config.branch.run)
    log.info("ready", branch=service.name, listening=list(server.addresses), version=__version__)
    notifier.ready()
    gc.freeze()  # what is there now stays: no collection needs to look at it
    gc.set_threshold(GARBAGE)  # by default 700: in a mass restart a twentieth of the time
    gc.enable()
    status = StatusLine(service, notifier)
    following = asyncio.create_task(status.follow())
    stack.callback(following.cancel)
    ending = await decided(endings, config.branch.state, status.note)

    if ending is Ending.STOP:
        await _stop(service, notifier)
        return _Ended(ending)
    log.info("reloading" if ending is Ending.RELOAD else "letting go", instances=len(service.remaining()))
    if ending is Ending.RELOAD:
        notifier.reloading()
    else:
        notifier.stopping()
    await server.release()
    await service.let_go()
    return _Ended(ending, server.hand_over() if ending is Ending.RELOAD else ())


async def _stop(service: Service, notifier: Notifier) -> None:
    log.info("stopping", instances=len(service.remaining()))
    notifier.stopping()
    ending = asyncio.create_task(service.end())
    while not (await asyncio.wait([ending], timeout=TELL_EVERY))[0]:
        left = service.remaining()
        log.info("waiting for stop plans", instances=len(left), such_as=left[:5], hint="a second INT kills them")
        notifier.status(f"waiting for the stop plans of {len(left)} instances")
    await ending
    log.info("stopped")


async def _load(store: SqliteStore, config: Config, answer: identity.Answer | None) -> Snapshot:
    """What is stored, after it was seen to be this branch's; Fatal."""
    snapshot = store.load()
    changes, warning = identity.settle(
        snapshot, marks(config.branch.state), answer, config.mesh.broker is not None, os.urandom(16).hex()
    )
    if warning:
        log.warning("copied state", detail=warning)
    if changes:
        try:
            await store.write(*changes)
        except StorageFailed:
            if answer is not None:
                raise
            log.warning("what this state folder is known by is not remembered", cure="free space on its disk")
        store.close()
        snapshot = store.load()
    return replace(snapshot, branch_id=identity.branch_id(snapshot))


def _membership(
    config: Config, branch_id: str, connect: Callable[[Principal], Awaitable[socket]]
) -> "tuple[Membership | None, Keys | None]":
    if config.mesh.broker is None:
        return None, None
    from branchd.cli.joining import membership  # noqa: PLC0415  # a branch that is alone has no use for kombu

    return membership(config.mesh, branch_id, connect)


def _watchdog(notifier: Notifier) -> None:
    """Tells the service manager from the loop itself that the loop turns, for as long as it does."""
    if notifier.watchdog_interval is not None:
        notifier.watchdog()
        asyncio.get_running_loop().call_later(notifier.watchdog_interval, _watchdog, notifier)


def _folder(path: Path) -> Path:
    """Passable for all, for workers of other users reach the agent's socket in it. Fatal."""
    try:
        if not path.is_dir():
            path.mkdir(parents=True)
            path.chmod(0o755)  # whatever the umask is
    except OSError as error:
        raise Fatal(
            f"cannot make the folder {path}: {error.strerror}", "choose another, or make it yourself"
        ) from error
    return path


def _warn(config: Config) -> None:
    if os.geteuid() == 0 and config.auth.default_user is None and config.auth.allow_users is None:
        log.warning("instances that name no user run as root", cure="set [auth] default_user and allow_users")
