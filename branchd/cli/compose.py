"""The composition root: the one place where adapters, drivers, the branch and its API are put together and run."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

import structlog

import branchd.agent
from branchd import __version__
from branchd.adapters.cgroup import CgroupRoot
from branchd.adapters.channel import AgentChannel
from branchd.adapters.host import LocalHost
from branchd.adapters.identity import marks
from branchd.adapters.logs import FileLogs
from branchd.adapters.process import LinuxProcesses
from branchd.adapters.state import StateFolder
from branchd.adapters.store import SqliteStore
from branchd.adapters.systemd import Notifier
from branchd.api.server import Server
from branchd.api.settings import HttpSettings
from branchd.branch import identity
from branchd.branch.records import Snapshot
from branchd.branch.service import Service
from branchd.branch.world import Policies, World
from branchd.cli import refusal
from branchd.cli.config import Config
from branchd.cli.logging import configure_logging
from branchd.core.access import Principal
from branchd.core.admission import Guards
from branchd.core.errors import Fatal, StorageFailed
from branchd.core.spec import Kind
from branchd.drivers.celery import CeleryDriver
from branchd.drivers.command import CommandDriver

if TYPE_CHECKING:
    from branchd.branch.mesh.mesh import Membership
    from branchd.cli.joining import Keys

log = structlog.get_logger("branchd")

#: the socket that agents in workers connect to, in the run folder
AGENT_SOCKET = "agent.sock"

#: seconds between two words about what a stop waits for
TELL_EVERY = 10.0


def run(config: Config, answer: identity.Answer | None = None) -> int:
    """Runs the daemon until it is told to stop; the exit code. Fatal where it cannot start.

    `answer`: what a person says of a state folder that looks like a copy.
    """
    configure_logging(config.branch.log_level)
    notifier = Notifier(os.environ)
    state = StateFolder(config.branch.state)
    state.acquire()
    try:
        with asyncio.Runner() as runner:
            return runner.run(_serve(config, state, notifier, answer))
    finally:
        state.release()


async def _serve(config: Config, state: StateFolder, notifier: Notifier, answer: identity.Answer | None) -> int:
    async with AsyncExitStack() as stack:
        store = SqliteStore(config.branch.state)
        stack.callback(store.close)
        snapshot = await _load(store, config, answer)
        run_folder = _folder(config.branch.run)
        processes = LinuxProcesses(snapshot.branch_id, CgroupRoot.discover(snapshot.branch_id))
        stack.callback(processes.close)
        logs = FileLogs(_folder(config.branch.logs))
        stack.push_async_callback(logs.close)
        channel = AgentChannel(run_folder / AGENT_SOCKET)
        stack.callback(channel.close)
        host = LocalHost(config.branch.state)
        agent = str(Path(branchd.agent.__file__).parent)
        world = World(
            processes=processes,
            logs=logs,
            store=store,
            channel=channel,
            host=host,
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
        service = Service(world, policies, snapshot, state.admin_token(), __version__, joining)
        stack.callback(service.close)
        server = Server(service, _http(config))
        await server.start()
        stack.push_async_callback(server.stop)
        service.addresses = tuple(server.addresses)

        _on_signals(service)
        stack.push_async_callback(service.leave)
        await service.begin()
        if keys is not None:
            keys.watch()
        _warn(config)
        refusal.clear(config.branch.run)
        log.info("ready", branch=service.name, listening=list(server.addresses), version=__version__)
        notifier.ready()
        notifier.status(f"branch {service.name}, {len(service.instances.list())} instances")
        _watchdog(notifier)
        await service.ending.wait()

        log.info("stopping", instances=len(service.remaining()))
        notifier.stopping()
        ending = asyncio.create_task(service.end())
        while not (await asyncio.wait([ending], timeout=TELL_EVERY))[0]:
            left = service.remaining()
            log.info("waiting for stop plans", instances=len(left), such_as=left[:5], hint="a second INT kills them")
            notifier.status(f"waiting for the stop plans of {len(left)} instances")
        await ending
        log.info("stopped")
        return 0


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


def _on_signals(service: Service) -> None:
    """The first TERM or INT runs the stop plans; a second INT kills what still runs."""
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        if service.ending.is_set() and number == signal.SIGINT:
            log.warning("killing what still runs")
            service.kill()
        service.ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    # A terminal that closes, or a recipe for another supervisor, is no reason to end. Not SIG_IGN: what we start would
    # inherit that.
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(number, _ignore, number)


def _ignore(number: signal.Signals) -> None:
    log.info("signal without a meaning here", signal=number.name)


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


def _http(config: Config) -> HttpSettings:
    http = config.http
    return HttpSettings(
        listen=http.listen,
        tls_certificate=str(http.tls_certificate) if http.tls_certificate else None,
        tls_key=str(http.tls_key) if http.tls_key else None,
        allowed_hosts=http.allowed_hosts,
        insecure=http.insecure,
        body_limit=http.body_limit,
        socket_group=config.auth.socket_group,
    )


def _warn(config: Config) -> None:
    if os.geteuid() == 0 and config.auth.default_user is None and config.auth.allow_users is None:
        log.warning("instances that name no user run as root", cure="set [auth] default_user and allow_users")
