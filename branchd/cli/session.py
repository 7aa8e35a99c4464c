"""What a command of branchctl works with: which daemon, with which token; and how what went wrong is told.

Which daemon is decided when a command first asks, so that `--help` needs none.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from branchd.cli import places
from branchd.cli.exits import Exit, code
from branchd.cli.output import incomplete, neutral
from branchd.client import ApiProblem, BranchdClient, Unreachable
from branchd.core.errors import BranchdError, Invalid
from branchd.core.value import Value

T = TypeVar("T")

#: for whom no kernel vouches
HOW_TO_PROVE_IT = (
    "give a token: --token-file FILE, or the variable BRANCHD_TOKEN; the first one is in the daemon's STATE/admin.token"
)


class Session(Value):
    url: str | None  #: as given
    run: Path | None  #: as given
    token: str | None
    environment: Mapping[str, str]
    local: bool = False  #: ask that daemon without the others of its neighbourhood

    def client(self) -> BranchdClient:
        """Unreachable where none is found; a daemon that was named is never replaced by another one."""
        try:
            return BranchdClient(self.url or self._found(), self.token, local=self.local)
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    @property
    def folder(self) -> Path | None:
        """The run folder of the daemon that is meant, as far as that is known: a URL alone does not tell."""
        if self.run is not None or self.url is not None:
            return self.run
        root = os.geteuid() == 0
        return places.run(self.environment, root, places.state(self.environment, root))

    def _found(self) -> str:
        folder = self.folder
        assert folder is not None, "there is a URL"
        path = (folder / places.SOCKET).absolute()
        host, _, port = places.ADDRESS.partition(":")
        if self.run is not None or _listens(socket.AF_UNIX, os.fspath(path)):
            return f"unix:{path}"
        if _listens(socket.AF_INET, (host, int(port))):
            return f"http://{places.ADDRESS}"
        raise Unreachable(f"unix:{path}", f"nobody listens there, nor at {places.ADDRESS}")


def _listens(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    """Also True where it cannot be opened: then that is what must be told."""
    with socket.socket(family) as probe:
        try:
            probe.connect(address)
        except PermissionError:
            return True
        except OSError:
            return False
    return True


def read_token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """From the file, else the variable; UsageError for what no header can hold."""
    if file is None:
        source, token = "the variable BRANCHD_TOKEN", environment.get("BRANCHD_TOKEN", "")
        if not token:
            return None
    else:
        source = str(file)
        try:
            token = file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"{file}: {getattr(error, 'strerror', None) or 'is not a token'}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise click.UsageError(f"{source}: is not a token")
    return token


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end; Ctrl-C ends it without words, for that is how a follower ends."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def explain(error: BranchdError, what: str = "", token: bool = True) -> None:
    """Tells on stderr what went wrong, every fault, and what to do. `token`: whether one was sent."""
    prefix = "" if error.detail.startswith(what) else f"{what}: "
    lines = [f"{prefix}{error.detail}"]
    match error:
        case ApiProblem(errors=faults) | Invalid(faults=faults):
            for fault in faults:
                hint = f" ({fault.hint})" if fault.hint else ""
                lines.append(f"  {fault.pointer or 'all of it'}: {fault.detail}{hint}")
        case _:
            pass
    match error:
        case ApiProblem(status=401) if not token:
            lines.append(f"  {HOW_TO_PROVE_IT}")
        case Unreachable(denied=True):
            lines.append("  you must be root, the daemon's user or in its group; or use its address and a token")
        case Unreachable():
            lines.append("  start it with `branchd run`, or say where it is: --url, --run or the variable BRANCHD_URL")
        case _ if error.hint:
            lines.append(f"  {error.hint}")
        case _:
            pass
    for line in lines:
        click.echo(neutral(line), err=True)


class EdgeGroup(click.Group):
    """Where errors become words and an exit code; nowhere else in branchctl."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """A reader that goes away (EPIPE) is click's, and ends it without words."""
        if sys.stdout is None:  # then nothing is done either, for nobody would see what
            click.echo("branchctl: the standard output is closed", err=True)
            sys.exit(Exit.FAILED)
        if sys.stdin is None:
            sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # for as long as the process lasts
        try:
            return super().main(*arguments, **options)
        except UnicodeEncodeError as error:
            click.echo(f"branchctl: {neutral(error.object)[:80]} cannot be written as {error.encoding}", err=True)
            sys.exit(Exit.USAGE)
        except OSError as error:
            incomplete("branchctl", error)
            sys.exit(Exit.FAILED)

    def invoke(self, context: click.Context) -> Any:
        try:
            result = super().invoke(context)
        except BranchdError as error:
            explain(error, token=context.find_object(Session) is None or context.obj.token is not None)
            context.exit(code(error))
        if isinstance(result, int):  # a command's exit code
            context.exit(result)
        return result
