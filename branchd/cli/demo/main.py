"""The demo from its first folder to its last: tour, then branches to play with on a terminal, then a clean machine."""

import asyncio
import importlib.util
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path

import click

from branchd.cli.demo.daemon import Daemon
from branchd.cli.demo.neighbourhood import Neighbourhood, neighbours
from branchd.cli.demo.processes import writing_below
from branchd.cli.demo.steps import Failed, Voice
from branchd.cli.demo.tour import Tour
from branchd.client import ApiProblem, Unreachable
from branchd.core.errors import Fatal


def main(*, exit_after: bool, broker: str | None, branches: int | None) -> int:
    """0 where every step held. `branches`: the tour of a neighbourhood of so many; None: that of one without one.

    Without a terminal, or with `exit_after`, it does not stay up.
    """
    if importlib.util.find_spec("celery") is None:
        raise Fatal("the demo needs Celery, which is not installed beside branchd", "in a clone: pip install '.[demo]'")
    folder = Path(tempfile.mkdtemp(prefix="branchd-demo-"))
    (folder / "shop" / "results").mkdir(parents=True)
    (folder / "shop" / "messages").mkdir()
    (folder / "shop" / "control").mkdir()
    shutil.copy(Path(__file__).with_name("shop.py"), folder / "shop.py")
    voice = Voice()
    if branches is None:
        daemons = [Daemon(folder)]
        tour = Tour(daemons[0], broker, voice).run
    else:
        daemons = neighbours(folder, branches, broker)
        tour = Neighbourhood(folder, daemons, broker, voice).run
    try:
        code = asyncio.run(_tour(tour(), daemons, stay=sys.stdout.isatty() and not exit_after))
    finally:
        click.echo()
        click.echo("cleaning up: stopping every instance by its stop plan")
        cleaned = _clean_up(folder, daemons)
    return code or cleaned


async def _tour(tour: Coroutine[None, None, None], daemons: Sequence[Daemon], *, stay: bool) -> int:
    # Ctrl-C ends the tour in order; a daemon in a session of its own does not hear it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _interrupt, asyncio.current_task())
    try:
        await tour
        click.echo()
        click.echo(click.style("Every step held.", bold=True))
        if stay:
            _invite(daemons)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        return 0 if stay else 130
    except (Failed, ApiProblem, Unreachable) as error:
        click.echo(click.style(f"\nFAILED: {error}", fg="red"), err=True)
        for daemon in daemons:
            click.echo(f"the last words of the daemon of {daemon.name}:\n{daemon.last_words()}", err=True)
        return 1
    return 0


def _clean_up(folder: Path, daemons: Sequence[Daemon]) -> int:
    code = 0
    for daemon in daemons:
        if ended := daemon.stop():
            click.echo(f"the daemon of {daemon.name} ended with {ended}; its folder stays: {daemon.folder}", err=True)
            code = ended
    if left := writing_below(folder):
        click.echo(f"processes are left: {left}; their folder stays: {folder}", err=True)
        code = code or 1
    if code == 0:
        shutil.rmtree(folder, ignore_errors=True)
        click.echo("nothing is left: no process, no folder")
    return code


def _interrupt(task: "asyncio.Task[int] | None") -> None:
    if task is not None:
        task.cancel()


def _invite(daemons: Sequence[Daemon]) -> None:
    socket = daemons[0].socket
    if len(daemons) == 1:
        click.echo(f"""
The branch stays up until Ctrl-C. Try, in another terminal:

  export BRANCHD_URL=unix:{socket}
  branchctl ps
  branchctl logs -f tools:clock
  branchctl restart shop:mail-1
  branchctl events -f
  curl -s --unix-socket {socket} http://branchd/v1/apps/shop/instances/mail-1
""")
        return
    others = "\n".join(f"  # {daemon.name} is at unix:{daemon.socket}" for daemon in daemons[1:])
    click.echo(f"""
The branches stay up until Ctrl-C. Try, in another terminal:

  export BRANCHD_URL=unix:{socket}
{others}
  branchctl branch ls
  branchctl ps
  branchctl create tools --count 3 -- sleep 1000
  branchctl logs -f tools:clock-1
  branchctl restart 'tools:*'
  kill -9 {daemons[-1].pid}   # the daemon of {daemons[-1].name}; then look again
""")
