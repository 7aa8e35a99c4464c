"""The demo from its first folder to its last: tour, then a branch to play with on a terminal, then a clean machine."""

import asyncio
import importlib.util
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from branchd.cli.demo.daemon import Daemon
from branchd.cli.demo.steps import Failed, Voice
from branchd.cli.demo.tour import Tour
from branchd.client import ApiProblem, Unreachable
from branchd.core.errors import Fatal


def main(*, exit_after: bool, broker: str | None) -> int:
    """0 where every step held. Without a terminal, or with `exit_after`, it does not stay up."""
    if importlib.util.find_spec("celery") is None:
        raise Fatal("the demo needs Celery, which is not installed beside branchd", "pip install 'branchd[demo]'")
    folder = Path(tempfile.mkdtemp(prefix="branchd-demo-"))
    (folder / "shop" / "results").mkdir(parents=True)
    (folder / "shop" / "messages").mkdir()
    (folder / "shop" / "control").mkdir()
    shutil.copy(Path(__file__).with_name("shop.py"), folder / "shop.py")
    daemon = Daemon(folder)
    try:
        code = asyncio.run(_tour(daemon, broker, stay=sys.stdout.isatty() and not exit_after))
    finally:
        click.echo()
        click.echo("cleaning up: stopping every instance by its stop plan")
        stopped = daemon.stop()
        if stopped == 0:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            click.echo(f"the daemon ended with {stopped}; its folder stays: {folder}", err=True)
    return code or stopped


async def _tour(daemon: Daemon, broker: str | None, *, stay: bool) -> int:
    # Ctrl-C ends the tour in order; a daemon in a session of its own does not hear it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _interrupt, asyncio.current_task())
    try:
        await Tour(daemon, broker, Voice()).run()
        click.echo()
        click.echo(click.style("Every step held.", bold=True))
        if stay:
            _invite(daemon)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        return 0 if stay else 130
    except (Failed, ApiProblem, Unreachable) as error:
        click.echo(click.style(f"\nFAILED: {error}", fg="red"), err=True)
        click.echo(f"the daemon's last words:\n{daemon.last_words()}", err=True)
        return 1
    return 0


def _interrupt(task: "asyncio.Task[int] | None") -> None:
    if task is not None:
        task.cancel()


def _invite(daemon: Daemon) -> None:
    click.echo(f"""
The branch stays up until Ctrl-C. Try, in another terminal:

  export BRANCHD_URL=unix:{daemon.socket}
  branchctl ps
  branchctl logs -f tools:clock
  branchctl restart shop:mail-1
  branchctl events -f
  curl -s --unix-socket {daemon.socket} http://branchd/v1/apps/shop/instances/mail-1
""")
