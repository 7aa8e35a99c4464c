"""Taking up the code and the configuration of now: what is tried before the daemon lets go.

How a process is replaced stands in adapters/handover.py; who may ask for it in branch/ending.py.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import click
import structlog

from branchd.adapters.handover import Handover, become, rehearse, told_to_end
from branchd.adapters.store import SqliteStore
from branchd.api.listeners import check
from branchd.branch.ending import Ending, Endings
from branchd.cli.config import Config
from branchd.core.errors import Conflict, Fatal

log = structlog.get_logger("branchd")

#: the option of `branchd run` by which a daemon has its next image tried
OPTION = "--rehearse"

#: seconds between two starts of a PID 1 that does not come up after a reload
AGAIN = 2.0


def rehearsed(config: Config, state: Path) -> None:
    """What can be seen, without touching anything, of whether a daemon would start; Fatal. In a process of its own.

    `state`: the folder of the daemon that would be replaced. That the code can be imported was seen before.
    """
    if config.branch.state != state:
        raise Fatal(
            f"the configuration names another state folder, {config.branch.state}, and what runs is in {state}",
            "stop the daemon, and start it with the other folder",
        )
    check(config.server)
    SqliteStore(state).check()
    if config.mesh.broker is not None:
        import branchd.cli.joining  # noqa: F401, PLC0415  # that it can be is what is to be seen


def persist(handover: Handover, words: str = "") -> None:
    """After a reload whose new image failed: where this is PID 1, it tries again, until it comes up or is told to end.

    Then, and where this is another process, it returns: who watches over the daemon starts the next one, and what runs
    lives on. What runs beside a PID 1 would end with it.
    """
    if not handover.again or os.getpid() != 1:
        return
    click.echo(f"{words}branchd: not up after the reload, trying again in {AGAIN:g} s; what runs goes on", err=True)
    if not told_to_end(AGAIN):
        try:
            become(Handover(), os.environ)
        except OSError as error:
            click.echo(f"branchd: not begun again: {error}", err=True)


async def decided(endings: Endings, state: Path, tell: Callable[[str], None]) -> Ending:
    """How the daemon is to end, once it is. A reload whose trial fails is none.

    `tell` hears why the last one failed, or "" once one has not.
    """
    while True:
        ending = await endings.next()
        if ending is not Ending.RELOAD:
            return ending
        log.info("trying the code and the configuration of now")
        trial = asyncio.create_task(rehearse(OPTION, str(state)))
        firm = asyncio.create_task(endings.firm())
        await asyncio.wait({trial, firm}, return_when=asyncio.FIRST_COMPLETED)
        firm.cancel()
        trial.cancel()  # nothing happens where it is over
        try:
            await trial
        except asyncio.CancelledError:
            continue  # something else came between
        except (Fatal, OSError) as error:
            log.error("not reloaded, the daemon goes on as it was", reason=str(error))
            tell(f"not reloaded: {error}")
            hint = "put that right, and reload again; the daemon goes on as it was"
            endings.refuse(Conflict(f"what would be reloaded does not start: {error}", hint))
        else:
            tell("")
            endings.grant()
            if endings.chosen is Ending.RELOAD:
                return Ending.RELOAD
