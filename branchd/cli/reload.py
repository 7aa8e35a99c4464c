"""branchctl reload: the daemon takes up the code and the configuration of now, and what it runs goes on."""

import asyncio
import time
from pathlib import Path

import click

from branchd.cli.exits import TimedOut
from branchd.cli.options import waiting
from branchd.cli.output import neutral
from branchd.cli.session import Session, run
from branchd.client import BranchdClient, Object, Unreachable
from branchd.core.diagnosis import DEFINITION_FILES
from branchd.core.errors import BranchdError

#: seconds between two looks whether the new code answers
PAUSE = 0.05

#: seconds without a daemon after which none is awaited any more; a service manager starts one in less
GONE = 10.0


@click.command()
@waiting()
@click.pass_obj
def reload(session: Session, wait: bool, timeout: float) -> None:
    """Have the daemon take up new code and configuration, in place: what it runs goes on, and nobody is refused.

    They are tried first. Where they do not start the exit code is 1, and the daemon goes on as it was.
    """

    async def work() -> None:
        client = session.client()
        asked = time.time()
        before = await client.reload((await client.whoami())["branch"])
        name = neutral(before["name"])
        if not wait:
            click.echo(f"{name}: is reloading")
            return
        try:
            after = await asyncio.wait_for(_another(client, before, asked, session.folder), timeout)
        except TimeoutError:
            raise TimedOut(f"{name}: the new code did not answer within {timeout:g} s", "see its log") from None
        click.echo(f"{name}: reloaded, version {neutral(after['version'])}")
        for finding in (await client.doctor())["findings"]:
            if finding["check"] == DEFINITION_FILES:
                click.echo(neutral(f"warning: {finding['check']}: {finding['detail']}; {finding['cure']}"), err=True)

    run(work())


async def _another(client: BranchdClient, before: Object, asked: float, folder: Path | None) -> Object:
    """What the new code says of the branch, once it is ready; BranchdError where it has not started."""
    seen = time.monotonic()
    while True:
        try:
            if await client.ready():
                found = await client.branch(before["id"])
                if found["started_at"] != before["started_at"]:
                    return found
            seen = time.monotonic()
        except Unreachable:
            from branchd.cli import refusal  # noqa: PLC0415  # start-up time: seldom needed

            left = None if folder is None else refusal.find(folder)
            if left is not None and left.at >= asked:
                raise BranchdError(f"the new code did not start: {left.detail}", "; ".join(left.cures)) from None
            if time.monotonic() - seen > GONE:
                raise
        await asyncio.sleep(PAUSE)
